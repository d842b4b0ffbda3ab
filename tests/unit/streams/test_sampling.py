"""Which traces are written: as the SDK's samplers would have it."""

import random

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace.sampling import Decision, ParentBased, Sampler, TraceIdRatioBased

from streams.engine.trace_context import Context
from streams.tracing.sampling import Sampling, new_span_id, new_trace_id
from streams.tracing.setup import TelemetryError, from_environment

ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
SAMPLER, ARGUMENT = "OTEL_TRACES_SAMPLER", "OTEL_TRACES_SAMPLER_ARG"


def decided(sampler: Sampler, trace_id: int, parent: Context | None) -> bool:
    """Return what a sampler of the SDK decides."""
    over = None
    if parent is not None:
        flags = trace.TraceFlags(parent.is_sampled)
        span = trace.SpanContext(trace_id, parent.span_id, is_remote=True, trace_flags=flags)
        over = trace.set_span_in_context(trace.NonRecordingSpan(span))
    return sampler.should_sample(over, trace_id, "x").decision is Decision.RECORD_AND_SAMPLE


@pytest.mark.parametrize("share", [0.0, 1e-9, 0.1, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("follows", [True, False])
def test_it_decides_as_the_sampler_of_the_sdk(share: float, follows: bool) -> None:
    ours = Sampling(share, follows)
    ratio = TraceIdRatioBased(share)
    theirs = ParentBased(ratio) if follows else ratio
    seeded = random.Random(share)
    edge = ratio.bound
    ids = [seeded.getrandbits(128) for _ in range(500)]
    ids += [max(1, edge - 1), min(edge, 2**64 - 1) or 1, (1 << 127) | (edge & (2**64 - 1)) or 1]
    for trace_id in ids:
        assert ours.begins(trace_id) is decided(theirs, trace_id, None)
        for is_sampled in (True, False):
            parent = Context(trace_id, 5, is_sampled)
            assert ours.goes_on(parent) is decided(theirs, trace_id, parent)


@pytest.mark.parametrize(
    ("name", "argument", "sampling"),
    [
        ("", "", Sampling(1.0)),
        ("parentbased_always_on", "", Sampling(1.0)),
        ("parentbased_always_off", "", Sampling(0.0)),
        ("parentbased_traceidratio", "0.1", Sampling(0.1)),
        ("always_on", "", Sampling(1.0, follows=False)),
        ("always_off", "", Sampling(0.0, follows=False)),
        ("TraceIdRatio", "0.25", Sampling(0.25, follows=False)),
    ],
)
def test_the_standard_variables_choose(
    monkeypatch: pytest.MonkeyPatch, name: str, argument: str, sampling: Sampling
) -> None:
    monkeypatch.setenv(SAMPLER, name)
    monkeypatch.setenv(ARGUMENT, argument)
    assert Sampling.from_environment() == sampling


@pytest.mark.parametrize(
    ("name", "argument", "said"),
    [("often", "", "OTEL_TRACES_SAMPLER=often"), ("traceidratio", "ten", "_ARG=ten")],
)
def test_what_cannot_be_read_is_told_of(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    name: str,
    argument: str,
    said: str,
) -> None:
    monkeypatch.setenv(SAMPLER, name)
    monkeypatch.setenv(ARGUMENT, argument)
    assert Sampling.from_environment().share == 1.0
    assert said in caplog.text


@pytest.mark.parametrize("argument", ["1.5", "-0.1", "nan"])
def test_a_share_that_is_none_is_an_error_for_people(
    monkeypatch: pytest.MonkeyPatch, argument: str
) -> None:
    monkeypatch.setenv(ENDPOINT, "http://127.0.0.1:1")
    monkeypatch.setenv(SAMPLER, "traceidratio")
    monkeypatch.setenv(ARGUMENT, argument)
    with pytest.raises(TelemetryError, match=f"{argument}.* from 0 to 1"):
        from_environment("router", "r-0")


def test_ids_fit_and_none_is_that_of_no_span() -> None:
    assert all(0 < new_trace_id() < 1 << 128 for _ in range(100))
    assert all(0 < new_span_id() < 1 << 64 for _ in range(100))
