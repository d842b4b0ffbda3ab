"""Unread work in the lanes of a pool: told by its workers, or found where it has none."""

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hold_cases import make_batcher
from memory_log import MemoryLog
from stream_cases import START, Yard, heartbeat, make_profile, step_until
from worker_cases import GROUP, POOL, ScriptedBackend, make_worker, partition, place, placed, serve

from policies.autoscaling import ENDED_PART, alike, demand, device_s, unread_demand
from streams.autoscaling.orphaned_lanes import COMING_S_MAX, READ_OFFSETS_MAX, OrphanedLanes
from streams.autoscaling.signal import AutoscalingSignal
from streams.engine.log import LogError, Outgoing, Partition
from streams.engine.transactor import Transactor
from topics import PoolStatus, Progress, decode, encode, progress_key
from workers.stage.backlog_estimate import (
    LAG_AGE_S_MAX,
    OFFSETS_MAX,
    PRIOR_ROOM_S,
    SEEN_MAX,
    BacklogEstimate,
    Unread,
)
from workers.stage.worker import Worker


def each_s(yard: Yard) -> float:
    """The device time of a chat turn of the tests."""
    return device_s(make_profile(yard.policy), yard.options.by_pool[POOL][0])


def test_a_heartbeat_of_an_older_worker_is_understood() -> None:
    told = orjson.loads(encode(heartbeat(Yard().options, POOL, START)))
    for field in ("unread", "unread_s"):
        told.pop(field, None)
    assert decode(PoolStatus, orjson.dumps(told)).unread is None
    assert decode(PoolStatus, orjson.dumps(told | {"of_a_newer": 1})).pool == POOL


def test_unread_work_is_like_what_was_seen_and_came_evenly_since() -> None:
    found = list(alike([(2.0, 60.0)], 10.0, START - 40, START))
    assert [deadline - START for _, deadline in found] == [25.0, 35.0, 45.0, 55.0]
    assert sum(seconds for seconds, _ in found) == pytest.approx(20.0)
    # A clock that is behind makes none of it come later than now.
    assert {d for _, d in alike([(2.0, 60.0)], 10.0, START + 5, START)} == {START + 65}


def test_unread_work_past_its_deadline_takes_little_and_is_not_urgent() -> None:
    found = unread_demand([(100.0, START - 1), (1.0, START + 4)], START)
    assert found == (0, 1.0, 0, 0, 0, 0, 0, 0, 100 * ENDED_PART)


def unread_of(backlog: BacklogEstimate, lag: Mapping[Partition, int]) -> Unread:
    backlog.looked(lag)
    found = backlog.unread(START)
    assert found is not None
    return found


async def take(yard: Yard, in_flight_max: int = 4) -> tuple[Worker, Transactor, MemoryLog]:
    log = MemoryLog(yard.cluster, "a")
    worker = make_worker(yard, ScriptedBackend(), in_flight_max=in_flight_max)
    transactor = await yard.run(worker, log, records_max=1)
    for _ in range(in_flight_max + 1):
        await transactor.step()
    return worker, transactor, log


async def test_a_worker_that_takes_few_tells_of_all_that_waits() -> None:
    yard = Yard()
    for n in range(100):
        place(yard, f"c{n}")
    worker, transactor, _ = await take(yard)
    lag = await transactor.lag()
    assert lag is not None
    assert lag[partition(yard)] == 96
    unread = unread_of(worker.backlog, lag)
    assert unread.requests == 96
    assert sum(unread.due) == pytest.approx(96 * each_s(yard))
    # They have 120 s: more than 60, less than 300.
    assert unread.due == tuple(demand([(sum(unread.due), START + 120)], START))


async def test_markers_of_transactions_are_no_requests() -> None:
    yard = Yard()
    for n in range(50):
        writer = await MemoryLog(yard.cluster, "router").fence("router")
        await writer.begin()
        await (await writer.send(placed(yard, f"c{n}")))
        await writer.commit()
    worker, transactor, _ = await take(yard)
    lag = await transactor.lag()
    assert lag is not None
    # 46 requests and their markers; the marker of the last one taken is read with it or after it.
    assert lag[partition(yard)] >= 92
    assert unread_of(worker.backlog, lag).requests == pytest.approx(46, rel=0.2)


