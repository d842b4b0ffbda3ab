"""Exactly once: each rule of the transactor, and what happens where it would be broken."""

import asyncio
from collections.abc import Sequence

import pytest
from copy_stage import P0, P1, Copier, assert_once, fill, make_cluster, succeed, take, values
from memory_log import Crash, CrashPoint, MemoryCluster, MemoryLog, MemoryWriter, ProcessKilledError
from stream_cases import drain, make_transactor, soon

from streams.engine.log import LogError, Outgoing, Partition
from streams.engine.stage import Effect
from topics import Progress, encode, progress_key


@pytest.fixture
def cluster() -> MemoryCluster:
    return make_cluster()


async def test_each_record_has_its_effect_once_and_progress_moves_with_it(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 10)
    stage = Copier()
    stage.cluster = cluster
    transactor = await take(cluster, stage)
    await drain(transactor)
    assert_once(cluster, names)
    assert stage.seen_when_done[0] >= 5
    await transactor.stop()
    assert cluster.offsets == {("copiers", P0): 5, ("copiers", P1): 5}
    for number in (0, 1):
        (record,) = cluster.records("progress", number)
        assert record.key == progress_key("copiers", "in", number)
        assert record.value == encode(Progress(5, topic_id="in", leader_epoch=0))
    await transactor.stop()


async def test_observers_see_what_became_visible_and_nothing_else(cluster: MemoryCluster) -> None:
    names = fill(cluster, 6)
    seen: list[str] = []

    def observe(partition: Partition, effects: Sequence[Effect]) -> None:
        seen.extend((effect.records[0].value or b"").decode() for effect in effects)
        assert set(seen) <= {*values(cluster, "out"), *values(cluster, "dead")}
        assert all(
            effect.source is None or effect.source.partition == partition for effect in effects
        )

    cluster.refuse = lambda record: record.topic == "out" and record.value == b"r2"
    cluster.crash = Crash("commit", 2)
    with pytest.raises(ProcessKilledError):
        await drain(await take(cluster, Copier(), observers=[observe]))
    died_with = sorted(seen)
    assert len(died_with) == 3
    cluster.members.clear()
    await drain(await take(cluster, Copier(), "successor", observers=[observe]))
    # The one refused is seen as the dead letter that it became.
    assert sorted(seen) == names


# Rule 1: the predecessor is fenced, what it left open is aborted.


async def test_what_a_dead_process_left_open_is_aborted_by_its_successor(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 6)
    cluster.crash = Crash("commit", 2)
    with pytest.raises(ProcessKilledError):
        await drain(await take(cluster, Copier()))
    assert cluster.open_transactions() == ["copiers-in-1"]
    await succeed(cluster)
    assert cluster.open_transactions() == []
    assert_once(cluster, names)


async def test_a_process_that_lost_its_partitions_without_a_word_can_write_no_more(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 4)
    zombie_stage = Copier()
    zombie = await take(cluster, zombie_stage, "zombie")
    await drain(zombie)
    names += fill(cluster, 4, start=4)
    await succeed(cluster)
    with pytest.raises(LogError, match="fenced"):
        await zombie.step()
    assert len(zombie_stage.worked) == 8, "the zombie did work on what was not its own any more"
    assert_once(cluster, names)


async def test_a_process_that_is_fenced_within_a_transaction_leaves_nothing_of_it(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 4)
    stage = Copier()

    async def lose_all(_partition: object) -> None:
        stage.meanwhile = None
        await succeed(cluster)

    stage.meanwhile = lose_all
    zombie = await take(cluster, stage, "zombie")
    with pytest.raises(LogError, match="fenced"):
        await zombie.step()
    assert_once(cluster, names)


# Rule 2: where to go on is asked after the fencing, and progress is data.


async def test_what_a_predecessor_commits_until_it_is_fenced_is_not_repeated(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 8)
    old = await take(cluster, Copier(), "old", records_max=2)
    await old.step()

    class LateLog(MemoryLog):
        async def fence(self, transactional_id: str) -> MemoryWriter:
            if not late_steps:
                late_steps.append(0)
                late_steps[0] = await old.step()
            return await super().fence(transactional_id)

    late_steps: list[int] = []
    cluster.members.clear()
    transactor = make_transactor(LateLog(cluster, "new"), Copier(), "progress")
    await transactor.start()
    await cluster.assign("copiers", {"new": [P0, P1]})
    await drain(transactor)
    assert late_steps == [2]
    assert_once(cluster, names)


async def test_a_lost_group_offset_doubles_nothing(cluster: MemoryCluster) -> None:
    names = fill(cluster, 8)
    cluster.lose_offset = lambda _partition, _offset: True
    transactor = await take(cluster, Copier(), records_max=2)
    await drain(transactor)
    await transactor.stop()
    assert not cluster.offsets
    successor = await succeed(cluster)
    assert successor.worked == []
    assert_once(cluster, names)


async def test_a_group_offset_further_than_the_progress_known_is_believed(
    cluster: MemoryCluster,
) -> None:
    fill(cluster, 8, partitions=1)
    key = progress_key("copiers", "in", 0)
    cluster.publish(Outgoing("progress", key, encode(Progress(3)), partition=0))
    cluster.offsets["copiers", P0] = 6
    stage = await succeed(cluster)
    assert stage.worked == [(0, 6), (0, 7)]


async def test_what_is_finished_above_the_offset_is_told_to_the_stage(
    cluster: MemoryCluster,
) -> None:
    fill(cluster, 8, partitions=1)
    key = progress_key("copiers", "in", 0)
    progress = Progress(3, (5, 6))
    cluster.publish(Outgoing("progress", key, encode(progress), partition=0))
    cluster.offsets["copiers", P0] = 3
    stage = await succeed(cluster)
    assert stage.restored == {P0: progress, P1: None}


