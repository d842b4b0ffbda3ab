"""Reading a batch that the Kafka client can't: one with a header name that isn't UTF-8.

Java and librdkafka take such names; aiokafka fails on them, at the same place every time, and with
the record all others of its produce batch are out of reach. A single record could stop a partition
for ever. So that batch, and no other, is fetched and decoded here with aiokafka's own parser, made
lenient about names. It needs parts of aiokafka that are not public (tests/test_undecodable.py).
"""

import asyncio
import logging
from collections.abc import Collection, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.memory_records import _MemoryRecordsPy

from streams.log import LogError, Partition, Record
from topics import headers as h
from topics.catalogue import OUTPUT_BYTES_MAX

# What the client raises, by its C and by its Python parser.
UNDECODABLE = (UnicodeDecodeError, CorruptRecordException)
# Most records taken one at a time from a partition, and from all partitions in one turn.
SINGLE_RECORDS_MAX = 1000
# How long to look for the batch. A fetch under way, which comes first, may last 0.5 s.
UNDECODABLE_S_MAX = 10.0
TURNS_S = 0.02
READ_COMMITTED = 1
WAIT_MS = 500

logger = logging.getLogger(__name__)

_MESSAGE = b"the name of a header is not UTF-8; send header names as UTF-8 text"


class _Lenient(bytearray):
    """Bytes whose slices decode to text whatever they hold."""

    def __getitem__(self, key: Any) -> Any:
        found = super().__getitem__(key)
        return _Lenient(found) if isinstance(key, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        return super().decode(encoding, "backslashreplace")


def records_of(partition: Partition, records: Sequence[Any]) -> list[Record]:
    """Return what the client decoded as records."""
    return [Record(partition, r.offset, r.key, r.value, r.headers, r.timestamp) for r in records]


async def poll_past_undecodable(
    consumer: AIOKafkaConsumer,
    wanted: Collection[TopicPartition],
    positions: dict[Partition, int],
) -> dict[Partition, list[Record]]:
    """Poll again, one record at a time, until past a batch that the client can't decode.

    The client has lost what it had decoded before it, so go back to ``positions``, where the last
    records left off. They are brought up to date with what is returned. If that does not take us
    past the batch in time, the next poll meets it again.

    Raises:
        LogError: as ``read_undecodable``.
    """
    for topic_partition in wanted:
        position = positions.get(Partition(*topic_partition))
        if position is not None:
            consumer.seek(topic_partition, position)
    found: dict[Partition, list[Record]] = {Partition(*p): [] for p in wanted}
    # May be given up at any await: by then what came is in `found`, and `positions` tell of it.
    try:
        async with asyncio.timeout(UNDECODABLE_S_MAX):
            # Nobody knows which partition it is on, and the client fetches again what it had. So
            # none is waited for: whoever waits on those where nothing comes may never get there.
            while not await _take_turns(consumer, found, positions):  # noqa: ASYNC110
                await asyncio.sleep(TURNS_S)
    except TimeoutError:
        logger.warning("not past a batch that can't be decoded in %s s", UNDECODABLE_S_MAX)
    return found


async def _take_turns(
    consumer: AIOKafkaConsumer,
    found: dict[Partition, list[Record]],
    positions: dict[Partition, int],
) -> bool:
    """Take what has come of each partition; tell whether that is all for now."""
    share = max(1, SINGLE_RECORDS_MAX // len(found))
    is_past = False
    for partition, records in found.items():
        topic_partition = TopicPartition(*partition)
        left = min(share, SINGLE_RECORDS_MAX - len(records))
        try:
            while left > 0 and (polled := await consumer.getmany(topic_partition, max_records=1)):
                records.extend(records_of(partition, polled[topic_partition]))
                positions[partition] = records[-1].offset + 1
                left -= 1
        except UNDECODABLE:
            # The failed reading has ended; asking again moves the position on to the culprit.
            await consumer.getmany(topic_partition, max_records=1)
            position = await consumer.position(topic_partition)
            batch, next_offset = await read_undecodable(consumer, partition, position)
            records.extend(batch)
            positions[partition] = next_offset
            consumer.seek(topic_partition, next_offset)
            is_past = True
        # Where records have come `getmany` never pauses, and heartbeats wait for a pause.
        await asyncio.sleep(0)
    return is_past or any(len(records) >= SINGLE_RECORDS_MAX for records in found.values())


async def read_undecodable(
    consumer: AIOKafkaConsumer, partition: Partition, position: int
) -> tuple[list[Record], int]:
    """Return the records of the batch at ``position``, and the offset that follows it.

    Those with a bad name have the header ``shunter-unreadable`` besides their own.

    Raises:
        LogError: the batch can't be fetched or decoded even so.
    """
    client = consumer._client  # noqa: SLF001 - see above
    node = client.cluster.leader_for_partition(TopicPartition(*partition))
    wanted = [(partition.topic, [(partition.number, position, OUTPUT_BYTES_MAX)])]
    request = FetchRequest(WAIT_MS, 1, OUTPUT_BYTES_MAX, READ_COMMITTED, wanted)
    response = await client.send(node, request)
    memory = _MemoryRecordsPy(response.topics[0][1][0][-1])
    while memory.has_next():
        raw = memory._next_slice  # noqa: SLF001 - the batch, before the strict parser sees it
        memory.next_batch()
        batch = _DefaultRecordBatchPy(raw)
        if batch.next_offset > position and not batch.is_control_batch:
            iter(batch)  # decompresses
            batch._buffer = _Lenient(batch._buffer)  # noqa: SLF001
            records = [_record(partition, r) for r in batch if r.offset >= position]
            return records, batch.next_offset
    raise LogError(f"{partition} has a record at {position} that can't be decoded")


def _record(partition: Partition, record: Any) -> Record:
    headers = [(str(name), value) for name, value in record.headers]
    # What backslashreplace leaves is text, but not the name that was sent.
    if any("\\x" in name for name, _ in headers):
        headers.append((h.UNREADABLE, _MESSAGE))
    return Record(partition, record.offset, record.key, record.value, headers, record.timestamp)