def test_what_waits_is_taken_to_be_like_the_last_of_its_own_lane() -> None:
    yard = Yard()
    option = yard.options.by_pool[POOL][0]
    backlog = BacklogEstimate([option], yard.clock)
    chat = make_profile(yard.policy)
    summary = make_profile(yard.policy, task="summarization")
    for _ in range(2 * SEEN_MAX):
        backlog.took(place(yard, "c", lane="batch"), 1, chat, option)
    for _ in range(SEEN_MAX):
        backlog.took(place(yard, "s", lane="batch"), 2, summary, option)
        backlog.took(place(yard, "c", lane="direct"), 1, chat, option)
    # Two partitions of one lane.
    batch = unread_of(backlog, {partition(yard, n, "batch"): 10 * (n + 1) for n in (0, 1)})
    assert batch.requests == 15
    assert batch.due == pytest.approx(
        demand([(15 * device_s(summary, option), START + 3600)], START)
    )
    direct = unread_of(backlog, {partition(yard, 0, "direct"): 7})
    assert direct.due == pytest.approx(demand([(7 * device_s(chat, option), START + 120)], START))


def test_a_gap_that_an_abort_has_left_does_not_thin_out_what_comes() -> None:
    yard = Yard()
    option = yard.options.by_pool[POOL][0]
    backlog = BacklogEstimate([option], yard.clock)
    backlog.took(place(yard, "c"), 1_000_000, make_profile(yard.policy), option)
    assert unread_of(backlog, {partition(yard): 100}).requests == 100 / OFFSETS_MAX


def test_before_anything_was_seen_what_waits_is_of_some_size() -> None:
    yard = Yard()
    backlog = BacklogEstimate(yard.options.by_pool[POOL], yard.clock)
    unread = unread_of(backlog, {partition(yard): 1000})
    assert unread.requests == 1000
    assert unread.due == demand([(sum(unread.due), START + PRIOR_ROOM_S)], START)
    assert sum(unread.due) > 100 * each_s(yard)
    assert unread_of(backlog, {partition(yard): 0}) == (0, (0.0,) * 9)


def test_what_was_seen_long_ago_is_unknown() -> None:
    yard = Yard()
    backlog = BacklogEstimate(yard.options.by_pool[POOL], yard.clock)
    assert backlog.unread(START) is None
    backlog.looked({})
    assert backlog.unread(START + LAG_AGE_S_MAX) is not None
    assert backlog.unread(START + LAG_AGE_S_MAX + 1) is None


async def test_a_lag_is_unknown_until_the_group_has_shared_out() -> None:
    yard = Yard()
    place(yard, "c")
    log = MemoryLog(yard.cluster, "a")
    transactor = await yard.run(make_worker(yard, ScriptedBackend()), log)
    assert await transactor.lag() is not None
    await log.lose_all()
    assert await transactor.lag() is None
    await yard.cluster.rebalance(GROUP)
    assert await transactor.lag() is None
    await transactor.take_over()
    assert (await transactor.lag() or {})[partition(yard)] == 1

    async def part_of_it() -> dict[Partition, int]:
        return {partition(yard): 1}

    log.lag = part_of_it  # type: ignore[method-assign]
    assert await transactor.lag() is None


class Looking:
    """A router's signal over a cluster, and its look into the lanes."""

    def __init__(self, yard: Yard) -> None:
        self.yard = yard
        self.situation = yard.situation()
        self.log = MemoryLog(yard.cluster, "router")
        self.orphaned = OrphanedLanes(lambda: self.situation, self.log, yard.catalogue, yard.clock)
        self.signal = AutoscalingSignal(
            lambda: self.situation, make_batcher(yard), self.orphaned, yard.clock
        )

    def report(self, **changes: Any) -> None:
        yard = self.yard
        self.situation.view.report(heartbeat(yard.options, POOL, yard.clock.at, **changes))

    async def pool(self) -> dict[str, Any]:
        await self.orphaned.look()
        return self.signal.pools()[POOL]


async def test_a_stopped_pool_with_unread_requests_is_told_to_have_a_worker() -> None:
    yard = Yard(live=[])
    router = Looking(yard)
    assert (router.signal.pools()[POOL])["unread"] is None
    assert (await router.pool())["unread"] == 0
    place(yard, "c1")
    place(yard, "b1", lane="batch", number=3, task="summarization")
    told = await router.pool()
    assert (told["workers"], told["unread"], told["workers_needed"]) == (0, 2, 1)
    summary = make_profile(yard.policy, task="summarization")
    assert told["device_s"]["300"] == pytest.approx(each_s(yard), abs=1e-4)
    batch_s = device_s(summary, yard.options.by_pool[POOL][0])
    assert told["device_s"]["7200"] == pytest.approx(batch_s, abs=1e-4)
    yard.clock.at += 118
    # Nothing is read again, and time goes on.
    assert (await router.pool())["device_s"]["5"] == pytest.approx(each_s(yard), abs=1e-4)
    yard.clock.at += 100_000
    late = await router.pool()
    # Both have expired; somebody has to say so.
    assert late["workers_needed"] == 1
    assert sum(late["device_s"].values()) < 0.1 * (each_s(yard) + batch_s)


