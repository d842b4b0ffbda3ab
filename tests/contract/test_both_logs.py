"""Promises of a log, on the log in memory and on a real Kafka from one definition."""

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping

import pytest
from two_logs import SMALL_BYTES, KafkaGround, MemoryGround, kept, make_ground, until, values

from streams.engine import continuity
from streams.engine.continuity import BrokenLogError
from streams.engine.log import GroupOffset, Log, LogError, Outgoing, Partition, Record, Writer

BOTH = ["memory", pytest.param("kafka", marks=pytest.mark.kafka)]
GROUP = "readers"


class Member:
    """Does nothing with what it is given."""

    def __init__(self) -> None:
        self.partitions: set[Partition] = set()

    async def assigned(self, partitions: Collection[Partition]) -> None:
        self.partitions |= set(partitions)

    async def revoked(self, partitions: Collection[Partition]) -> None:
        self.partitions -= set(partitions)


class Logs:
    """One topic of two partitions, one that takes small records only, and who reads and writes."""

    def __init__(self, ground: MemoryGround | KafkaGround) -> None:
        self.ground = ground
        self.topic, self.small = f"{ground.prefix}.t", f"{ground.prefix}.small"
        self.p0, self.p1 = Partition(self.topic, 0), Partition(self.topic, 1)
        self.group = f"{ground.prefix}.{GROUP}"

    async def join(self) -> Log:
        """Return a log that has both partitions of the topic."""
        log, member = self.ground.log(), Member()
        await log.join(self.group, [self.topic], member)
        if isinstance(self.ground, MemoryGround):
            await self.ground.cluster.rebalance(self.group)
        await until(lambda: len(member.partitions) == 2)
        # As the transactor does: nobody is put anywhere who has not said where.
        for partition in member.partitions:
            log.seek(partition, await log.committed(partition) or 0)
        return log

    async def fence(self, log: Log, name: str = "w") -> Writer:
        return await log.fence(f"{self.ground.prefix}-{name}")

    def out(self, value: str, number: int = 0, key: str | None = None) -> Outgoing:
        # On a slow machine Kafka compacts in the middle of a test.
        return Outgoing(self.topic, (key or value).encode(), value.encode(), [], number)

    async def write(self, writer: Writer, *records: Outgoing) -> None:
        """Write records in a transaction that stays open."""
        await writer.begin()
        for future in [await writer.send(record) for record in records]:
            await future

    async def poll(self, log: Log, count: int) -> dict[Partition, list[str]]:
        """Poll until so many records are there, each partition's in order."""
        found: dict[Partition, list[str]] = {}
        async with asyncio.timeout(60):
            while sum(map(len, found.values())) < count:
                for partition, records in (await log.poll(0.2, 10, [])).items():
                    found.setdefault(partition, []).extend(values(records))
        return found


@pytest.fixture(params=BOTH)
async def logs(request: pytest.FixtureRequest, prefix: str) -> AsyncIterator[Logs]:
    kafka = request.getfixturevalue("kafka") if request.param == "kafka" else None
    ground = make_ground(request.param, kafka, prefix)
    found = Logs(ground)
    topics = {found.topic: 2, found.small: 1}
    await ground.create(topics, small=[found.small], compacted=[found.topic])
    yield found
    await ground.close()


async def read(
    log: Log, starts: Mapping[Partition, int], ends: Mapping[Partition, int] | None = None
) -> list[Record]:
    found = [record async for records in log.read(starts, ends) for record in records]
    return sorted(found, key=lambda r: (r.partition, r.offset))


async def test_a_transaction_is_seen_whole_once_committed_and_its_marker_takes_an_offset(
    logs: Logs,
) -> None:
    log = await logs.join()
    writer = await logs.fence(log)
    await logs.write(writer, logs.out("a"), logs.out("b"), logs.out("c", 1))
    assert not await log.poll(0.2, 10, [])
    # The end counts what is open, so that nobody misses it.
    assert await log.bounds([logs.p0, logs.p1]) == {logs.p0: (0, 2), logs.p1: (0, 1)}
    assert await log.committed(logs.p0) is None
    await writer.commit(GroupOffset(logs.group, logs.p0, 7))
    assert await logs.poll(log, 3) == {logs.p0: ["a", "b"], logs.p1: ["c"]}
    assert await log.bounds([logs.p0, logs.p1]) == {logs.p0: (0, 3), logs.p1: (0, 2)}
    assert await log.committed(logs.p0) == 7
    assert await log.committed(logs.p1) is None
    assert not writer.is_cut_off


