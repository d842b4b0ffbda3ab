"""The demo's figures: attainment, summary, the all-premium baseline, and the running totals."""

import time
from collections import Counter
from dataclasses import replace

import pytest

from policies import compile_options
from policies.hardware.accelerator import Accelerator, Completion, Job, VariantLimits
from shunter.demo.attainment import is_attained
from shunter.demo.baseline import premium_cost_usd
from shunter.demo.check import judge
from shunter.demo.ledger import Ledger
from shunter.demo.rules import Rules
from shunter.demo.summary import summarize
from shunter.demo.trace import TraceRow, load_rows, request_of
from shunter.demo.watch import Watch
from streams.config.declarations import load_fleet, load_policy
from streams.engine.log import Partition, Record
from streams.live import LiveView, snapshot_of
from topics import (
    Catalogue,
    Cost,
    Envelope,
    Evidence,
    Placement,
    PoolStatus,
    Result,
    Settings,
    Source,
    Timing,
    Usage,
    encode,
)
from topics.records import headers as h

FLEET, POLICY = load_fleet(None), load_policy(None)
OPTIONS, RULES = compile_options(FLEET), Rules(FLEET, POLICY)
US = Placement("silicon-us", "maia-200", "llama-3.1-8b-fp8", "fp8", "us-east", "direct")


def result(
    name: str = "a", *, ttft_s: float = 1.0, tpot_s: float = 0.01, **changes: object
) -> Result:
    timing = Timing(100.0, 100.0, None, 100.0, 100.0 + ttft_s, 100.0 + ttft_s + 10 * tpot_s)
    found = Result(
        name,
        "completed",
        timing,
        placement=US,
        usage=Usage(1000, 11),
        cost=Cost(0.001),
    )
    return replace(found, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "task", "expected"),
    [
        ({}, "chat", True),
        ({"ttft_s": 1.6}, "chat", False),
        ({"tpot_s": 0.11}, "chat", False),
        ({"ttft_s": 1.6, "tpot_s": 0.11}, "summarization", True),
        ({"ttft_s": 3601.0}, "summarization", False),
        ({"status": "expired"}, "summarization", False),
        ({"status": "rejected"}, "chat", False),
    ],
)
def test_attained_is_completed_by_the_deadline_and_within_the_slo_of_who_waits(
    changes, task, expected
):
    assert is_attained(result(**changes), task, POLICY) is expected


def test_the_summary_counts_what_came_and_multiplies_seconds_back():
    rows = [TraceRow(n, 0.0, "chat", "llama-3.1-8b", 1000, 11, None) for n in range(1, 5)]
    batched = replace(US, path="batch", batch_id="0-1")
    results = [
        result("demo-1"),
        result("demo-2", ttft_s=2.0),
        result("demo-3", placement=batched),
    ]
    ledger = Ledger({r.id: r for r in results}, Counter(r.id for r in results))
    verdict = judge({row.id: request_of(row) for row in rows}, ledger, RULES)
    premium = {row.id: 0.002 for row in rows}
    figures = summarize(
        rows, ledger, verdict, POLICY, premium, pools=["silicon-us", "cpu-eu"], speed=2.0
    )
    assert (figures["requests"], figures["results"], figures["lost"]) == (4, 3, 1)
    assert figures["by_pool"]["silicon-us"] == {
        "requests": 3,
        "direct": 2,
        "batch": 1,
        "batches": 1,
        "output_tokens": 33,
        "cost_usd": 0.003,
    }
    assert figures["by_pool"]["cpu-eu"]["requests"] == 0
    assert figures["batches"] == {"count": 1, "mean_size": 1.0}
    # Of four, one is lost and one had its first token too late.
    assert figures["slo_attainment"] == {"overall": 0.5, "by_task": {"chat": 0.5}}
    assert figures["by_task"]["chat"]["ttft_s"] == {"p50": 2.0, "p95": 4.0}
    assert (figures["cost_usd"], figures["cost_all_premium_usd"]) == (0.003, 0.008)


def premium(rows: list[TraceRow]) -> dict[str, float]:
    return premium_cost_usd([(row, request_of(row)) for row in rows], OPTIONS, RULES)


def test_a_lone_request_costs_its_device_time_on_a_premium_gpu():
    row = TraceRow(1, 5.0, "chat", "llama-3.1-8b", 1000, 100, None)
    expected = []
    for pool in ("premium-us", "premium-eu"):
        options = OPTIONS.by_pool[pool]
        device = Accelerator({o.variant: VariantLimits(o.roofline, o.max_batch) for o in options})
        device.submit(Job("x", "llama-3.1-8b-fp8", 1000, 100), 0.0)
        done = next(e for e in device.advance(60.0) if isinstance(e, Completion))
        expected.append(done.device_s * options[0].usd_per_s)
    assert min(abs(premium([row])["demo-1"] / usd - 1) for usd in expected) < 1e-6