async def test_what_was_finished_is_not_waited_for() -> None:
    yard = Yard(live=[])
    router = Looking(yard)
    backend = ScriptedBackend()
    for n in range(6):
        place(yard, f"c{n}")
    worker, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: len(backend.running) == 4, "four run")
    for name in ("c0", "c2"):
        backend.finish(name)
    await step_until(transactor, lambda: len(yard.results()) == 2, "two are answered")
    # The end of the lane stays as it is; that a worker was there is known by its heartbeats.
    assert (await router.pool())["unread"] == 4
    for name in ("c1", "c3", "c4", "c5"):
        await step_until(transactor, lambda name=name: name in backend.running, f"{name} runs")
        backend.finish(name)
    await step_until(transactor, lambda: len(yard.results()) == 6, "all are answered")
    await transactor.stop()
    assert worker.running == 0
    router.report(state="up")
    router.report(state="down")
    assert (await router.pool())["unread"] == 0


async def test_markers_and_aborts_alone_need_no_worker() -> None:
    yard = Yard(live=[])
    lane = partition(yard)
    writer = await MemoryLog(yard.cluster, "router").fence("router")
    await writer.begin()
    await (await writer.send(placed(yard, "c1")))
    await writer.commit()
    done = encode(Progress(1))
    key = progress_key(GROUP, lane.topic, lane.number)
    yard.cluster.publish(Outgoing(yard.catalogue.progress, key, done, partition=lane.number))
    await writer.begin()
    await (await writer.send(placed(yard, "c2")))
    await MemoryLog(yard.cluster, "router").fence("router")
    told = await Looking(yard).pool()
    assert yard.cluster.logs[lane].end == 4
    assert (told["unread"], told["workers_needed"]) == (0, 0)


async def test_what_lies_behind_a_long_abort_is_found() -> None:
    yard = Yard(live=[])
    writer = await MemoryLog(yard.cluster, "router").fence("router")
    await writer.begin()
    sent = [await writer.send(placed(yard, f"a{n}")) for n in range(4 * READ_OFFSETS_MAX)]
    for each in sent:
        await each
    await MemoryLog(yard.cluster, "router").fence("router")
    place(yard, "c1")
    assert (await Looking(yard).pool())["unread"] == 1


async def test_of_a_deep_lane_the_first_are_read_and_the_rest_is_like_them() -> None:
    yard = Yard(live=[])
    for n in range(20 * READ_OFFSETS_MAX):
        place(yard, f"c{n}")
    place(yard, "bad", number=1, extra=(("shunter-profile", b"{"),))
    router = Looking(yard)
    reads = 0
    read = router.log.read

    def counting(*arguments: Any) -> Any:
        nonlocal reads
        reads += 1
        return read(*arguments)

    router.log.read = counting  # type: ignore[method-assign, assignment]
    told = await router.pool()
    assert told["unread"] == 20 * READ_OFFSETS_MAX + 1
    needed_s = 20 * READ_OFFSETS_MAX * each_s(yard)
    assert sum(told["device_s"].values()) == pytest.approx(needed_s, rel=0.01)
    before = reads
    assert await router.pool() == told
    assert reads == before


async def test_a_lane_that_can_not_be_read_is_unknown_and_not_empty() -> None:
    yard = Yard(live=[])
    router = Looking(yard)
    bounds = router.log.bounds

    async def unreachable(_partitions: Any) -> Any:
        raise LogError("no broker")

    router.log.bounds = unreachable  # type: ignore[method-assign, assignment]
    place(yard, "c1")
    assert (await router.pool())["unread"] is None
    router.log.bounds = bounds  # type: ignore[method-assign]
    assert (await router.pool())["unread"] == 1
    router.log.bounds = unreachable  # type: ignore[method-assign, assignment]
    assert (await router.pool())["unread"] == 1


async def test_what_a_worker_tells_takes_the_place_of_what_was_found() -> None:
    yard = Yard(live=[])
    router = Looking(yard)
    for n in range(5):
        place(yard, f"c{n}")
    assert (await router.pool())["unread"] == 5
    # It has just come and doesn't know yet.
    router.report()
    assert (await router.pool())["unread"] == 5
    router.report(unread=3, unread_s=demand([(30.0, START + 4)], START))
    told = await router.pool()
    assert (told["workers"], told["unread"], told["workers_needed"]) == (1, 3, 6)
    router.report(instance="worker-2")
    assert (await router.pool())["unread"] is None
    assert (await router.pool())["workers_needed"] == 6


async def test_a_worker_that_never_tells_outlives_what_was_found() -> None:
    yard = Yard(live=[])
    router = Looking(yard)
    place(yard, "c1")
    await router.pool()
    router.report()
    yard.clock.at += COMING_S_MAX + 1
    told = await router.pool()
    assert (told["unread"], told["workers_needed"]) == (None, 0)
