"""Polling past a batch that the Kafka client can't decode, wherever among the partitions it is."""

import asyncio
import functools
import math
import struct
from collections.abc import Awaitable, Callable, Coroutine
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from simulation.loop import VirtualLoop
from stream_cases import make_settings, soon

from streams import Partition, Record, undecodable
from streams.kafka import KafkaLog
from topics import headers as h


def in_virtual_time(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test where half a second passes at once, and is no shorter on a busy machine."""

    @functools.wraps(test)
    def run(**given: Any) -> None:
        VirtualLoop().finish(test(**given))

    return run


class NotText(str):
    __slots__ = ()

    def encode(self, *_: object) -> bytes:
        return b"\xff\xfe"


def batch_at(offset: int) -> bytes:
    """Return a batch of one record with a header name that is not UTF-8."""
    builder = _DefaultRecordBatchBuilderPy(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=1000,
    )
    builder.append(0, 1, b"k", b"v", [(NotText("x"), b"v")])
    batch = builder.build()
    struct.pack_into(">q", batch, 0, offset)
    return bytes(batch)


class Consumer:
    """The client as far as a poll needs it, with so many records on each partition.

    As with the client, what it had read of a partition is lost when it meets the one at ``bad``,
    asking again moves the position there, and what is sought is fetched, which takes ``fetch_s``.
    """

    def __init__(self, counts: dict[TopicPartition, int], bad: tuple[TopicPartition, int]) -> None:
        self.counts = counts
        self.bad = bad
        self.fetch_s = dict.fromkeys(counts, 0.0)
        self.positions = dict.fromkeys(counts, 0)
        self._coordinator = SimpleNamespace(check_errors=lambda: None)
        self._client = SimpleNamespace(
            cluster=SimpleNamespace(leader_for_partition=lambda _partition: 1), send=self._send
        )
        self._ready_at = dict.fromkeys(counts, 0.0)
        self._failed: set[TopicPartition] = set()

    def assignment(self) -> set[TopicPartition]:
        return set(self.counts)

    def paused(self) -> set[TopicPartition]:
        return set()

    def resume(self, *_: TopicPartition) -> None:
        pass

    def pause(self, *_: TopicPartition) -> None:
        pass

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.positions[partition] = offset
        self._failed.discard(partition)
        now = asyncio.get_running_loop().time()
        self._ready_at[partition] = now + self.fetch_s[partition]

    async def position(self, partition: TopicPartition) -> int:
        return self.positions[partition]

    async def getmany(
        self, *wanted: TopicPartition, timeout_ms: int = 0, max_records: int = 500
    ) -> dict[TopicPartition, list[Any]]:
        found = self._take(wanted, max_records)
        if not found and timeout_ms:
            await asyncio.sleep(timeout_ms / 1000)
            found = self._take(wanted, max_records)
        return found

    def _take(
        self, wanted: tuple[TopicPartition, ...], records_max: int
    ) -> dict[TopicPartition, list[Any]]:
        found: dict[TopicPartition, list[Any]] = {}
        for partition in wanted:
            if asyncio.get_running_loop().time() < self._ready_at[partition]:
                continue
            first = self.positions[partition]
            end = min(self.counts[partition], first + records_max)
            where, offset = self.bad
            if partition == where and first <= offset < end:
                if partition not in self._failed:
                    self._failed.add(partition)
                    raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte")
                self.positions[partition] = offset
            elif first < end:
                self.positions[partition] = end
                found[partition] = [record(offset) for offset in range(first, end)]
                records_max -= end - first
        return found

    async def _send(self, _node: int, request: Any) -> Any:
        ((_topic, ((_number, offset, _bytes),)),) = request.topics
        return SimpleNamespace(topics=[("t", [(0, 0, 0, batch_at(offset))])])


def record(offset: int) -> Any:
    return SimpleNamespace(offset=offset, key=b"k", value=b"v", headers=(), timestamp=1)


def partitions(count: int) -> list[TopicPartition]:
    return [TopicPartition("t", number) for number in range(count)]


def log_of(consumer: Consumer) -> KafkaLog:
    """Return the log of a member that has just taken over all partitions."""
    log = KafkaLog(make_settings())
    log._consumer = cast("AIOKafkaConsumer", consumer)
    for partition in consumer.counts:
        log.seek(Partition(*partition), 0)
    return log


async def poll_all(log: KafkaLog, consumer: Consumer) -> list[Record]:
    """Poll until everything has come; whatever came twice or never fails the test."""
    found: list[Record] = []
    while len(found) < sum(consumer.counts.values()):
        for records in (await log.poll(0.1, 500, [])).values():
            found += records
    for partition, count in consumer.counts.items():
        offsets = [r.offset for r in found if r.partition == Partition(*partition)]
        assert offsets == list(range(count)), partition
    where, offset = consumer.bad
    unreadable = [r for r in found if any(name == h.UNREADABLE for name, _ in r.headers)]
    assert [(r.partition, r.offset) for r in unreadable] == [(Partition(*where), offset)]
    return found


@pytest.mark.parametrize("fetch_s", [0.0, 0.5])
@in_virtual_time
async def test_partitions_where_nothing_comes_take_no_time(fetch_s: float) -> None:
    """A router that has many would end, at each start again, by one bad header name."""
    many = partitions(200)
    consumer = Consumer(dict.fromkeys(many, 0) | {many[150]: 3}, bad=(many[150], 1))
    consumer.fetch_s = dict.fromkeys(many, fetch_s)
    log = log_of(consumer)
    await soon(poll_all(log, consumer), "the records of the only partition that has any")


@pytest.mark.parametrize("before", [0, 999, 1000, 2500])
@in_virtual_time
async def test_a_partition_may_have_much_before_the_batch(before: int) -> None:
    few = partitions(3)
    consumer = Consumer(dict.fromkeys(few, before + 2), bad=(few[1], before))
    await soon(poll_all(log_of(consumer), consumer), "all records")


@in_virtual_time
async def test_what_came_in_time_is_returned_and_the_rest_later(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(undecodable, "UNDECODABLE_S_MAX", 0.5)
    few = partitions(3)
    consumer = Consumer(dict.fromkeys(few, 4), bad=(few[1], 2))
    log = log_of(consumer)
    consumer.fetch_s[few[1]] = math.inf
    first = await soon(log.poll(0.1, 500, []), "what the others have")
    assert {p.number: len(records) for p, records in first.items()} == {0: 4, 1: 0, 2: 4}
    assert "not past a batch that can't be decoded in 0.5 s" in caplog.text
    consumer.fetch_s[few[1]] = 0.0
    for partition in few:
        consumer.seek(partition, log._positions[Partition(*partition)])
    second = await soon(log.poll(0.1, 500, []), "what had not come")
    assert {p.number: len(records) for p, records in second.items()} == {0: 0, 1: 3, 2: 0}


@in_virtual_time
async def test_a_rebalance_meanwhile_ends_no_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client waits for its end, which waits for this poll."""
    monkeypatch.setattr(undecodable, "UNDECODABLE_S_MAX", 0.5)
    few = partitions(3)
    # As a set of them is gone through, which is otherwise in each process.
    one, bad, last = set(few) - set()
    consumer = Consumer(dict.fromkeys(few, 4), bad=(bad, 2))
    log = log_of(consumer)
    getmany = consumer.getmany

    def hang(*wanted: TopicPartition, **options: Any) -> Awaitable[Any]:
        if wanted == (last,):
            return asyncio.Event().wait()
        return getmany(*wanted, **options)

    with monkeypatch.context() as patched:
        patched.setattr(consumer, "getmany", hang)
        found = await soon(log.poll(0.1, 500, []), "the records of the others")
    taken = {TopicPartition(*p): len(records) for p, records in found.items()}
    assert taken == {one: 4, bad: 3, last: 0}
