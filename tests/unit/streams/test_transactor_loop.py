"""The transactor's loop stops, pauses and waits."""

import asyncio
from typing import Any

import pytest
from copy_stage import P0, P1, Copier, assert_once, fill, make_cluster, succeed, take
from memory_log import Crash, CutOffError, MemoryCluster, MemoryLog, ProcessKilledError
from stream_cases import drain, make_transactor, soon

from streams.engine import retries
from streams.engine.log import Log, LogError, Partition
from topics import Progress


@pytest.fixture
def cluster() -> MemoryCluster:
    return make_cluster()


async def test_a_stop_waits_for_the_transaction_and_ends_the_membership(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 4)
    stage = Copier()
    within, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_partition: object) -> None:
        within.set()
        await go_on.wait()

    stage.meanwhile = wait
    transactor = await take(cluster, stage)
    step = asyncio.create_task(transactor.step())
    await soon(within.wait(), "the work")
    stop = asyncio.create_task(transactor.stop())
    for _ in range(50):
        await asyncio.sleep(0)
    assert "a" in cluster.members["copiers"]
    go_on.set()
    await soon(asyncio.gather(step, stop), "the stop")
    assert_once(cluster, names)
    assert cluster.members == {"copiers": {}}
    assert cluster.open_transactions() == []
    fill(cluster, 4, start=4)
    assert await transactor.step() == 0
    assert_once(cluster, names)


async def test_a_stop_during_a_rebalance_does_not_hang(cluster: MemoryCluster) -> None:
    fill(cluster, 2)
    stage = Copier()
    within, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_partition: object) -> None:
        within.set()
        await go_on.wait()

    stage.meanwhile = wait
    transactor = await take(cluster, stage)
    step = asyncio.create_task(transactor.step())
    await soon(within.wait(), "the work")
    # Both want the lock that the step has: the stop first, then the rebalance.
    stop = asyncio.create_task(transactor.stop())
    await asyncio.sleep(0)
    moving = asyncio.create_task(cluster.assign("copiers", {"a": [P0, P1]}))
    await asyncio.sleep(0)
    go_on.set()
    await soon(asyncio.gather(step, stop, moving), "the stop, though a callback was waiting")
    assert not transactor.partitions


async def test_a_partition_that_the_stage_does_not_want_is_paused(cluster: MemoryCluster) -> None:
    names = fill(cluster, 6)
    stage = Copier()
    stage.unwanted = {P1}
    transactor = await take(cluster, stage)
    await drain(transactor)
    assert stage.worked == [(0, 0), (0, 1), (0, 2)]
    stage.unwanted = set()
    await drain(transactor)
    assert_once(cluster, names)


@pytest.mark.parametrize(("wait_s", "expected_s"), [(9.0, 0.1), (0.03, 0.03), (-1.0, 0.0)])
async def test_a_poll_waits_no_longer_than_the_stage_can(
    cluster: MemoryCluster, wait_s: float, expected_s: float
) -> None:
    stage = Copier()
    stage.wait_s = wait_s
    log = MemoryLog(cluster)
    transactor = make_transactor(log, stage, "progress", poll_s_max=0.1, records_max=7)
    await transactor.start()
    await cluster.assign("copiers", {"a": [P0, P1]})
    await transactor.step()
    assert log.last_poll == (expected_s, 7, frozenset())


async def test_a_writer_that_was_cut_off_is_replaced_before_it_goes_on(
    cluster: MemoryCluster,
) -> None:
    """What it committed last has no marker on one partition; its next transaction is aborted."""
    names = fill(cluster, 4, partitions=1)
    cluster.lose_marker = lambda partition: partition == Partition("out", 0)
    transactor = await take(cluster, Copier(), records_max=2)
    await transactor.step()
    cluster.lose_marker = lambda _partition: False
    cluster.restart()
    cluster.crash = Crash("commit")
    with pytest.raises(ProcessKilledError):
        await transactor.step()
    await succeed(cluster)
    assert_once(cluster, names)


async def test_a_writer_that_was_cut_off_goes_on_where_its_last_transaction_is_whole(
    cluster: MemoryCluster,
) -> None:
    """A broker that hands over before it stops loses no marker: nothing is fenced or read back."""
    names = fill(cluster, 4, partitions=1)
    transactor = await take(cluster, Copier(), records_max=2)
    await transactor.step()
    epoch = cluster.epoch("copiers-in-0")
    cluster.restart()
    await drain(transactor)
    assert cluster.epoch("copiers-in-0") == epoch
    assert_once(cluster, names)


