"""Metrics count what became visible, once; with labels of which there are never too many."""

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hold_cases import make_batcher
from memory_log import MemoryLog
from metrics_cases import counted, make_metrics, read, serve_one
from prometheus_client.openmetrics.parser import text_string_to_metric_families as openmetrics
from stream_cases import POLICY, TRACEPARENT, Yard, drain, make_router
from worker_cases import POOL, ScriptedBackend

from streams.engine.log import Outgoing, Partition
from streams.metrics import METRICS
from streams.metrics import registry as m
from streams.metrics.gauges import hold_gauges
from streams.metrics.instruments import Names
from streams.metrics.metric import Metric
from topics import Envelope, Response, Usage

ROOT = Path(__file__).parents[3]
PLACE = (POOL, "yard-8b-fp8")


async def test_a_router_counts_its_decisions_as_the_evidence_has_them() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    transactor = counted(await yard.run(make_router(yard)), metrics)
    for n in range(4):
        yard.publish(id=f"c{n}", tenant="acme")
    for n in range(3):
        yard.publish(id=f"s{n}", task="summarization")
    yard.publish(id="nowhere", constraints={"regions": ["mars"]})
    yard.publish(id="c0")  # a duplicate
    yard.cluster.publish(_no_request(yard))
    await drain(transactor)
    told = Counter((e.step, e.task or "other") for e in yard.evidence())
    assert read(metrics, m.STEPS) == told
    assert told["held", "summarization"] == 3
    placed = Counter((e.task, e.placement.pool, "direct") for e in yard.evidence("placed"))
    found = {(t, pool, path): n for (t, pool, _, path), n in read(metrics, m.PLACEMENTS).items()}
    assert found == placed
    assert read(metrics, m.FAILURES) == {("chat", "rejected", "no_pool", "none"): 1}
    assert read(metrics, m.ENDED) == {("chat", "default", "rejected"): 1}
    assert read(metrics, m.DEAD_LETTERS) == {("not_json",): 1}
    refused = Counter(
        (c.pool, c.refused) for e in yard.evidence("placed") for c in e.candidates if c.refused
    )
    refused += Counter(
        (c.pool, c.refused) for e in yard.evidence("held") for c in e.candidates if c.refused
    )
    assert read(metrics, m.REFUSED) == refused
    # A request that can't or may not be served is no miss of the SLO.
    assert read(metrics, m.SLO_OUTCOMES) == {}


def _no_request(yard: Yard) -> Outgoing:
    return Outgoing(yard.catalogue.requests, b"x", b"{", partition=0)


async def test_what_was_chosen_is_compared_with_the_cheapest_premium_gpu() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    transactor = counted(await yard.run(make_router(yard)), metrics)
    yard.publish(id="s", task="summarization")
    await drain(transactor)
    (evidence,) = yard.evidence("held")
    premium = min(
        c.cost_usd
        for c in evidence.candidates
        if c.path == "direct" and c.pool.startswith("premium") and c.cost_usd is not None
    )
    assert evidence.promised is not None
    assert read(metrics, m.DECISION_COST) == {
        # Evidence has whole nano-dollars.
        ("summarization", "chosen"): pytest.approx(evidence.promised.cost_usd, abs=1e-9),
        ("summarization", "premium"): pytest.approx(premium, abs=1e-9),
    }
    assert premium > evidence.promised.cost_usd


async def test_a_batcher_counts_releases_batches_and_their_fill() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    batcher = make_batcher(yard)
    metrics.gauges.read_from(hold_gauges(batcher, lambda: yard.policy, yard.clock))
    router = await yard.run(make_router(yard))
    transactor = counted(await yard.run(batcher, MemoryLog(yard.cluster, "b")), metrics)
    for n in range(3):
        yard.publish(id=f"s{n}", task="summarization")
    await drain(router)
    await drain(transactor)
    yard.clock.at += 10
    assert read(metrics, m.HOLD_REQUESTS) == {("summarization",): 3}
    assert list(read(metrics, m.GROUP_AGE).values()) == [10]
    assert sum(read(metrics, m.GROUP_REQUESTS).values()) == 3
    yard.clock.at += 40
    await transactor.step()
    released = yard.evidence("released")
    assert len(released) == 3
    assert read(metrics, m.RELEASES) == {("summarization", "window"): 3}
    assert read(metrics, m.HOLD_DURATION, "sum") == {("summarization",): 150}
    where = (released[0].placement.pool, released[0].placement.model_variant)
    assert read(metrics, m.BATCH_SIZE, "sum") == {where: 3}
    assert read(metrics, m.BATCH_FILL, "sum") == {where: pytest.approx(3 / 4)}
    assert read(metrics, m.HOLD_REQUESTS) == {}


