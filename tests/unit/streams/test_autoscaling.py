"""The autoscaling signal: what unfinished work needs to be in time."""

from dataclasses import replace
from typing import Any
from zlib import crc32

import orjson
import pytest
from hold_cases import make_batcher
from memory_log import MemoryLog
from metrics_cases import make_metrics
from prometheus_client.parser import text_string_to_metric_families
from stream_cases import (
    FLEET,
    MODEL,
    START,
    Yard,
    heartbeat,
    make_options,
    make_policy,
    make_profile,
    request,
)
from worker_cases import POOL, ScriptedBackend, make_worker, place

from policies.autoscaling import demand, device_s, replicas_needed, total
from policies.batching.groups import group_of
from streams.autoscaling.orphaned_lanes import OrphanedLanes
from streams.autoscaling.signal import AutoscalingSignal
from streams.engine.log import Outgoing
from streams.metrics import registry as m
from topics.records import headers as h
from topics.records.heartbeat import DUE_S


def test_work_is_told_apart_by_when_it_is_due() -> None:
    work = [(1.0, START + 0.5), (2.0, START + 4), (3.0, START + 5), (4.0, START + 1e9), (5.0, 0.0)]
    found = demand(work, START)
    assert found == (6.0, 5.0, 0, 0, 0, 0, 0, 0, 4.0)


@pytest.mark.parametrize(
    ("due", "needed"),
    [
        ((), 0.0),
        ((0.5,), 0.5),
        ((3.0,), 3.0),
        ((0, 10.0), 2.0),  # 10 s of work due in 5 s
        ((1.0, 14.0), 3.0),
        ((0, 0, 0, 0, 300.0), 1.0),
        ((0, 0, 0, 0, 0, 0, 0, 0, 86_400.0), 1.0),
    ],
)
def test_the_tightest_deadline_says_how_many_replicas(
    due: tuple[float, ...], needed: float
) -> None:
    padded = (*due, *[0.0] * (len(DUE_S) - len(due)))
    assert replicas_needed(padded) == pytest.approx(needed)


def test_the_same_work_weighs_more_when_it_is_due_sooner() -> None:
    needed = [replicas_needed(demand([(30.0, START + s)], START)) for s in (1, 15, 300, 80_000)]
    assert needed == sorted(needed, reverse=True)
    assert len(set(needed)) == 4


def test_demands_of_another_version_count_as_due_last() -> None:
    one = demand([(1.0, START + 4)], START)
    assert total([one, one, (7.0, 1.0)]) == (0, 2.0, 0, 0, 0, 0, 0, 0, 8.0)


async def test_a_worker_tells_of_what_it_has_taken() -> None:
    yard = Yard()
    for n in range(6):
        place(yard, f"c{n}")
    worker = make_worker(yard, ScriptedBackend())
    transactor = await yard.run(worker, MemoryLog(yard.cluster, "a"))
    await transactor.step()
    option = yard.options.by_pool[POOL][0]
    each = device_s(make_profile(yard.policy, id="c0"), option)
    found = list(worker.unfinished())
    # Four run and two wait.
    assert found == [(pytest.approx(each), START + 120.0)] * 6


def stranded_of(yard: Yard) -> OrphanedLanes:
    return OrphanedLanes(yard.situation, MemoryLog(yard.cluster), yard.catalogue, yard.clock)


async def test_a_router_sums_heartbeats_and_what_it_holds() -> None:
    yard = Yard(live=[])
    batcher = make_batcher(yard)
    transactor = await yard.run(batcher, MemoryLog(yard.cluster, "b"))
    situation = yard.situation()
    signal = AutoscalingSignal(lambda: situation, batcher, stranded_of(yard), yard.clock)
    assert {pool: each["workers_needed"] for pool, each in signal.pools().items()} == {
        "premium-eu": 0,
        "premium-us": 0,
        "boards-us": 0,
    }
    report = heartbeat(yard.options, POOL, START, demand_s=demand([(12.0, START + 4)], START))
    situation.view.report(report)
    situation.view.report(replace(report, instance="worker-2"))
    told = signal.pools()[POOL]
    assert (told["workers"], told["replicas_needed"], told["workers_needed"]) == (2, 4.8, 5)
    assert told["device_s"]["5"] == 24.0
    hold(yard, 300)
    for _ in range(4):
        await transactor.step()
    held = signal.pools()
    # It goes to the cheapest pool that may serve it, though that has no worker yet.
    assert held["boards-us"]["workers"] == 0
    assert held["boards-us"]["workers_needed"] == 1
    option = yard.options.by_pool["boards-us"][0]
    each = device_s(make_profile(yard.policy, id="s", task="summarization"), option)
    assert sum(held["boards-us"]["device_s"].values()) == pytest.approx(300 * each, rel=0.01)