async def test_a_writer_is_told_whether_its_last_transaction_is_committed(logs: Logs) -> None:
    log = await logs.join()
    writer = await logs.fence(log)
    assert not await writer.has_ended()
    await logs.write(writer, logs.out("a"), logs.out("b", 1))
    await writer.commit()
    assert await writer.has_ended()
    await logs.write(writer, logs.out("c"))
    assert not await writer.has_ended()
    await writer.commit()
    assert await writer.has_ended()
    successor = await logs.fence(log)
    await logs.write(successor, logs.out("d"))
    await successor.commit()
    assert not await writer.has_ended()


async def test_a_member_sets_the_offsets_of_its_group(logs: Logs) -> None:
    log = await logs.join()
    await log.commit_offsets({logs.p0: 3, logs.p1: 1})
    await log.commit_offsets({logs.p1: 2})
    assert [await log.committed(p) for p in (logs.p0, logs.p1)] == [3, 2]
    await log.leave()
    with pytest.raises(LogError):
        await log.commit_offsets({logs.p0: 4})


async def test_lag_is_what_is_committed_and_not_polled_of_a_paused_partition_too(
    logs: Logs,
) -> None:
    log = await logs.join()
    writer = await logs.fence(log)
    await logs.write(writer, logs.out("a"))
    assert await log.lag() == {logs.p0: 0, logs.p1: 0}
    await writer.commit()
    # A broker says that it is committed a moment before its readers can see it.
    async with asyncio.timeout(90):
        while (await log.lag())[logs.p0] != 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    await logs.poll(log, 1)
    assert not await log.poll(0.5, 10, [logs.p0])
    for _ in range(5):
        await logs.ground.publish(logs.out("b"))
    lag = await log.lag()
    # The client may not have read the marker yet.
    assert lag[logs.p0] in {5, 6}
    assert lag[logs.p1] == 0
    await log.leave()
    assert not await log.lag()


async def test_a_poll_brings_some_of_each_partition(logs: Logs) -> None:
    log = await logs.join()
    writer = await logs.fence(log)
    await logs.write(writer, *(logs.out(f"{n}", number) for number in (0, 1) for n in range(200)))
    await writer.commit()
    # The client may have fetched one partition before the other, which must not run dry.
    for _ in range(30):
        polled = await log.poll(0.2, 5, [], of_each=True)
        if len(polled) == 2:
            break
        await asyncio.sleep(0.2)
    assert [len(records) for records in polled.values()] == [5, 5]


async def test_a_successor_aborts_what_is_open_and_its_predecessor_can_write_no_more(
    logs: Logs,
) -> None:
    log = await logs.join()
    old = await logs.fence(log)
    await logs.write(old, logs.out("aborted"), logs.out("aborted", 1))
    new = await logs.fence(log)
    with pytest.raises(logs.ground.fenced):
        await old.commit()
    await logs.write(new, logs.out("kept"))
    await new.commit(GroupOffset(logs.group, logs.p0, 2))
    assert await logs.poll(log, 1) == {logs.p0: ["kept"]}
    assert values(await read(log, {logs.p0: 0, logs.p1: 0})) == ["kept"]
    assert await log.committed(logs.p0) == 2


async def test_an_open_transaction_holds_readers_back_until_it_ends(logs: Logs) -> None:
    log = await logs.join()
    writer = await logs.fence(log)
    await logs.ground.publish(logs.out("before"))
    await logs.write(writer, logs.out("open"))
    await logs.ground.publish(logs.out("behind"))
    assert await logs.poll(log, 1) == {logs.p0: ["before"]}
    assert sorted(await log.fetch(logs.p0, [0])) == [0]
    reading = asyncio.create_task(read(log, {logs.p0: 0}))
    await asyncio.sleep(0.2)
    assert not reading.done()
    await writer.commit()
    async with asyncio.timeout(60):
        assert values(await reading) == ["before", "open", "behind"]