def test_premium_gpus_too_share_their_steps_and_keep_to_constraints():
    # Number 3 is regulated: it may go to premium-eu only, whose two replicas it shares.
    alone = premium([TraceRow(3, 0.0, "chat", "llama-3.1-8b", 100, 200, None)])["demo-3"]
    rows = [TraceRow(3 + 25 * n, 0.0, "chat", "llama-3.1-8b", 100, 200, None) for n in range(40)]
    together = premium(rows)
    assert len(together) == 40
    assert sum(together.values()) < 0.5 * 40 * alone


def test_the_whole_trace_on_premium_gpus_has_a_price_for_each_request():
    rows = load_rows()
    costs = premium(rows)
    assert set(costs) == {row.id for row in rows}
    assert all(usd > 0 for usd in costs.values())


class Topics:
    """Feeds a watch with records as its topics would have them."""

    def __init__(self) -> None:
        self.catalogue = Catalogue(Settings())
        live = LiveView(self.catalogue, OPTIONS, POLICY, since=time.time())
        self.watch = Watch(self.catalogue, {"a": 0.005, "b": 0.005}, 2, live)

    def put(self, topic: str, value: object, key: str = "a", headers: object = ()) -> None:
        content = None if value is None else encode(value)
        record = Record(Partition(topic, 0), 0, key.encode(), content, headers, 0)  # type: ignore[arg-type]
        self.watch.take(record)

    def step(self, name: str, what: str, **details: object) -> None:
        now = time.time()
        found = Evidence(name, what, now, "w", Source("t", 0, 0), task="chat", **details)  # type: ignore[arg-type]
        self.put(self.catalogue.evidence, found, key=name)


def test_the_watch_knows_what_waits():
    topics = Topics()
    now = time.time()
    profile = {"deadline": now + 60, "window_s": 10.0}
    headers = [
        (h.GROUP, b"m|chat|batch|le512"),
        (h.HELD_AT, repr(now).encode()),
        (h.PROFILE, encode(profile)),
    ]
    for name in "ab":
        topics.put(topics.catalogue.held, {}, key=name, headers=headers)
    assert topics.watch.held == 2
    topics.put(topics.catalogue.held, None, key="a")
    assert topics.watch.held == 1


def test_the_watch_counts_each_end_once_and_warm_ups_apart():
    topics = Topics()
    results = topics.catalogue.results
    topics.put(results, result("warmup-x-0"))
    topics.put(results, result("a"))
    topics.put(results, result("a"))
    topics.put(topics.catalogue.dead_letters, {}, key="b")
    watch = topics.watch
    assert watch.warm == {"warmup-x-0"}
    assert watch.finished == {"a", "b"}
    assert watch.statuses == {"completed": 1, "dead_lettered": 1}
    assert (watch.cost_usd, watch.cost_all_premium_usd) == (0.001, 0.01)


def test_the_live_view_of_a_demo_has_its_requests_and_no_warm_up():
    topics = Topics()
    got = Envelope(cost_usd=0.001, ttft_s=0.1, finish_s=1.0)
    for name in ("warmup-x-0", "a"):
        topics.step(name, "executed", got=got, placement=US)
    shown = snapshot_of(topics.watch.live, time.time())
    assert shown.ended_total.requests == 1
    (pool,) = [p for p in shown.pools if p.total_direct]
    assert (pool.pool, pool.total_direct, pool.total_usd) == ("silicon-us", 1, 0.001)


def test_the_watch_knows_when_workers_are_up_and_idle():
    topics = Topics()
    assert not topics.watch.pools_up()
    assert topics.watch.silent_pools() == list(FLEET.pools)

    def report(running: int, at: float) -> None:
        for pool in FLEET.pools:
            status = PoolStatus(pool, "w", at, "up", 1.0, "d", "r", 8, running, 0, 0.0)
            topics.put(topics.catalogue.pool_status, status)

    now = time.time()
    report(running=0, at=now)
    assert topics.watch.pools_up()
    assert topics.watch.silent_pools() == []
    assert topics.watch.idle()
    topics.put(topics.catalogue.results, result("a"))
    # That report is older than the last result.
    assert not topics.watch.idle()
    report(running=1, at=now + 60)
    assert not topics.watch.idle()
    report(running=0, at=now + 60)
    assert topics.watch.idle()