async def test_what_retention_has_deleted_is_not_waited_for(cluster: MemoryCluster) -> None:
    fill(cluster, 8, partitions=1)
    cluster.offsets["copiers", P0] = 1
    cluster.trim(P0, 5)
    stage = await succeed(cluster)
    assert stage.worked == [(0, 5), (0, 6), (0, 7)]


# Rule 3: poll, work and commit are one critical section with the rebalances.


async def test_a_revocation_waits_for_the_transaction_and_nothing_follows_it(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 4)
    stage, other = Copier(), Copier()
    within, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_partition: object) -> None:
        within.set()
        await go_on.wait()

    stage.meanwhile = wait
    log = MemoryLog(cluster)
    transactor = await take(cluster, stage, log=log)
    successor = make_transactor(MemoryLog(cluster, "b"), other, "progress")
    await successor.start()
    step = asyncio.create_task(transactor.step())
    await soon(within.wait(), "the work")
    moving = asyncio.create_task(cluster.assign("copiers", {"b": [P0, P1]}))
    for _ in range(50):
        await asyncio.sleep(0)
    assert not moving.done()
    assert not cluster.records("out")

    go_on.set()
    await soon(asyncio.gather(step, moving), "the rebalance")
    assert_once(cluster, names)
    names += fill(cluster, 4, start=4)
    assert await transactor.step() == 0
    await drain(successor)
    assert not transactor.partitions
    assert not log.writers
    assert (stage.worked, other.worked) == (
        [(0, 0), (0, 1), (1, 0), (1, 1)],
        [(0, 2), (0, 3), (1, 2), (1, 3)],
    )
    assert_once(cluster, names)


async def test_records_polled_before_the_takeover_is_complete_wait_for_it(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 6)
    # Where the client would go on is stale: the last of each partition was done before.
    for partition in (P0, P1):
        key = progress_key("copiers", "in", partition.number)
        record = Outgoing("progress", key, encode(Progress(1)), partition=partition.number)
        cluster.publish(record)
    stage = Copier()
    log = MemoryLog(cluster)
    transactor = make_transactor(log, stage, "progress")
    await transactor.start()
    moving: list[asyncio.Task[None]] = []

    async def assign_meanwhile(_seconds: float) -> None:
        if not moving:
            moving.append(asyncio.create_task(log.gain([P0, P1])))
            for _ in range(10):
                await asyncio.sleep(0)

    cluster.sleep = assign_meanwhile
    assert await transactor.step() == 6, "the poll under way saw the new partitions"
    assert stage.worked == []
    await soon(moving[0], "the takeover")
    await drain(transactor)
    assert_once(cluster, names[2:])


async def test_partitions_are_worked_on_side_by_side(cluster: MemoryCluster) -> None:
    names = fill(cluster, 4)
    stage = Copier()
    both = asyncio.Barrier(2)

    async def meet(_partition: object) -> None:
        await both.wait()

    stage.meanwhile = meet
    await soon((await take(cluster, stage)).step(), "two partitions at once")
    assert_once(cluster, names)


async def test_a_failure_on_one_partition_lets_the_transaction_of_another_end(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 4)
    stage = Copier()

    async def fail_first(partition: object) -> None:
        if partition == P0:
            raise RuntimeError("no memory")
        await asyncio.sleep(0)

    stage.meanwhile = fail_first
    transactor = await take(cluster, stage)
    with pytest.raises(RuntimeError):
        await transactor.step()
    assert values(cluster, "out") == ["r1", "r3"]
    await succeed(cluster)
    assert_once(cluster, names)


# Rule 5: whatever else goes wrong ends the process.


@pytest.mark.parametrize("call", ["restore", "forget"])
async def test_an_error_in_a_rebalance_surfaces_in_the_loop(
    cluster: MemoryCluster, call: str
) -> None:
    names = fill(cluster, 4)
    stage = Copier()

    def fail(now: str) -> None:
        if now == call:
            raise OSError("the disk is full")

    stage.fails = fail
    transactor = await take(cluster, stage)
    if call == "forget":
        await transactor.take_over()
        await cluster.assign("copiers", {"a": [P0, P1]})
    with pytest.raises((LogError, OSError)) as caught:
        await transactor.step()
    assert isinstance(caught.value.__cause__ or caught.value, OSError)
    assert not cluster.records("out")
    with pytest.raises(LogError):
        await transactor.step()
    await succeed(cluster)
    assert_once(cluster, names)


async def test_after_a_failed_step_there_is_no_other(cluster: MemoryCluster) -> None:
    names = fill(cluster, 4)
    stage = Copier()

    def fail_once(call: str) -> None:
        if call == "work":
            stage.fails = lambda _call: None
            raise OSError("the disk is full")

    stage.fails = fail_once
    transactor = await take(cluster, stage, records_max=1)
    with pytest.raises(OSError, match="disk"):
        await transactor.step()
    # What was polled is lost to this process: going on would commit an offset beyond it.
    with pytest.raises(LogError):
        await transactor.step()
    await succeed(cluster)
    assert_once(cluster, names)


@pytest.mark.parametrize("point", ["begin", "send", "append", "commit", "committed"])
async def test_twenty_records_are_done_once_wherever_the_process_dies(point: CrashPoint) -> None:
    nth = 0
    while True:
        nth += 1
        cluster = make_cluster()
        names = fill(cluster, 20)
        crash = cluster.crash = Crash(point, nth)
        try:
            await drain(await take(cluster, Copier(), records_max=4))
        except Exception:  # noqa: BLE001 - whichever way it dies
            assert crash.has_struck
        await succeed(cluster)
        assert_once(cluster, names)
        if not crash.has_struck:
            break
    # Five transactions at least: every one of them was hit.
    assert nth > 5