async def test_a_reading_begins_and_ends_where_it_is_told_and_fetches_what_is_there(
    logs: Logs,
) -> None:
    log = await logs.join()
    writer = await logs.fence(log)
    await logs.write(writer, *(logs.out(f"a{n}") for n in range(3)), logs.out("b0", 1))
    await writer.commit()
    await logs.ground.publish(logs.out("a4"))
    both = {logs.p0: 1, logs.p1: 0}
    assert values(await read(log, both)) == ["a1", "a2", "a4", "b0"]
    assert values(await read(log, both, {logs.p0: 2, logs.p1: 1})) == ["a1", "b0"]
    assert values(await read(log, {logs.p0: 5})) == []
    fetched = await log.fetch(logs.p0, [4, 0, 3, 9])
    assert {offset: record.value for offset, record in fetched.items()} == {0: b"a0", 4: b"a4"}


async def test_a_poll_is_limited_paused_and_moved(logs: Logs) -> None:
    log = await logs.join()
    for n in range(4):
        await logs.ground.publish(logs.out(f"a{n}"))
        await logs.ground.publish(logs.out(f"b{n}", 1))
    first: list[str] = []
    async with asyncio.timeout(60):
        while len(first) < 4:
            polled = await log.poll(0.2, 3, [logs.p1])
            assert logs.p1 not in polled
            assert len(polled.get(logs.p0, ())) <= 3
            first += values(polled.get(logs.p0, ()))
    assert first == ["a0", "a1", "a2", "a3"]
    assert await logs.poll(log, 4) == {logs.p1: ["b0", "b1", "b2", "b3"]}
    log.seek(logs.p0, 2)
    assert await logs.poll(log, 2) == {logs.p0: ["a2", "a3"]}


async def test_a_poll_tells_of_a_lost_end_though_nothing_new_is_there(
    logs: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuity, "QUIET_LOOK_S", 0.0)
    monkeypatch.setattr(continuity, "RETRY_S", 0.0)
    log = await logs.join()
    for number in (0, 0, 1):
        await logs.ground.publish(logs.out("a", number))
    await logs.poll(log, 3)
    assert not await log.poll(0.2, 10, [])
    kept, asked = 1, log.epoch_end

    async def epoch_end(partition: Partition, leader_epoch: int) -> int | None:
        end = await asked(partition, leader_epoch)
        return kept if partition == logs.p0 else end

    log.epoch_end = epoch_end  # type: ignore[method-assign]
    assert not await log.poll(0.2, 10, [logs.p0])
    with pytest.raises(BrokenLogError, match="ends at 1"):
        await log.poll(0.2, 10, [])
    kept = 2
    assert not await log.poll(0.2, 10, [])


async def test_a_refusal_is_told_by_the_send_and_by_nothing_else(logs: Logs) -> None:
    log = await logs.join()
    writer = await logs.fence(log)
    await writer.begin()
    huge = Outgoing(logs.small, b"k", bytes(2 * SMALL_BYTES), [], 0)
    refused, taken = await writer.send(huge), await writer.send(logs.out("taken"))
    with pytest.raises(log.refusals):
        await refused
    await taken
    await writer.commit()
    assert await logs.poll(log, 1) == {logs.p0: ["taken"]}


async def test_records_are_refused_for_what_they_are_and_not_for_their_company(logs: Logs) -> None:
    log = await logs.join()
    writer = await logs.fence(log)
    value = b"x" * (SMALL_BYTES // 4)
    records = [Outgoing(logs.small, b"%d" % n, value, partition=0) for n in range(20)]
    await logs.write(writer, *records)
    await writer.commit()
    found = await read(log, {Partition(logs.small, 0): 0})
    assert [record.key for record in found] == [record.key for record in records]


async def test_compaction_keeps_the_newest_of_each_key_at_its_offset(logs: Logs) -> None:
    log = await logs.join()
    for key, value in (("x", "1"), ("y", "2"), ("x", "3")):
        await logs.ground.publish(logs.out(value, key=key))
    await logs.ground.look()
    await logs.ground.compact(logs.p0)
    found = kept(await read(log, {logs.p0: 0}))
    assert [(r.offset, r.value) for r in found] == [(1, b"2"), (2, b"3")]
    assert (await log.bounds([logs.p0]))[logs.p0][0] == 0
    assert sorted(await log.fetch(logs.p0, [0, 1, 2])) == [1, 2]
