"""The log in memory does what Kafka does, where the engine depends on it."""

import asyncio
from collections.abc import Collection, Sequence

import pytest
from aiokafka.partitioner import DefaultPartitioner
from memory_log import Crash, MemoryCluster, MemoryLog, Poll, ProcessKilledError, RefusedError
from stream_cases import soon

from streams.engine.log import GroupOffset, LogError, Outgoing, Partition, Record, Writer

P0, P1 = Partition("t", 0), Partition("t", 1)


class Member:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, list[Partition]]] = []

    async def assigned(self, partitions: Collection[Partition]) -> None:
        self.told.append(("assigned", sorted(partitions)))

    async def revoked(self, partitions: Collection[Partition]) -> None:
        self.told.append(("revoked", sorted(partitions)))


def make_cluster() -> MemoryCluster:
    return MemoryCluster({"t": 2, "u": 1})


def out(value: str, partition: int = 0, topic: str = "t") -> Outgoing:
    return Outgoing(topic, b"k", value.encode(), partition=partition)


def values(records: Sequence[Record]) -> list[str]:
    return [(record.value or b"").decode() for record in records]


async def write(writer: Writer, *records: Outgoing) -> None:
    """Write records in a transaction that stays open."""
    await writer.begin()
    for record in records:
        await (await writer.send(record))


async def joined(cluster: MemoryCluster, name: str = "a") -> MemoryLog:
    log = MemoryLog(cluster, name)
    await log.join("g", ["t"], Member())
    await cluster.assign("g", {name: [P0, P1]})
    return log


async def read_all(log: MemoryLog, starts: dict[Partition, int]) -> list[str]:
    return [value async for records in log.read(starts) for value in values(records)]


async def test_a_transaction_is_seen_whole_once_committed_and_its_marker_takes_an_offset() -> None:
    cluster = make_cluster()
    log = await joined(cluster)
    writer = await log.fence("w")
    await write(writer, out("a"), out("b"), out("c", 1))
    assert not await log.poll(0.0, 10, [])
    await writer.commit(GroupOffset("g", P0, 7))
    polled = await log.poll(0.0, 10, [])
    assert {p: values(records) for p, records in polled.items()} == {P0: ["a", "b"], P1: ["c"]}
    assert await log.bounds([P0, P1]) == {P0: (0, 3), P1: (0, 2)}
    assert cluster.publish(out("d")).offset == 3
    assert await log.committed(P0) == 7
    assert await log.committed(P1) is None


async def test_an_open_transaction_holds_back_readers_but_not_the_end() -> None:
    cluster = make_cluster()
    log = await joined(cluster)
    foreign = await MemoryLog(cluster, "other").fence("other")
    cluster.publish(out("before"))
    await write(foreign, out("open"))
    cluster.publish(out("behind"))
    assert values((await log.poll(0.0, 10, []))[P0]) == ["before"]
    assert await log.bounds([P0]) == {P0: (0, 3)}
    assert await log.fetch(P0, [0, 1, 2]) == {0: cluster.records("t", 0)[0]}

    reading = asyncio.create_task(read_all(log, {P0: 0}))
    await asyncio.sleep(0)
    await foreign.commit()
    cluster.publish(out("later than the call"))
    assert await soon(reading, "the end of the reading") == ["before", "open", "behind"]


async def test_a_reading_stops_at_the_end_it_is_given_or_where_the_log_ends() -> None:
    cluster = make_cluster()
    log = await joined(cluster)
    for value in ("a", "b", "c"):
        cluster.publish(out(value))
    cluster.publish(out("d", 1))

    async def read(ends: dict[Partition, int]) -> list[str]:
        found = [v async for rs in log.read({P0: 1, P1: 0}, ends) for v in values(rs)]
        return sorted(found)

    assert await read({}) == ["b", "c", "d"]
    assert await read({P0: 2}) == ["b", "d"]
    assert await read({P0: 99, P1: 0}) == ["b", "c"]


async def test_a_reading_gives_up_on_a_transaction_that_never_ends() -> None:
    cluster = make_cluster()
    log = MemoryLog(cluster)
    await write(await log.fence("other"), out("open"))
    with pytest.raises(LogError, match="open transaction"):
        await read_all(log, {P0: 0})


async def test_a_successor_aborts_what_is_open_and_its_predecessor_is_dead() -> None:
    cluster = make_cluster()
    old, new = MemoryLog(cluster, "old"), MemoryLog(cluster, "new")
    first = await old.fence("w")
    await write(first, out("lost"))
    second = await new.fence("w")
    assert cluster.open_transactions() == []
    for call in (first.begin(), first.send(out("x")), first.commit()):
        with pytest.raises(LogError, match="fenced"):
            await call
    await write(second, out("kept"))
    await second.commit()
    assert values(cluster.records("t")) == ["kept"]


async def test_a_record_that_was_sent_before_the_fencing_is_not_written_after_it() -> None:
    cluster = make_cluster()
    first = await MemoryLog(cluster, "old").fence("w")
    await first.begin()
    future = await first.send(out("late"))
    await MemoryLog(cluster, "new").fence("w")
    with pytest.raises(LogError, match="fenced"):
        await future
    assert await MemoryLog(cluster).bounds([P0]) == {P0: (0, 0)}