@pytest.mark.parametrize(
    "body",
    [
        {"data": [], "choices": 5},
        {"data": [], "choices": {"message": 1}},
        {"choices": [None, {"message": 3}, {"message": {"tool_calls": 7}}]},
        "no object",
    ],
)
async def test_an_answer_of_any_shape_is_counted_and_stops_no_worker(body: Any) -> None:
    yard = Yard()
    await serve_one(
        yard, make_metrics(yard), end=lambda b: b.finish("c", response=Response(200, body))
    )
    (evidence,) = yard.evidence("executed")
    assert evidence.usage is not None
    assert evidence.usage.tool_calls == 0


async def test_a_worker_counts_latencies_tokens_cost_and_promises() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    calls = {"choices": [{"message": {"tool_calls": [{"id": "1"}, {"id": "2"}]}}]}

    def end(backend: ScriptedBackend) -> None:
        backend.finish("c", usage=Usage(20, 11, 5), response=Response(200, calls))

    await serve_one(yard, metrics, end=end, tenant="acme")
    (evidence,) = yard.evidence("executed")
    assert evidence.usage == Usage(20, 11, 5, 2)
    kind = ("chat", "shunter", "yard-8b")
    where = (*kind, "chat", *PLACE)
    assert evidence.got is not None
    assert evidence.promised is not None
    assert read(metrics, m.TTFT, "sum") == {where: pytest.approx(1.2)}
    assert read(metrics, m.DURATION, "sum") == {where: pytest.approx(3.0)}
    assert read(metrics, m.TPOT, "sum") == {where: pytest.approx(0.18)}
    assert read(metrics, m.EXECUTION, "sum") == {PLACE: pytest.approx(2.0)}
    assert read(metrics, m.TOKENS, "sum") == {
        ("input", *kind, "chat", POOL): 20,
        ("output", *kind, "chat", POOL): 11,
    }
    assert read(metrics, m.CACHED) == {("chat", POOL): 5}
    assert read(metrics, m.TOOL_CALLS, "sum") == {("chat",): 2}
    assert read(metrics, m.COST) == {("chat", POOL, "acme"): pytest.approx(evidence.got.cost_usd)}
    assert read(metrics, m.ENDED) == {("chat", "acme", "completed"): 1}
    assert read(metrics, m.PREDICTION, "sum") == {
        (POOL, "cost"): pytest.approx(evidence.got.cost_usd / evidence.promised.cost_usd),
        (POOL, "ttft"): pytest.approx(1.2 / 0.3),
        (POOL, "finish"): pytest.approx(3.0 / 4.0),
    }
    kept = {("chat", dimension, "kept"): 1.0 for dimension in ("all", "deadline", "ttft")}
    assert read(metrics, m.SLO_OUTCOMES) == kept
    assert read(metrics, m.CALIBRATION) == {(POOL, "0.9", "kept"): 1}


async def test_an_answer_that_comes_late_has_missed_its_slo() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    await serve_one(yard, metrics, slo={"ttft_ms": 500})
    assert read(metrics, m.SLO_OUTCOMES) == {
        ("chat", "ttft", "missed"): 1,
        ("chat", "deadline", "kept"): 1,
        ("chat", "all", "missed"): 1,
    }
    assert read(metrics, m.CALIBRATION) == {(POOL, "0.9", "missed"): 1}


async def test_a_fallback_is_counted_and_ends_nothing() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    await serve_one(yard, metrics, end=lambda b: b.lose("c", elsewhere=True))
    assert read(metrics, m.FALLBACKS) == {("chat", POOL, "timeout"): 1}
    assert read(metrics, m.ENDED) == {}
    await serve_one(yard := Yard(), metrics, end=lambda b: b.lose("c", elsewhere=False))
    assert read(metrics, m.FAILURES) == {("chat", "failed", "timeout", POOL): 1}
    assert read(metrics, m.SLO_OUTCOMES) == {
        ("chat", "deadline", "missed"): 1,
        ("chat", "all", "missed"): 1,
    }