async def test_a_writer_that_was_cut_off_is_replaced_though_there_is_nothing_to_do(
    cluster: MemoryCluster,
) -> None:
    names = fill(cluster, 2)
    cluster.lose_marker = lambda partition: partition.topic == "out"
    transactor = await take(cluster, Copier())
    await drain(transactor)
    assert not cluster.records("out")
    cluster.restart()
    await transactor.step()
    assert_once(cluster, names)


@pytest.mark.parametrize("is_committed", [True, False])
async def test_a_transaction_whose_answer_never_comes_is_made_once(
    cluster: MemoryCluster, is_committed: bool
) -> None:
    """A client that waits for ever would keep the lock, and the group its rebalance."""
    names = fill(cluster, 4)
    stage = Copier()
    transactor = await take(cluster, stage)
    await transactor.take_over()
    transactor._transaction_s_max = 0.3
    writer = transactor._writers[P0]
    commit, began = writer.commit, []

    async def hang(*given: Any) -> None:
        began.append(given)
        if is_committed:
            await commit(*given)
        await asyncio.Event().wait()

    writer.commit = hang  # type: ignore[method-assign, assignment]
    await soon(drain(transactor), "the end")
    assert len(began) == 1
    assert transactor._writers[P0] is not writer
    assert_once(cluster, names)
    names += fill(cluster, 4, start=4)
    await drain(transactor)
    assert_once(cluster, names)
    assert stage.worked == sorted(set(stage.worked), key=stage.worked.index)


async def test_transactions_of_which_none_ends_end_the_process(cluster: MemoryCluster) -> None:
    names = fill(cluster, 2)
    transactor = await take(cluster, Copier())
    await transactor.take_over()
    transactor._commit = cut_off  # type: ignore[method-assign,assignment]
    with pytest.raises(LogError, match=r"5 transactions on in\[\d\] did not end"):
        await soon(drain(transactor), "the end")
    with pytest.raises(LogError):
        await transactor.step()
    await soon(transactor.stop(), "the stop")
    cluster.members.clear()
    await drain(await take(cluster, Copier()))
    assert_once(cluster, names)


async def cut_off(*_: object) -> None:
    raise CutOffError("gone")


async def test_who_has_lost_its_partitions_meanwhile_does_not_make_it_again(
    cluster: MemoryCluster, caplog: pytest.LogCaptureFixture
) -> None:
    names = fill(cluster, 2)
    stage = SlowToRestore()
    stage.go_on.set()
    transactor = await take(cluster, stage)
    await transactor.take_over()
    was = dict(cluster.members["copiers"])

    def leave() -> None:
        cluster.members["copiers"].clear()
        raise CutOffError("gone")

    cluster.answer = leave
    assert await soon(transactor.step(), "the step") == 0
    cluster.answer = lambda: None
    assert "the group gives in[" in caplog.text
    assert not transactor.partitions
    assert set(stage.forgotten) == {P0, P1}
    # Until the group counts it again it takes nothing.
    assert await soon(transactor.step(), "a step in between") == 0
    assert not transactor.partitions
    cluster.members["copiers"] |= was
    await drain(transactor)
    assert set(transactor.partitions) == {P0, P1}
    assert_once(cluster, names)


async def test_who_is_given_its_partitions_anew_takes_those(cluster: MemoryCluster) -> None:
    fill(cluster, 2)
    transactor = await take(cluster, Copier())
    await transactor.take_over()
    was = dict(cluster.members["copiers"])

    def leave() -> None:
        cluster.members["copiers"].clear()
        raise CutOffError("gone")

    cluster.answer = leave
    assert await soon(transactor.step(), "the step") == 0
    cluster.answer = lambda: None
    cluster.members["copiers"] |= was
    await transactor.revoked([P0, P1])
    await transactor.assigned([P1])
    await soon(transactor.step(), "the step after")
    assert set(transactor.partitions) == {P1}


async def test_a_takeover_that_is_cut_off_begins_again(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "RETRY_S", 0.0)
    names = fill(cluster, 4)
    stage = Copier()
    transactor = await take(cluster, stage)
    restore, calls = stage.restore, []

    async def fail_once(partition: Partition, progress: Progress | None, log: Log) -> None:
        calls.append(partition)
        if len(calls) == 1:
            raise CutOffError("gone")
        await restore(partition, progress, log)

    stage.restore = fail_once  # type: ignore[method-assign]
    await soon(drain(transactor), "the takeover")
    assert calls.count(P0) + calls.count(P1) >= 3
    assert_once(cluster, names)


