"""The demo's figures: attainment, summary, the all-premium baseline, and the running totals."""

import time
from collections import Counter
from dataclasses import replace

import pytest

from policies import compile_options
from shunter.demo.attainment import is_attained
from shunter.demo.check import judge
from shunter.demo.ledger import Ledger
from shunter.demo.premium import premium_costs
from shunter.demo.rules import Rules
from shunter.demo.summary import summarize
from shunter.demo.trace import TraceRow, request_of
from shunter.demo.watch import Watch
from streams.config.declarations import load_fleet, load_policy
from streams.engine.log import Partition, Record
from streams.live import LiveView, snapshot_of
from topics import (
    Candidate,
    Catalogue,
    Cost,
    Envelope,
    Evidence,
    Placement,
    PoolStatus,
    Profile,
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
        replace(result("demo-3", placement=batched), usage=Usage(1000, 11, cached_tokens=600)),
    ]
    ledger = Ledger({r.id: r for r in results}, Counter(r.id for r in results))
    verdict = judge({row.id: request_of(row) for row in rows}, ledger, RULES)
    premium = {row.id: 0.002 for row in rows[:2]}
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
    assert figures["cached_share"] == 0.2
    # Of four, one is lost and one had its first token too late.
    assert figures["slo_attainment"] == {"overall": 0.5, "by_task": {"chat": 0.5}}
    assert figures["by_task"]["chat"]["ttft_s"] == {"p50": 2.0, "p95": 4.0}
    assert (figures["cost_usd"], figures["cost_all_premium_usd"]) == (0.003, 0.004)
    # The lost one cost nothing, and is compared with nothing.
    assert (figures["compared"], figures["cost_compared_usd"]) == (2, 0.002)


def told_of(name: str, pool: str, usd: float, output_tokens: int = 100) -> list[Evidence]:
    """Return what the trail has of a request that ran there, and might have on premium GPUs."""
    where = replace(US, pool=pool)
    offers = [
        Candidate(p, "llama-3.1-8b-fp8", "fp8", "r", "direct", cost_usd=0.1)
        for p in ("premium-us", "premium-eu", "silicon-us")
    ]
    chat, times = ("t", "chat", "llama-3.1-8b", "chat", "default"), (0.0, 60.0)
    slo = (None, None, True, False, 0.9, 30.0, 0.0)
    profile = Profile(name, *chat, *times, 1000, output_tokens, *slo, 0, 1.0)
    source = Source("t", 0, 0)
    return [
        Evidence(name, "placed", 1.0, "w", source, profile=profile, candidates=tuple(offers)),
        Evidence(
            name,
            "executed",
            2.0,
            "w",
            source,
            task="chat",
            placement=where,
            got=Envelope(usd, 0.1, 1.0),
            usage=Usage(1000, output_tokens),
        ),
    ]


def test_the_demo_and_the_live_view_tell_the_same_of_premium_gpus():
    trail = {
        "a": told_of("a", "silicon-us", 0.0002),
        "b": told_of("b", "premium-eu", 0.0007),
        "c": told_of("c", "silicon-us", 0.00001, 700),
        "d": told_of("d", "silicon-us", 0.0002),
    }
    # It was tried elsewhere first, when a premium GPU might not have served it.
    trail["d"].insert(0, replace(trail["d"][0], candidates=()))
    costs = premium_costs(Ledger(evidence=trail), OPTIONS)
    view = LiveView(Catalogue(Settings()), OPTIONS, POLICY, since=0.0)
    # In whatever order the records of several partitions come.
    for name in "cdab":
        for step in trail[name]:
            partition = Partition(Catalogue(Settings()).evidence, 0)
            view.take(Record(partition, 0, name.encode(), encode(step), (), 0), 10.0)
    money = snapshot_of(view, 10.0).money_total
    assert money.compared == len(costs) == 4
    assert money.premium_estimate_usd == pytest.approx(sum(costs.values()), rel=1e-12)
    # What ran on a premium GPU cost what it cost.
    assert costs["b"] == 0.0007
    assert costs["a"] > 0.0002


def test_what_no_premium_gpu_could_serve_is_not_compared():
    trail = {"a": told_of("a", "silicon-us", 0.0002)}
    trail["a"][0] = replace(trail["a"][0], candidates=())
    assert premium_costs(Ledger(evidence=trail), OPTIONS) == {}


class Topics:
    """Feeds a watch with records as its topics would have them."""

    def __init__(self) -> None:
        self.catalogue = Catalogue(Settings())
        live = LiveView(self.catalogue, OPTIONS, POLICY, since=time.time())
        self.watch = Watch(self.catalogue, {"a", "b"}, live)

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
    assert set(watch.warm) == {"warmup-x-0"}
    assert watch.finished == {"a", "b"}
    assert watch.statuses == {"completed": 1, "dead_lettered": 1}


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
