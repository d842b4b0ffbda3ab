"""The ledger: what each class of work was, the same live and exact."""

import math
import random
import statistics
from collections.abc import Iterable
from typing import Any

import orjson
import pytest
from live_cases import PLACEMENT, PROFILE
from memory_log import MemoryLog
from running_system import eventually
from stream_cases import START, Yard, drain, make_router, make_settings
from two_logs import KafkaGround
from typer.testing import CliRunner
from worker_cases import ScriptedBackend, make_worker, place

from shunter.cli import app
from shunter.commands import ledger as command
from shunter.logs.reading import TrailRow as Record
from streams.engine.log import Outgoing, Partition
from streams.engine.log import Record as LogRecord
from streams.metrics.quantile_sketch import QuantileSketch
from streams.usage_report import Endings, Line, LiveLedger, UsageRow
from streams.usage_report.live import WINDOWS_KEPT
from streams.usage_report.projection import as_json, window_of
from topics import Catalogue

WINDOW_S = 60.0


def step(name: str, kind: str, at: float, **fields: Any) -> bytes:
    source = {"topic": "t", "partition": 0, "offset": 0}
    told = {"request_id": name, "step": kind, "at": START + at, "source": source, "task": "chat"}
    return orjson.dumps(told | fields)


def decided(name: str, at: float, *, urgent: bool, **fields: Any) -> bytes:
    profile = PROFILE | {"latency_sensitive": urgent, "id": name}
    return step(name, "placed" if urgent else "held", at, profile=profile, **fields)


def executed(name: str, at: float, **fields: Any) -> bytes:
    return step(
        name,
        "executed",
        at,
        placement=PLACEMENT | {"pool": "premium-eu", "model_variant": "yard-fp8"},
        got={"cost_usd": 0.25, "finish_s": 2.0, "ttft_s": 0.5, "tpot_s": 0.01},
        usage={"input_tokens": 100, "output_tokens": 40, "cached_tokens": 25, "tool_calls": 3},
        **fields,
    )


RECORDS = [
    decided("a", 0, urgent=True),
    executed("a", 3),
    decided("b", 1, urgent=False, task="summarization"),
    executed("b", 70, task="summarization", attempt=2),
    decided("c", 2, urgent=True),
    step("c", "fell_back", 4, reason="timeout"),
    step("c", "failed", 5, reason="timeout", attempt=3),
    step("d", "rejected", 6, reason="unknown_model", task="invented"),
    step("e", "duplicate", 7),
    b"no evidence",
    decided("f", 8, urgent=True),
    step("f", "expired", 59.99, reason="deadline_passed"),
    decided("g", 60, urgent=True),
    step("g", "cancelled", 60, reason="cancelled"),
]


class Trail:
    """Has these records as its evidence."""

    def __init__(self, values: list[bytes]) -> None:
        self._values = values

    def each(self, kind: str, take: Any) -> None:
        assert kind == "evidence"
        for offset, value in enumerate(self._values):
            take(Record(0, offset, b"key", value, START, "here"))


def exact(values: list[bytes], **span: Any) -> dict[tuple[float, Line], UsageRow]:
    trail: Any = Trail(values)
    return command.exact_rows(trail, span.get("start"), span.get("end"), WINDOW_S)


def test_what_ended_is_told_by_window_lane_and_class() -> None:
    rows = exact(RECORDS)
    assert {(start - START, *line[:2]) for start, line in rows} == {
        (0, "interactive", "chat"),
        (0, "unknown", "invented"),
        (60, "background", "summarization"),
        (60, "interactive", "chat"),
    }
    chat = rows[START, Line("interactive", "chat")].figures()
    assert chat["requests"] == 3
    assert (chat["completed"], chat["failed"], chat["expired"]) == (1, 1, 1)
    assert chat["retry_rate"] == pytest.approx(1 / 3, abs=1e-4)
    assert chat["failures"] == {"timeout": 1, "deadline_passed": 1}
    assert chat["pools"] == {"premium-eu": 1}
    assert chat["model_variants"] == {"yard-fp8": 1}
    assert chat["cost_usd"] == 0.25
    assert chat["cache_hit_rate"] == 0.25
    assert chat["tool_calls_mean"] == 3
    assert chat["context_tokens"]["p50"] == pytest.approx(100, rel=0.03)
    assert chat["output_tokens"]["p50"] == pytest.approx(40, rel=0.03)
    assert chat["ttft_s"]["p99"] == pytest.approx(0.5, rel=0.03)
    assert chat["tpot_s"]["p95"] == pytest.approx(0.01, rel=0.03)
    assert chat["finish_s"]["p50"] == pytest.approx(2.0, rel=0.03)
    assert rows[START + 60, Line("background", "summarization")].retried == 1