class SlowToRestore(Copier):
    """Restores each partition for as long as it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.within, self.go_on = asyncio.Event(), asyncio.Event()
        self.forgotten: list[Partition] = []

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        self.within.set()
        await self.go_on.wait()
        await super().restore(partition, progress, log)

    def forget(self, partition: Partition) -> None:
        self.forgotten.append(partition)


class LongRestore(Copier):
    """Has much to read back; the broker is gone at the end of the first tries."""

    def __init__(self, fails: int = 0) -> None:
        super().__init__()
        self.tries_left = fails

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        await asyncio.sleep(0.3)
        self.tries_left -= 1
        if self.tries_left >= 0:
            raise CutOffError("the broker is gone")


@pytest.mark.parametrize("fails", [0, 1])
async def test_a_restore_may_take_longer_than_tries_that_fail(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    """Else whoever has much to read back is ended for it, and so is each successor."""
    monkeypatch.setattr(retries, "PASSES_S_MAX", 0.2)
    monkeypatch.setattr(retries, "RETRY_S", 0.0)
    names = fill(cluster, 4)
    await drain(await take(cluster, LongRestore(fails)))
    assert_once(cluster, names)


async def test_restores_of_which_each_fails_end_the_process(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "PASSES_S_MAX", 0.2)
    monkeypatch.setattr(retries, "RETRY_S", 0.1)
    with pytest.raises(LogError, match="taking over 2 partitions: not in"):
        await soon(drain(await take(cluster, LongRestore(1000))), "the end")


async def test_no_restore_keeps_the_client_from_its_heartbeats(cluster: MemoryCluster) -> None:
    """The client sends none while it calls us back: what takes long is left to the next step."""
    names = fill(cluster, 4)
    stage = SlowToRestore()
    transactor = await soon(take(cluster, stage), "the rebalance")
    step = asyncio.create_task(transactor.step())
    await soon(stage.within.wait(), "the restore")
    assert not cluster.records("out")
    stage.go_on.set()
    assert await soon(step, "the step") == 4
    assert_once(cluster, names)


async def test_a_rebalance_waits_for_no_restore(cluster: MemoryCluster) -> None:
    """It is given up, and begun again by whoever gets the partition."""
    names = fill(cluster, 4)
    stage = SlowToRestore()
    transactor = await take(cluster, stage)
    step = asyncio.create_task(transactor.step())
    await soon(stage.within.wait(), "the restore")
    await soon(cluster.assign("copiers", {"a": [P1]}), "the rebalance")
    assert await soon(step, "the step") == 0
    assert set(stage.forgotten) == {P0, P1}
    assert not stage.restored
    stage.go_on.set()
    await drain(transactor)
    assert set(stage.restored) == {P1}
    cluster.members.clear()
    await drain(await take(cluster, Copier()))
    assert_once(cluster, names)


async def test_a_stop_waits_for_no_restore(cluster: MemoryCluster) -> None:
    fill(cluster, 4)
    stage = SlowToRestore()
    transactor = await take(cluster, stage)
    step = asyncio.create_task(transactor.step())
    await soon(stage.within.wait(), "the restore")
    await soon(transactor.stop(), "the stop")
    assert await soon(step, "the step") == 0
    assert cluster.members == {"copiers": {}}


async def test_a_step_that_is_cancelled_while_it_restores_ends_as_one(
    cluster: MemoryCluster,
) -> None:
    fill(cluster, 4)
    stage = SlowToRestore()
    transactor = await take(cluster, stage)
    step = asyncio.create_task(transactor.step())
    await soon(stage.within.wait(), "the restore")
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(step, "the step")
    with pytest.raises(LogError):
        await transactor.step()


async def test_partitions_are_let_go_side_by_side(cluster: MemoryCluster) -> None:
    """A rebalance waits for it, and each connection that hangs takes its whole time."""
    fill(cluster, 2)
    stage = SlowToRestore()
    stage.go_on.set()
    transactor = await take(cluster, stage)
    await transactor.step()
    closing = asyncio.Barrier(2)
    for writer in transactor._writers.values():
        writer.close = closing.wait  # type: ignore[method-assign,assignment]
    await soon(transactor.revoked([P1, P0]), "closing two writers of which each awaits the other")
    assert stage.forgotten == [P1, P0]
    assert not transactor.partitions