def test_a_fault_of_counting_ends_nothing_and_is_told_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    metrics = make_metrics(Yard())
    for _ in range(2):
        metrics.observer(Partition("topic", 0), [object()])  # type: ignore[list-item]
    assert [record.levelname for record in caplog.records] == ["ERROR"]


async def test_tenants_beyond_the_limit_are_one() -> None:
    yard = Yard(policy=POLICY + "tenants: {known: {share: 2}}\n")
    metrics = make_metrics(yard, tenants_max=2)
    transactor = counted(await yard.run(make_router(yard)), metrics)
    for n, tenant in enumerate(["first", "second", "third", "known", "third"]):
        yard.publish(id=f"r{n}", tenant=tenant, constraints={"regions": ["mars"]})
    await drain(transactor)
    tenants = {tenant: n for (_, tenant, _), n in read(metrics, m.ENDED).items()}
    assert tenants == {"known": 1, "first": 1, "other": 3}


async def test_classes_that_no_policy_has_are_one() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    transactor = counted(await yard.run(make_router(yard)), metrics)
    for n in range(3):
        yard.publish(id=f"r{n}", task=f"invented_{n}")
    await drain(transactor)
    assert read(metrics, m.ENDED) == {("other", "default", "rejected"): 3}


def test_names_are_bounded() -> None:
    names = Names(("b", "c", "d"), 2)
    assert [names.of(n) for n in ("b", "c", "d", "e", None)] == ["b", "c", "other", "other", "none"]


async def test_a_reader_of_openmetrics_gets_the_traces_of_latencies() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    await serve_one(yard, metrics, extra=(("traceparent", TRACEPARENT),))
    content_type, page = metrics.page("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
    assert content_type.startswith("application/openmetrics-text")
    found = {
        sample.name.removesuffix("_bucket"): sample.exemplar.labels["trace_id"]
        for family in openmetrics(page.decode())
        for sample in family.samples
        if sample.exemplar
    }
    trace_id = TRACEPARENT.decode().split("-")[1]
    assert found == {metric.family: trace_id for metric in (m.TTFT, m.TPOT, m.DURATION)}
    assert metrics.page("text/plain")[0].startswith("text/plain")


def test_the_catalogue_names_each_metric_once_and_by_the_rules() -> None:
    names = [metric.name for metric in METRICS]
    assert len(set(names)) == len(names)
    for metric in METRICS:
        assert re.fullmatch(r"(shunter|gen_ai|messaging)(\.[a-z_]+)+", metric.name), metric.name
        assert bool(metric.bounds) == (metric.kind == "histogram"), metric.name
        assert list(metric.bounds) == sorted(set(metric.bounds)), metric.name
        assert not metric.text.endswith("."), metric.name


def test_the_document_of_metrics_has_the_catalogue() -> None:
    document = (ROOT / "docs" / "metrics.md").read_text()
    rows = [line for line in document.splitlines() if re.match(r"\| `(shunter|gen_ai|mess)", line)]
    assert rows == [row_of(metric) for metric in METRICS]


def row_of(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels) or "none"
    what = f"`{metric.name}` | {metric.kind} | {metric.unit} | {labels} | {metric.told_by}"
    return f"| {what} | {metric.text} |"


def test_a_chance_is_counted_below_its_upper_bound() -> None:
    yard = Yard()
    metrics = make_metrics(yard)
    got = Envelope(1.0, 0.1, 1.0)
    for chance in (0.2, 0.9, 0.901, 1.0):
        promised = Envelope(1.0, 0.1, 1.0, chance=chance)
        counts: Any = Counter()
        metrics.observer._prediction(promised, got, "p", {"all": True}, counts)
        for (metric, *labels), amount in counts.items():
            metrics.observer._instruments.add(metric, tuple(labels), amount)
    found = {chance: n for (_, chance, _), n in read(metrics, m.CALIBRATION).items()}
    assert found == {"0.5": 1, "0.9": 1, "0.95": 1, "1": 1}
