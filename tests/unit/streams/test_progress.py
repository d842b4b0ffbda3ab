"""Reading progress back."""

import pytest
from memory_log import MemoryCluster, MemoryLog

from streams.engine import newest_value as newest_module
from streams.engine.log import Outgoing, Partition
from streams.engine.progress import read_progress
from topics import BadRecordError, ChainHead, Progress, encode, progress_key
from topics.records import headers as h

P0, P1 = Partition("in", 0), Partition("in", 1)
BUSY, EMPTY = Partition("busy", 0), Partition("empty", 0)


@pytest.fixture
def cluster() -> MemoryCluster:
    cluster = MemoryCluster({"progress": 2, "in": 2, "busy": 1, "empty": 1})
    for partition in (P0, P1, BUSY):
        cluster.publish(Outgoing(partition.topic, b"r", b"r", partition=partition.number))
    return cluster


def write(cluster: MemoryCluster, partition: Partition, group: str, *offsets: int) -> None:
    key = progress_key(group, partition.topic, partition.number)
    for offset in offsets:
        value = encode(Progress(offset, (offset + 2,)))
        cluster.publish(Outgoing("progress", key, value, partition=partition.number))


async def read(cluster: MemoryCluster, *partitions: Partition) -> dict[Partition, Progress]:
    stored = await read_progress(MemoryLog(cluster), "progress", "g", partitions)
    assert not stored.unreadable
    return stored.known


def write_raw(
    cluster: MemoryCluster, value: bytes | None, headers: list[tuple[str, bytes]] | None = None
) -> None:
    key = progress_key("g", "in", 0)
    cluster.publish(Outgoing("progress", key, value, headers or [], partition=0))


async def test_the_newest_of_each_partition_counts(cluster: MemoryCluster) -> None:
    write(cluster, P0, "g", 1, 5, 9)
    write(cluster, P1, "g", 4)
    assert await read(cluster, P0, P1) == {P0: Progress(9, (11,)), P1: Progress(4, (6,))}


async def test_others_on_the_same_partition_are_left_aside(cluster: MemoryCluster) -> None:
    write(cluster, P0, "g", 3)
    write(cluster, P0, "h", 8)
    write(cluster, Partition("other", 0), "g", 9)
    cluster.publish(Outgoing("progress", progress_key("g", "in", 0), None, partition=1))
    assert await read(cluster, P0, P1) == {P0: Progress(3, (5,))}


async def test_no_progress_and_no_partitions_are_nothing(cluster: MemoryCluster) -> None:
    assert await read(cluster, P0, P1) == {}
    assert await read(cluster) == {}


async def test_progress_older_than_the_tail_is_found_without_hiding_newer(
    cluster: MemoryCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(newest_module, "TAIL_RECORDS", (4, 8))
    write(cluster, P0, "g", 2)
    write(cluster, BUSY, "g", *range(20))
    write(cluster, P1, "g", 7)
    assert await read(cluster, P0, BUSY, P1) == {
        P0: Progress(2, (4,)),
        BUSY: Progress(19, (21,)),
        P1: Progress(7, (9,)),
    }


async def test_of_a_topic_that_is_empty_again_there_may_be_progress(
    cluster: MemoryCluster,
) -> None:
    write(cluster, P0, "g", *range(5))
    write(cluster, EMPTY, "g", 3)
    stored = await read_progress(MemoryLog(cluster), "progress", "g", [P0, EMPTY])
    assert stored.known == {P0: Progress(4, (6,)), EMPTY: Progress(3, (5,))}


async def test_what_an_aborted_transaction_wrote_does_not_count(cluster: MemoryCluster) -> None:
    write(cluster, P0, "g", 1)
    log = MemoryLog(cluster)
    writer = await log.fence("w")
    await writer.begin()
    key = progress_key("g", "in", 0)
    await (await writer.send(Outgoing("progress", key, encode(Progress(9)), partition=0)))
    await log.fence("w")
    assert await read(cluster, P0) == {P0: Progress(1, (3,))}


async def test_fields_of_a_newer_version_are_left_aside(cluster: MemoryCluster) -> None:
    head = b'{"sequence":4,"digest":"d","at":1.5,"signer":"new"}'
    write_raw(cluster, b'{"next_offset":7,"finished":[9],"lease":{"by":"x"},"head":' + head + b"}")
    assert await read(cluster, P0) == {P0: Progress(7, (9,), ChainHead(4, "d", 1.5))}


async def test_an_older_record_never_counts_for_a_newer_one(cluster: MemoryCluster) -> None:
    write(cluster, P0, "g", 1, 5)
    write_raw(cluster, None)
    assert await read(cluster, P0) == {}
    write_raw(cluster, b'{"next_offset":"many"}')
    write(cluster, P1, "g", 4)
    stored = await read_progress(MemoryLog(cluster), "progress", "g", [P0, P1])
    assert stored.known == {P1: Progress(4, (6,))}
    home, offset, message = stored.unreadable[P0]
    assert (home, offset) == (Partition("progress", 0), 3)
    assert "next_offset" in message
    write(cluster, P0, "g", 6)
    assert await read(cluster, P0) == {P0: Progress(6, (8,))}


@pytest.mark.parametrize("value", [b"", b"\xff\xfe", b"[" * 5000, b"null", b'{"next_offset":1e99}'])
async def test_what_is_no_progress_is_told_of(cluster: MemoryCluster, value: bytes) -> None:
    write_raw(cluster, value)
    stored = await read_progress(MemoryLog(cluster), "progress", "g", [P0])
    assert not stored.known
    assert stored.unreadable[P0].message


async def test_what_only_a_newer_version_understands_is_not_read(cluster: MemoryCluster) -> None:
    value = encode(Progress(7))
    write_raw(cluster, value, [(h.CRITICAL, b"finished_ranges")])
    stored = await read_progress(MemoryLog(cluster), "progress", "g", [P0])
    assert not stored.known
    assert "'finished_ranges', which only a newer version" in stored.unreadable[P0].message


async def test_a_batch_that_can_not_be_read_may_have_held_the_newest(
    cluster: MemoryCluster,
) -> None:
    write(cluster, P0, "g", 1, 2)
    torn = BadRecordError("decode", "corrupt_batch", "torn")
    where = cluster.publish(Outgoing("progress", None, None, partition=0), unreadable=torn)
    log = MemoryLog(cluster)
    stored = await read_progress(log, "progress", "g", [P0])
    assert stored.known == {}
    assert stored.unreadable[P0].offset == where.offset
    write(cluster, P0, "g", 3)
    assert (await read_progress(log, "progress", "g", [P0])).known == {P0: Progress(3, (5,))}