VENDOR = """
  vendor-us:
    device: slow
    count: 1
    region: us-east
    lanes: [batch]
    serves: [{model: yard-8b, variant: yard-8b-int8, precision: int8, max_batch: 4}]
    token_price: {usd_per_million: {input: 0.01, output: OUTPUT}}
"""


@pytest.mark.parametrize(("replies", "dearer"), [(1, 3.0), (20, 3.0), (20, 0.3)])
async def test_what_is_held_goes_to_the_pool_that_is_cheapest_for_all_its_answers(
    replies: int, dearer: float
) -> None:
    option = make_options().by_pool["boards-us"][0]
    asked = make_profile(make_policy(), task="summarization", body=several(replies))
    usd_each = device_s(asked, option) * option.usd_per_s / replies
    price = f"{dearer * usd_each / asked.output_tokens * 1e6:.6f}"
    yard = Yard(live=[], fleet=FLEET.rstrip() + VENDOR.replace("OUTPUT", price))
    batcher = make_batcher(yard)
    transactor = await yard.run(batcher, MemoryLog(yard.cluster, "b"))
    signal = AutoscalingSignal(yard.situation, batcher, stranded_of(yard), yard.clock)
    hold(yard, 10, body=several(replies))
    for _ in range(4):
        await transactor.step()
    wanted = {pool for pool, each in signal.pools().items() if sum(each["device_s"].values())}
    assert wanted == {"boards-us" if dearer > 1 else "vendor-us"}


def several(replies: int) -> dict[str, Any]:
    messages = [{"role": "user", "content": "which track?"}]
    return {"model": MODEL, "messages": messages, "n": replies}


def hold(yard: Yard, count: int, number: int | None = None, **more: Any) -> None:
    """Put requests on the hold, as a router does."""
    for n in range(count):
        fields = {"id": f"s{n}", "task": "summarization"} | more
        profile = make_profile(yard.policy, **fields)
        group = group_of(profile, yard.policy.windows.length_buckets_tokens)
        headers = h.encoded(profile=profile)
        headers |= {h.GROUP: group.encode(), h.HELD_AT: repr(START).encode()}
        yard.cluster.publish(
            Outgoing(
                yard.catalogue.held,
                profile.id.encode(),
                orjson.dumps(request(**fields)),
                list(headers.items()),
                crc32(group.encode()) % 4 if number is None else number,
            )
        )


async def test_metrics_are_in_the_format_of_prometheus() -> None:
    yard = Yard()
    signal = AutoscalingSignal(yard.situation, make_batcher(yard), stranded_of(yard), yard.clock)
    metrics = make_metrics(yard)
    metrics.gauges.read_from(signal.gauges)
    page = metrics.page("")[1].decode()
    families = {f.name: f for f in text_string_to_metric_families(page)}
    assert families.keys() >= {
        "shunter_pool_replicas_needed",
        "shunter_pool_workers",
        "shunter_pool_backlog_device_seconds",
    }
    backlog = families["shunter_pool_backlog_device_seconds"].samples
    assert len(backlog) == 2 * len(yard.options.by_pool) * len(DUE_S)
    assert {sample.labels["part"] for sample in backlog} == {"sent", "held"}


async def test_several_routers_add_up_what_they_hold_and_not_what_workers_tell() -> None:
    yard = Yard(live=[])
    situation = yard.situation()
    report = heartbeat(yard.options, "boards-us", START, demand_s=demand([(9.0, START + 4)], START))
    situation.view.report(report)
    for number in (0, 1):
        hold(yard, 150, number)
    routers, logs = [], []
    for name in ("b", "c"):
        batcher = make_batcher(yard)
        logs.append(await yard.run(batcher, MemoryLog(yard.cluster, name)))
        routers.append(AutoscalingSignal(lambda: situation, batcher, stranded_of(yard), yard.clock))
    for transactor in logs * 4:
        await transactor.step()
    parts: dict[str, list[dict[str, float]]] = {"sent": [], "held": []}
    for signal in routers:
        for part, found in parts.items():
            found.append(
                {
                    labels[1]: value
                    for metric, labels, value in signal.gauges()
                    if metric is m.REPLICAS_BY_DUE and labels[::2] == ("boards-us", part)
                }
            )
    # As the query of deploy/kubernetes has it.
    assert parts["sent"][0] == parts["sent"][1]
    together = max(
        sum(held[due] for held in parts["held"]) + parts["sent"][0][due] for due in parts["sent"][0]
    )
    assert all(sum(held.values()) > 0 for held in parts["held"])
    option = yard.options.by_pool["boards-us"][0]
    each = device_s(make_profile(yard.policy, id="s", task="summarization"), option)
    assert together == pytest.approx(max(9 / 5, (9 + 300 * each) / 7200), rel=0.01)
