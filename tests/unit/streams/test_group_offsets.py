"""A group's offsets follow the progress: soon, seldom, and in nobody's way."""

import asyncio
from collections.abc import Mapping

from memory_cluster import MemoryCluster
from memory_log import MemoryLog

from streams.engine.group_offsets import EVERY_S, GroupOffsets
from streams.engine.log import LogError, Partition

P0, P1 = Partition("t", 0), Partition("t", 1)


class Told(MemoryLog):
    """Notes what it is told; refuses, or never answers, if it is asked to."""

    def __init__(self) -> None:
        super().__init__(MemoryCluster({"t": 2}))
        self.told: list[dict[Partition, int]] = []
        self.is_refusing = False
        self.is_silent = False
        self.answers = asyncio.Event()
        self.answers.set()

    async def commit_offsets(self, offsets: Mapping[Partition, int]) -> None:
        self.told.append(dict(offsets))
        if self.is_silent:
            await asyncio.Event().wait()
        await self.answers.wait()
        if self.is_refusing:
            raise LogError("rebalancing")


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_the_first_is_told_at_once_and_the_newest_of_the_others_after_a_while() -> None:
    log = Told()
    offsets = GroupOffsets(log)
    for offset in range(1, 5):
        offsets.moved(P0, offset)
        await settle()
    offsets.moved(P1, 7)
    await settle()
    assert log.told == [{P0: 1}]
    await asyncio.sleep(EVERY_S)
    offsets.tell_if_due()
    await settle()
    assert log.told == [{P0: 1}, {P0: 4, P1: 7}]
    await asyncio.sleep(EVERY_S)
    offsets.tell_if_due()
    await settle()
    assert len(log.told) == 2, "nothing has moved"


async def test_what_was_refused_is_told_again_unless_a_newer_offset_has_come() -> None:
    log = Told()
    log.is_refusing = True
    offsets = GroupOffsets(log)
    offsets.moved(P0, 1)
    offsets.moved(P1, 1)
    await settle()
    offsets.moved(P1, 2)
    log.is_refusing = False
    await offsets.tell_last()
    assert log.told == [{P0: 1, P1: 1}, {P0: 1, P1: 2}]


async def test_what_was_refused_is_not_told_again_once_the_partition_is_lost() -> None:
    log = Told()
    log.is_refusing = True
    offsets = GroupOffsets(log)
    offsets.moved(P0, 1)
    offsets.moved(P1, 1)
    # The partition goes while the broker has not answered.
    log.answers.clear()
    await settle()
    offsets.forget([P0])
    log.answers.set()
    await settle()
    await offsets.tell_last()
    assert log.told == [{P0: 1, P1: 1}, {P1: 1}]


async def test_a_lost_partition_is_left_to_its_next_owner() -> None:
    log = Told()
    offsets = GroupOffsets(log)
    offsets.moved(P0, 1)
    await settle()
    offsets.moved(P0, 2)
    offsets.moved(P1, 2)
    offsets.forget([P0])
    await offsets.tell_last()
    assert log.told[1:] == [{P1: 2}]


async def test_a_silent_broker_delays_the_end_of_a_process_for_a_second_only() -> None:
    log = Told()
    log.is_silent = True
    offsets = GroupOffsets(log)
    offsets.moved(P0, 1)
    await settle()
    async with asyncio.timeout(90):
        await offsets.tell_last()
    assert log.told == [{P0: 1}]
