"""A commit that comes late holds up its own partition, and nobody else's."""

import asyncio
from collections.abc import Callable

import pytest
from copy_stage import P0, P1, Copier, assert_once, fill, make_cluster, values
from memory_log import MemoryLog
from running_system import eventually
from stream_cases import drain, make_transactor, soon

from streams.engine import transactor as engine
from streams.engine.log import LogError, TakenOverError
from streams.engine.partition_runs import PartitionRuns
from streams.engine.transactor import Transactor


class Yard:
    """A transactor of two partitions, the first of which commits when it is told to."""

    def __init__(self) -> None:
        self.cluster = make_cluster()
        self.stage = Copier()
        self.go_on = asyncio.Event()
        self.changes = 0
        self.log = MemoryLog(self.cluster)

    async def transactor(self) -> Transactor:
        transactor = make_transactor(
            self.log, self.stage, "progress", before_step=self._change, together_s=0.01
        )
        await transactor.start()
        await self.cluster.assign(self.stage.group, {"a": [P0, P1]})
        await transactor.take_over()
        writer = transactor._writers[P0]
        commit = writer.commit

        async def wait() -> None:
            await self.go_on.wait()
            await commit()

        writer.commit = wait  # type: ignore[method-assign, assignment]
        return transactor

    def _change(self) -> None:
        self.changes += 1

    def fill(self, start: int = 0) -> list[str]:
        return fill(self.cluster, 4, start=start)


async def late(yard: Yard) -> tuple[Transactor, list[str]]:
    """Return a transactor one of whose commits is late, and what it has read."""
    transactor = await yard.transactor()
    names = yard.fill()
    assert await soon(transactor.step(), "a step that waits for nobody") == 4

    async def is_alone() -> bool:
        return [p for p, run in transactor._runs._runs.items() if not run.done()] == [P0]

    # On a busy machine the other commit is late at first, too: the next step finds that it is done.
    await eventually(is_alone, "one commit is late")
    return transactor, names


async def steps_until(transactor: Transactor, is_so: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not is_so():
            await transactor.step()


async def test_another_partition_goes_on_and_the_late_one_after_its_commit() -> None:
    yard = Yard()
    transactor, names = await late(yard)
    names += yard.fill(start=4)
    await steps_until(transactor, lambda: len(values(yard.cluster, "out")) == 4)
    assert values(yard.cluster, "out") == ["r1", "r3", "r5", "r7"]
    assert (0, 2) not in yard.stage.worked, "work on a partition before its commit has ended"
    yard.go_on.set()
    await drain(transactor)
    assert_once(yard.cluster, names)
    await transactor.stop()


async def test_a_rebalance_waits_for_it() -> None:
    yard = Yard()
    transactor, names = await late(yard)
    successor = make_transactor(MemoryLog(yard.cluster, "b"), Copier(), "progress")
    await successor.start()
    moving = asyncio.create_task(yard.cluster.assign("copiers", {"b": [P0, P1]}))
    await asyncio.sleep(0.05)
    assert not moving.done()
    yard.go_on.set()
    await soon(moving, "the rebalance")
    assert not transactor.partitions
    assert_once(yard.cluster, names)
    names += yard.fill(start=4)
    await drain(successor)
    assert_once(yard.cluster, names)


async def test_a_stop_waits_for_it() -> None:
    yard = Yard()
    transactor, names = await late(yard)
    stopping = asyncio.create_task(transactor.stop())
    await asyncio.sleep(0.05)
    assert not stopping.done()
    yard.go_on.set()
    await soon(stopping, "the stop")
    assert_once(yard.cluster, names)
    assert yard.cluster.open_transactions() == []


async def test_a_takeover_waits_for_it() -> None:
    yard = Yard()
    transactor, names = await late(yard)
    await transactor.assigned([P0, P1])
    taking = asyncio.create_task(transactor.step())
    await asyncio.sleep(0.05)
    assert not taking.done()
    yard.go_on.set()
    await soon(taking, "the takeover")
    await drain(transactor)
    assert_once(yard.cluster, names)


async def test_policies_change_without_any_and_do_not_wait_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = Yard()
    transactor, names = await late(yard)
    changes = yard.changes
    await transactor.step()
    await transactor.step()
    assert yard.changes == changes
    monkeypatch.setattr(engine, "LATE_S_MAX", 0.0)
    waiting = asyncio.create_task(transactor.step())
    await asyncio.sleep(0.05)
    assert not waiting.done()
    yard.go_on.set()
    await soon(waiting, "a moment without any")
    assert yard.changes == changes + 1
    assert_once(yard.cluster, names)


async def test_its_failure_ends_the_process_after_the_others_have_ended() -> None:
    yard = Yard()
    transactor, _ = await late(yard)
    yard.cluster.fence("copiers-in-0")
    yard.go_on.set()
    with pytest.raises(LogError):
        await drain(transactor)
    assert values(yard.cluster, "out") == ["r1", "r3"]
    with pytest.raises(LogError, match="an earlier step failed"):
        await transactor.step()


async def test_a_step_that_is_cancelled_leaves_nothing_running() -> None:
    yard = Yard()
    transactor, _ = await late(yard)
    step = asyncio.create_task(transactor.step())
    await asyncio.sleep(0)
    step.cancel()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert not transactor._runs


async def test_what_ends_the_process_comes_before_what_is_taken_over_anew() -> None:
    runs = PartitionRuns()

    async def fail(partition: object) -> None:
        raise TakenOverError("another") if partition == P0 else LogError("no right")

    with pytest.raises(LogError, match="no right"):
        await runs.begin([P0, P1], fail, None)
    assert not runs
    assert runs.late_s == 0.0