def test_a_span_counts_what_ended_in_it_and_knows_what_was_decided_before() -> None:
    rows = exact(RECORDS, start="2027-01-15T08:01:05", end="2027-01-15T08:02:00")
    assert START == 1_800_000_000  # 2027-01-15T08:00:00Z
    assert list(rows) == [(START + 60, Line("background", "summarization"))]


def live_ledger(values: Iterable[bytes], *, by_tenant: bool = False) -> LiveLedger:
    ledger = LiveLedger(make_settings(), WINDOW_S, by_tenant=by_tenant)
    for offset, value in enumerate(values):
        ledger.take(LogRecord(Partition("evidence", 0), offset, b"key", value, [], 0))
    return ledger


def test_the_live_ledger_agrees_with_the_exact_one() -> None:
    live = live_ledger(RECORDS)
    assert not live.follows, "it has not started"
    kind, page = live.page()
    assert kind == "application/json"
    assert orjson.loads(page)["rows"] == as_json(exact(RECORDS))


def test_the_live_ledger_keeps_the_newest_windows_alone() -> None:
    ages = range(WINDOWS_KEPT + 2)
    live = live_ledger(executed(f"r{age}", -age * WINDOW_S) for age in ages)
    assert sorted((START - at) / WINDOW_S for at, _ in live.rows()) == [*range(WINDOWS_KEPT)]


TENANTS = [executed("a", 1, tenant="acme"), executed("b", 2, tenant="zeta"), executed("c", 3)]


def test_the_tenants_of_a_class_are_told_apart_where_that_is_asked_for() -> None:
    trail: Any = Trail([*TENANTS, executed("d", 4, tenant="acme")])
    rows = as_json(command.exact_rows(trail, None, None, WINDOW_S, by_tenant=True))
    told = [(row["tenant"], row["completed"], row["cost_usd"]) for row in rows]
    assert told == [("acme", 2, 0.5), ("unknown", 1, 0.25), ("zeta", 1, 0.25)]
    (together,) = as_json(exact(TENANTS))
    assert (together["tenant"], together["completed"]) == (None, 3)
    live = live_ledger(TENANTS, by_tenant=True).rows()
    assert {line.tenant: row.statuses.total() for (_, line), row in live.items()} == {
        "acme": 1,
        "zeta": 1,
        "unknown": 1,
    }


def test_the_live_ledger_has_so_many_tenants_and_then_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streams.usage_report.live.ROWS_MAX", 2)
    ends = [executed(f"r{n}", n, tenant=f"t{n}") for n in range(5)]
    live = live_ledger([*ends, executed("again", 6, tenant="t0")], by_tenant=True).rows()
    counts = {line.tenant: row.statuses.total() for (_, line), row in live.items()}
    assert counts == {"t0": 2, "t1": 1, "(other)": 3}


@pytest.mark.kafka
async def test_the_live_ledger_counts_what_ends_after_its_start(kafka: str, prefix: str) -> None:
    ground = KafkaGround(kafka, prefix)
    topic = Catalogue(ground.settings).evidence
    await ground.create({topic: 2})
    ledger = LiveLedger(ground.settings, WINDOW_S)

    async def end(name: str) -> None:
        for number in (0, 1):
            value = executed(f"{name}-{number}", 0)
            await ground.publish(Outgoing(topic, b"k", value, [], number))

    await end("before")
    await ledger.start()
    assert ledger.follows
    try:
        await end("after")

        async def are_counted() -> bool:
            await ledger.step(0.1)
            return sum(row.statuses.total() for row in ledger.rows().values()) >= 2

        await eventually(are_counted, "both are counted")
        await ledger.step(0.5)
        (row,) = ledger.rows().values()
        assert row.statuses == {"completed": 2}
    finally:
        await ledger.stop()
        await ground.close()


