"""A router reads the hold while it waits for its share, and goes on from there when it has it."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest
from cancellation_cases import assert_cancelled_once, cancel
from hold_cases import Noting, hold, look, make_batcher, run
from memory_log import MemoryLog
from stream_cases import POLICY, Yard, drain, make_policy

from streams.batcher.prefetch import AHEAD_S_MAX, PrefetchService
from streams.batcher.stage import Batcher
from streams.config.active_policy import DecisionContext
from streams.config.token_counting import TokenCounter
from streams.engine.log import Log, LogError, Partition, Record


class Unreadable(MemoryLog):
    """A log of which no broker gives anything."""

    async def read(
        self, starts: Mapping[Partition, int], ends: Mapping[Partition, int] | None = None
    ) -> AsyncIterator[Sequence[Record]]:
        raise LogError("no broker answers")
        yield []  # type: ignore[unreachable]


@asynccontextmanager
async def reading(
    batcher: Batcher, log: MemoryLog, count: int = 0
) -> AsyncIterator[asyncio.Task[None]]:
    """Read ahead, until so many requests are found and on."""
    task = asyncio.ensure_future(batcher.read_ahead(log))
    async with asyncio.timeout(90):
        while sum(len(held.windows) for held in batcher._ahead) < count:  # noqa: ASYNC110
            await asyncio.sleep(0)
    yield task
    task.cancel()


async def test_who_waited_goes_on_where_it_had_read_to() -> None:
    yard = Yard()
    last = [hold(yard, f"s{n}", partition=n % 2) for n in range(6)][-2:]
    batcher, log = make_batcher(yard), Noting(yard)
    async with reading(batcher, log, 6) as task:
        # What its predecessor did meanwhile stands further on: one went, and one came.
        hold(yard, "s6", partition=1)
        yard.cluster.publish(batcher._tombstone(last[0]))
        await run(yard, batcher, log)
        # All that was read ahead has been claimed.
        await asyncio.wait_for(task, 60)
    assert [log.starts[n] for n in (0, 1)] == [record.offset + 1 for record in last]
    fresh = make_batcher(yard)
    await run(yard, fresh)
    assert batcher.sizes() == fresh.sizes()
    assert sum(batcher.sizes().values()) == 6


async def test_where_all_that_was_read_ahead_has_ended_none_of_it_is_held() -> None:
    yard = Yard()
    predecessor = make_batcher(yard)
    transactor = await run(yard, predecessor)
    for n in range(3):
        hold(yard, f"s{n}")
    batcher, log = make_batcher(yard), Noting(yard)
    async with reading(batcher, log, 3):
        last = hold(yard, "s3")
        await drain(transactor)
        assert len(yard.lane("boards-us", "batch")) == 4
        hold(yard, "s4")
        yard.clock.at += 11
        await drain(transactor)
        await run(yard, batcher, log)
    # What was read ahead was three, which had ended further on than where it is read from.
    assert log.starts[last.partition.number] > last.offset
    fresh = make_batcher(yard)
    await run(yard, fresh)
    assert batcher.sizes() == fresh.sizes()
    assert batcher.room.bytes_used == fresh.room.bytes_used > 0


async def test_what_nobody_gave_it_is_forgotten() -> None:
    yard = Yard()
    hold(yard, "mine", partition=0)
    hold(yard, "another's", partition=1)
    batcher, log = make_batcher(yard), MemoryLog(yard.cluster)
    partition = Partition(yard.catalogue.held, 0)
    async with reading(batcher, log, 2):
        await batcher.restore(partition, None, log)
        await batcher.work(partition, ())
    assert list(batcher._ahead) == []
    assert sum(batcher.sizes().values()) == 1
    mine = batcher._partitions[partition].payloads.record("mine")
    assert batcher.room.bytes_used == mine.size_bytes


async def test_a_cancellation_that_comes_meanwhile_counts() -> None:
    yard = Yard()
    hold(yard, "s0")
    batcher, log = make_batcher(yard), MemoryLog(yard.cluster)
    async with reading(batcher, log, 1):
        cancel(yard, "s0")
        transactor = await run(yard, batcher, log)
        await transactor.step()
    assert_cancelled_once(yard, "s0")


async def test_a_policy_that_comes_meanwhile_counts() -> None:
    yard = Yard()
    hold(yard, "s0")
    batcher, log = make_batcher(yard), MemoryLog(yard.cluster)
    async with reading(batcher, log, 1):
        (before,) = [member.group for held in batcher._ahead for member in held.windows.members()]
        yard.policy = make_policy(POLICY.replace("[512, 2048]", "[4, 64, 512]"))
        batcher.take_context(
            DecisionContext(yard.situation(), yard.evidence_writer(), TokenCounter({}))
        )
        await run(yard, batcher, log)
    fresh = make_batcher(yard)
    await run(yard, fresh)
    assert batcher.sizes() == fresh.sizes() != {before: 1}


async def test_what_was_read_too_long_ago_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compaction drops a tombstone some day, and what it ended would be held again."""
    assert AHEAD_S_MAX < 24 * 3600
    monkeypatch.setattr("streams.batcher.prefetch.AHEAD_S_MAX", 0.5)
    yard = Yard()
    record = hold(yard, "s0")
    batcher, log = make_batcher(yard), Noting(yard)
    async with reading(batcher, log, 1) as task:
        await asyncio.wait_for(task, 60)
        assert batcher.room.bytes_used == 0
        await run(yard, batcher, log)
    assert log.starts[record.partition.number] == 0
    assert sum(batcher.sizes().values()) == 1


async def test_no_more_is_read_than_may_be_held() -> None:
    yard = Yard()
    for n in range(6):
        hold(yard, f"s{n}", partition=n % 2)
    batcher = make_batcher(yard, held_records_max=2)
    async with reading(batcher, MemoryLog(yard.cluster), 2):
        for _ in range(20):
            await asyncio.sleep(0)
        assert sum(len(held.windows) for held in batcher._ahead) == 3


async def test_where_it_cannot_be_read_the_takeover_reads_it() -> None:
    yard = Yard()
    hold(yard, "s0")
    batcher = make_batcher(yard)
    async with reading(batcher, Unreadable(yard.cluster, "unreadable")) as task:
        await asyncio.wait_for(task, 60)
    await run(yard, batcher)
    assert sum(batcher.sizes().values()) == 1


async def test_after_the_first_takeover_nothing_is_read_ahead() -> None:
    yard = Yard()
    hold(yard, "s0")
    batcher = await look(yard)
    await asyncio.wait_for(batcher.read_ahead(MemoryLog(yard.cluster)), 60)
    assert list(batcher._ahead) == []


async def test_who_is_stopped_before_it_reads_does_not_begin_to() -> None:
    read: list[Log] = []

    async def read_ahead(log: Log) -> None:
        read.append(log)

    service = PrefetchService(read_ahead, MemoryLog(Yard().cluster))
    await service.start()
    await asyncio.sleep(0)
    await asyncio.wait_for(service.stop(), 60)
    assert not read
