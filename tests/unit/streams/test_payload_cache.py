"""Held payloads: in memory up to a limit that all partitions share, read again beyond it."""

import pytest
from memory_log import CutOffError, MemoryCluster, MemoryLog

from streams.batcher.payload_cache import Payloads, Room
from streams.engine import retries
from streams.engine.log import LogError, Outgoing, Partition, Record

P0, P1 = Partition("held", 0), Partition("held", 1)


class CountingLog(MemoryLog):
    """Counts what is fetched."""

    def __init__(self, cluster: MemoryCluster) -> None:
        super().__init__(cluster)
        self.fetched: list[int] = []
        self.fails = 0

    async def fetch(self, partition, offsets):  # type: ignore[no-untyped-def]
        self.fetched += sorted(offsets)
        if self.fails:
            self.fails -= 1
            raise CutOffError("the broker is gone")
        return await super().fetch(partition, offsets)


@pytest.fixture
def log() -> CountingLog:
    return CountingLog(MemoryCluster({"held": 2}))


def put(log: MemoryLog, name: str, size: int, partition: Partition = P0) -> Record:
    value = b"x" * size
    return log.cluster.publish(Outgoing("held", name.encode(), value, [], partition.number))


async def test_what_fits_is_kept_and_not_read_again(log: CountingLog) -> None:
    room = Room(100)
    payloads = Payloads(P0, room)
    records = [put(log, name, 50) for name in "ab"]
    for record in records:
        payloads.add((record.key or b"").decode(), record)
    assert room.bytes_used == 100
    await payloads.load(log, [("a", 0), ("b", 1)])
    assert log.fetched == []
    assert payloads.record("b") is records[1]


async def test_a_broker_that_is_gone_for_a_moment_is_asked_again(
    log: CountingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a batcher with a large hold dies of each restart of a broker."""
    monkeypatch.setattr(retries, "RETRY_S", 0.0)
    payloads = Payloads(P0, Room(0))
    payloads.add("a", put(log, "a", 50))
    log.fails = 2
    await payloads.load(log, [("a", 0)])
    assert log.fetched == [0, 0, 0]
    assert payloads.record("a").value == b"x" * 50


async def test_headers_take_room_too() -> None:
    room = Room(100)
    Payloads(P0, room).add("a", Record(P0, 0, b"a", b"x" * 50, [("n", b"h" * 50)], 0))
    assert room.bytes_used == 100


async def test_what_does_not_fit_is_read_again_and_only_that(log: CountingLog) -> None:
    room = Room(60)
    payloads = Payloads(P0, room)
    records = {name: put(log, name, 50) for name in "abc"}
    for name, record in records.items():
        payloads.add(name, record)
    assert room.bytes_used == 50
    with pytest.raises(KeyError):
        payloads.record("b")
    await payloads.load(log, [(name, record.offset) for name, record in records.items()])
    assert log.fetched == [1, 2]
    assert {name: payloads.record(name).value for name in records} == {
        name: record.value for name, record in records.items()
    }
    for name in records:
        payloads.remove(name)
    assert room.bytes_used == 0


async def test_partitions_share_the_room(log: CountingLog) -> None:
    room = Room(100)
    first, second = Payloads(P0, room), Payloads(P1, room)
    first.add("a", put(log, "a", 80))
    second.add("b", put(log, "b", 80, P1))
    assert room.bytes_used == 80
    first.clear()
    assert room.bytes_used == 0
    second.add("c", put(log, "c", 80, P1))
    assert second.record("c").offset == 1


async def test_a_record_that_replaces_another_takes_its_room(log: CountingLog) -> None:
    room = Room(100)
    payloads = Payloads(P0, room)
    payloads.add("a", put(log, "a", 80))
    newer = put(log, "a", 90)
    payloads.add("a", newer)
    assert room.bytes_used == 90
    assert payloads.record("a") is newer


async def test_a_record_that_replaces_another_and_does_not_fit_leaves_nothing_stale(
    log: CountingLog,
) -> None:
    room = Room(100)
    payloads = Payloads(P0, room)
    payloads.add("a", put(log, "a", 80))
    newer = put(log, "a", 110)
    payloads.add("a", newer)
    assert room.bytes_used == 0
    await payloads.load(log, [("a", newer.offset)])
    assert payloads.record("a").value == newer.value


async def test_a_size_is_known_in_memory_and_out_of_it_where_it_is_large(
    log: CountingLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streams.batcher.payload_cache.SMALL_BYTES", 30)
    payloads = Payloads(P0, Room(60))
    for name, size in (("a", 50), ("b", 40), ("c", 20)):
        payloads.add(name, put(log, name, size))
    assert [payloads.size(name) for name in "abc"] == [50, 40, 30]
    await payloads.load(log, [("b", 1)])
    assert payloads.size("b") == 40
    payloads.add("b", put(log, "b", 70))
    assert payloads.size("b") == 70
    payloads.clear()
    assert payloads.size("b") == 30


async def test_a_record_that_is_gone_is_a_loss_that_is_told(log: CountingLog) -> None:
    payloads = Payloads(P0, Room(0))
    payloads.add("a", put(log, "a", 10))
    log.cluster.trim(P0, 1)
    with pytest.raises(LogError, match=r"held\[0\].*'a'"):
        await payloads.load(log, [("a", 0)])