async def test_the_ledger_understands_the_evidence_of_the_stages() -> None:
    yard = Yard()
    router = await yard.run(make_router(yard))
    yard.publish(id="nowhere", constraints={"regions": ["mars"]})
    yard.publish(id="c")
    await drain(router)
    backend = ScriptedBackend()
    place(yard, "c")
    worker = await yard.run(make_worker(yard, backend), MemoryLog(yard.cluster, "w"))
    await worker.step()
    for _ in range(5):
        await worker.step()
        if "c" in backend.running:
            backend.finish("c")
    await drain(worker)
    values = [r.value or b"" for r in yard.cluster.records(yard.catalogue.evidence)]
    rows = exact(values)
    figures = {line: row.figures() for (_, line), row in rows.items()}
    (chat,) = figures.values()
    assert list(figures) == [Line("interactive", "chat")]
    assert (chat["completed"], chat["rejected"]) == (1, 1)
    assert chat["pools"] == {"premium-eu": 1}
    assert chat["failures"] == {"no_pool": 1}


def test_the_exact_ledger_is_told_to_people(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "open_trail", lambda *_: Trail(RECORDS))
    outcome = CliRunner().invoke(app, ["ledger"])
    told = capsys.readouterr().out + outcome.output
    assert "2027-01-15T08:00:00Z  interactive chat" in told
    assert "3 ended: completed 1, failed 1, expired 1; 33.3% retried" in told
    assert "without an answer: deadline_passed 1, timeout 1" in told
    assert "at premium-eu 1; yard-fp8 1" in told
    monkeypatch.setattr(command, "open_trail", lambda *_: Trail(TENANTS))
    outcome = CliRunner().invoke(app, ["ledger", "--by-tenant"])
    assert "unknown chat of acme" in capsys.readouterr().out + outcome.output


def test_how_urgent_open_requests_are_is_remembered_of_so_many() -> None:
    endings = Endings(open_max=2)
    for name in ("a", "b", "c"):
        endings.take(decided(name, 0, urgent=True))
    lanes = [endings.take(executed(name, 1)).line.lane for name in ("a", "b", "c")]  # type: ignore[union-attr]
    assert lanes == ["unknown", "interactive", "interactive"]


def test_a_window_begins_at_a_multiple_of_its_length() -> None:
    assert [window_of(at, 60) for at in (0.0, 59.9, 60.0, 1e9 + 1)] == [0, 0, 60, 999999960]


@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 0.99, 1.0])
def test_a_quantile_is_right_to_a_few_per_cent(share: float) -> None:
    rng = random.Random(7)
    values = sorted(rng.lognormvariate(0, 2) for _ in range(5000))
    sketch = QuantileSketch()
    for value in values:
        sketch.add(value)
    right = values[max(0, math.ceil(share * len(values)) - 1)]
    assert sketch.quantile(share) == pytest.approx(right, rel=0.02)
    assert sketch.mean == pytest.approx(statistics.fmean(values))


def test_of_nothing_there_is_no_quantile_and_of_zeros_it_is_zero() -> None:
    sketch = QuantileSketch()
    assert (sketch.quantile(0.5), sketch.mean) == (None, None)
    sketch.add(0.0)
    assert (sketch.quantile(0.5), sketch.mean) == (0.0, 0.0)


def test_two_sketches_add_up_whatever_they_counted() -> None:
    one, other, both = QuantileSketch(), QuantileSketch(), QuantileSketch()
    for sketch, values in ((one, (0.0, -1.0, 1e-9, 1e9)), (other, (0.5, 2.0, 2.0))):
        for value in values:
            sketch.add(value)
            both.add(value)
    one.merge(other)
    quantiles = [one.quantile(share / 10) for share in range(11)]
    assert quantiles == [both.quantile(share / 10) for share in range(11)]
    assert quantiles[-1] == pytest.approx(1e9, rel=0.02)
    assert one.mean == pytest.approx(both.mean)


def test_a_user_who_wants_a_span_of_the_live_ledger_is_told() -> None:
    outcome = CliRunner().invoke(app, ["ledger", "--follow", "--json"])
    assert "don't go with --follow" in str(outcome.exception)
