"""Spans as bytes, held against the protocol's own library and the SDK's encoder."""

from typing import Any

import pytest
from hold_cases import make_batcher
from hold_cases import run as run_batcher
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.trace import SpanKind
from stream_cases import START, drain
from trace_cases import TracedYard, read, said_of

from streams.tracing import otlp_encoding as otlp

SAID: dict[str, Any] = {
    "text": "é", "empty": "", "long": "x" * 20_000, "truth": True, "untruth": False, "zero": 0,
    "number": -7, "large": 2**40, "real": 0.5, "list": ("a", "b"), "none": (), "numbers": (1, 2.5),
}  # fmt: skip


def sent(said: dict[str, Any], **fields: Any) -> Span:
    """Return a span as the protocol's library reads it."""
    told: dict[str, Any] = {"parent_id": 3, "name": "x", "kind": 2, "times": (1.0, 2.0)} | fields
    request = otlp.request(
        {}, [otlp.span(1, 2, attributes=otlp.attributes_of(otlp.OF_SPAN, said), **told)]
    )
    (of_resource,) = ExportTraceServiceRequest.FromString(request).resource_spans
    (span,) = of_resource.scope_spans[0].spans
    return span


async def test_spans_are_encoded_as_the_library_would() -> None:
    yard = TracedYard()
    yard.publish(id="c1", deadline=START - 1)
    for name in ("s1", "s2"):
        yard.publish(1, id=name, task="summarization")
    await drain(await yard.run(yard.router()))
    yard.clock.at += 46.0
    await (await run_batcher(yard, make_batcher(yard))).step()
    said = otlp.attributes_of(otlp.OF_SPAN, SAID)
    for kind in SpanKind:
        yard.telemetry.write("kinds", kind, yard.telemetry.begin(), 0, (1.0, 2.0), said)
    yard.telemetry.write("child", SpanKind.CLIENT, yard.telemetry.begin(), 7, (1.0, 2.0), b"")
    spans = yard.spans()
    assert any(span.links for span in spans)
    assert any(span.events for span in spans)
    assert any(span.status.description for span in spans)
    assert any(span.parent for span in spans)
    for request in yard.collector.requests:
        assert ExportTraceServiceRequest.FromString(request) == encode_spans(read(request))


def test_what_is_said_is_what_is_read() -> None:
    assert said_of(sent(SAID).attributes) == SAID
    # One and True are equal.
    assert {type(value) for value in said_of(sent({"n": 1}).attributes).values()} == {int}
    assert {type(value) for value in said_of(sent({"n": True}).attributes).values()} == {bool}


def test_an_event_a_link_and_the_resource_hold_attributes_too() -> None:
    told = otlp.attributes_of(otlp.OF_EVENT, SAID)
    link = otlp.link(2**127, 2**63, otlp.attributes_of(otlp.OF_LINK, SAID))
    span = sent({}, events=otlp.events("e", 1.5, [told, told]), links=[link])
    assert [(e.name, e.time_unix_nano, said_of(e.attributes)) for e in span.events] == [
        ("e", 1_500_000_000, SAID)
    ] * 2
    (to,) = span.links
    assert (to.trace_id.hex(), to.span_id.hex()) == ("8" + "0" * 31, "8" + "0" * 15)
    assert said_of(to.attributes) == SAID
    whole = ExportTraceServiceRequest.FromString(otlp.request(SAID, []))
    assert said_of(whole.resource_spans[0].resource.attributes) == SAID


def test_a_number_may_be_encoded_apart_from_its_name() -> None:
    apart = otlp.number_of(otlp.OF_EVENT, "a") + otlp.real(1.5)
    assert apart == otlp.attributes_of(otlp.OF_EVENT, {"a": 1.5})


@pytest.mark.parametrize(
    ("value", "read_as"),
    [
        ("half \ud800 of it", "half ? of it"),
        (2**70, 2**63 - 1),
        (-(2**70), -(2**63) + 1),
        (float("inf"), float("inf")),
    ],
)
def test_what_a_request_may_bring_is_encoded_all_the_same(value: Any, read_as: Any) -> None:
    assert said_of(sent({"x": value}).attributes) == {"x": read_as}


@pytest.mark.parametrize("at", [-1.0, float("-inf"), float("inf"), float("nan"), 1e30])
def test_a_time_that_is_none_is_the_epoch(at: float) -> None:
    assert sent({}, times=(at, at)).start_time_unix_nano == 0
    assert sent({}, events=otlp.events("e", at, [b""])).events[0].time_unix_nano == 0


def test_what_is_no_attribute_is_a_name_without_a_value() -> None:
    (attribute,) = sent({"x": object()}).attributes
    assert (attribute.key, attribute.value.WhichOneof("value")) == ("x", None)