async def test_a_time_out_aborts_and_fences() -> None:
    cluster = make_cluster()
    writer = await MemoryLog(cluster).fence("w")
    await write(writer, out("slow"))
    cluster.time_out("w")
    with pytest.raises(LogError, match="fenced"):
        await writer.commit()
    assert cluster.records("t") == []


async def test_a_refusal_fells_its_batch_and_a_commit_does_not_tell() -> None:
    cluster = make_cluster()
    log = await joined(cluster)
    cluster.refuse = lambda record: record.value == b"bad"
    writer = await log.fence("w")
    await writer.begin()
    futures = [await writer.send(o) for o in (out("good"), out("bad"), out("other", 1))]
    outcomes = await asyncio.gather(*futures, return_exceptions=True)
    assert [isinstance(o, RefusedError) for o in outcomes] == [True, True, False]
    with pytest.raises(LogError, match="sequence"):
        await (await writer.send(out("after")))
    await writer.commit()
    assert values(cluster.records("t")) == ["other"]


async def test_a_record_may_be_refused_by_the_client_itself() -> None:
    cluster = make_cluster()
    cluster.oversized = lambda record: record.value == b"huge"
    writer = await MemoryLog(cluster).fence("w")
    await writer.begin()
    with pytest.raises(RefusedError):
        await writer.send(out("huge"))


async def test_an_offset_of_a_group_can_be_lost() -> None:
    cluster = make_cluster()
    log = await joined(cluster)
    cluster.lose_offset = lambda partition, offset: offset == 2
    for offset in (1, 2):
        await log.commit_offsets({P0: offset})
    assert await log.committed(P0) == 1


async def test_a_poll_is_limited_paused_and_moved() -> None:
    cluster = make_cluster()
    log = await joined(cluster)
    for n in range(4):
        cluster.publish(out(f"a{n}"))
        cluster.publish(out(f"b{n}", 1))

    assert values((await log.poll(0.1, 3, [P1]))[P0]) == ["a0", "a1", "a2"]
    assert log.last_poll == Poll(0.1, 3, frozenset({P1}))
    polled = await log.poll(0.1, 10, [])
    assert {p: values(r) for p, r in polled.items()} == {P0: ["a3"], P1: ["b0", "b1", "b2", "b3"]}
    log.seek(P0, 2)
    assert values((await log.poll(0.1, 10, []))[P0]) == ["a2", "a3"]


async def test_keys_choose_partitions_as_in_every_kafka_client() -> None:
    cluster = MemoryCluster({"t": 7})
    for n in range(50):
        key = f"request-{n}".encode()
        numbers = list(range(7))
        expected = DefaultPartitioner()(key, numbers, numbers)
        assert cluster.partition_of(Outgoing("t", key, b"")).number == expected


async def test_a_rebalance_takes_all_from_all_and_gives_it_out_anew() -> None:
    cluster = make_cluster()
    members = {name: Member() for name in "ab"}
    for name, member in members.items():
        await MemoryLog(cluster, name).join("g", ["t"], member)
    await cluster.assign("g", {"a": [P0, P1]})
    await cluster.rebalance("g")
    assert members["a"].told == [
        ("revoked", []),
        ("assigned", [P0, P1]),
        ("revoked", [P0, P1]),
        ("assigned", [P0]),
    ]
    assert members["b"].told == [("revoked", []), ("revoked", []), ("assigned", [P1])]


async def test_compaction_keeps_the_newest_of_each_key_at_its_offset() -> None:
    cluster = make_cluster()
    log = MemoryLog(cluster)
    for key, value in (("x", "1"), ("y", "2"), ("x", "3")):
        cluster.publish(Outgoing("u", key.encode(), value.encode()))
    cluster.compact("u")
    home = Partition("u", 0)
    assert [(r.offset, r.value) for r in cluster.records("u")] == [(1, b"2"), (2, b"3")]
    assert await log.bounds([home]) == {home: (0, 3)}
    assert sorted(await log.fetch(home, [0, 1, 2])) == [1, 2]


async def test_retention_moves_the_beginning() -> None:
    cluster = make_cluster()
    log = await joined(cluster)
    for n in range(3):
        cluster.publish(out(str(n)))
    cluster.trim(P0, 2)
    assert await log.bounds([P0]) == {P0: (2, 3)}
    assert values((await log.poll(0.0, 10, []))[P0]) == ["2"]


async def test_whoever_is_killed_makes_no_more_calls_and_leaves_its_transaction_open() -> None:
    cluster = make_cluster()
    log = await joined(cluster)
    writer = await log.fence("w")
    cluster.crash = Crash("commit", 2)
    await write(writer, out("1"))
    await writer.commit()
    await write(writer, out("2"))
    with pytest.raises(ProcessKilledError):
        await writer.commit()
    assert cluster.crash.has_struck
    assert cluster.open_transactions() == ["w"]
    for call in (log.poll(0.0, 1, []), log.fence("w"), writer.commit()):
        with pytest.raises(ProcessKilledError):
            await call
    assert values(cluster.records("t")) == ["1"]


async def test_a_process_can_die_of_its_own_error_after_the_commit_took_effect() -> None:
    cluster = make_cluster()
    log = await joined(cluster)
    cluster.crash = Crash("committed", error=ConnectionError("reset"))
    writer = await log.fence("w")
    await write(writer, out("1"))
    with pytest.raises(ConnectionError):
        await writer.commit(GroupOffset("g", P0, 1))
    assert values(cluster.records("t")) == ["1"]
    assert cluster.offsets["g", P0] == 1
