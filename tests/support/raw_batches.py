"""Record batches made by hand, right or wrong in any part but their checksum."""

import struct
import time
from collections.abc import Sequence
from typing import Any

import cramjam
import lz4.frame
from aiokafka import TopicPartition
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.util import calc_crc32c, encode_varint
from running_system import System

CODECS = {"none": 0, "gzip": 1, "snappy": 2, "lz4": 3, "zstd": 4}
# From the attributes on, which is what the checksum is of.
_SUMMED = struct.Struct(">hiqqqhii")
_LEADING = struct.Struct(">qiibI")
NOBODY = (-1, -1, -1)
_LENGTH_AT, _COUNT_AT = 8, 57
_FETCH_BYTES = 1024 * 1024


def varint(value: int) -> bytes:
    out = bytearray()
    encode_varint(value, out.append)
    return bytes(out)


def sized(value: bytes | None) -> bytes:
    return varint(-1) if value is None else varint(len(value)) + value


def record(
    key: bytes | None = None,
    value: bytes | None = None,
    headers: Sequence[tuple[bytes, bytes | None]] = (),
    *,
    at: int = 0,
    body: bytes | None = None,
    size: int | None = None,
) -> bytes:
    """Return a record, the one ``at`` this place of its batch.

    Args:
        key: its key.
        value: its value.
        headers: its headers.
        at: its place.
        body: what stands behind the place, for one that is not made of key, value and headers.
        size: what it says its size is, where that is not what it is.
    """
    if body is None:
        body = sized(key) + sized(value) + varint(len(headers))
        body += b"".join(sized(name) + sized(held) for name, held in headers)
    body = b"\0" + varint(0) + varint(at) + body
    return varint(len(body) if size is None else size) + body


def pack(codec: str, data: bytes) -> bytes:
    """Compress as Kafka's clients do."""
    if codec == "none":
        return data
    if codec == "lz4":
        # Kafka takes no blocks that depend on each other.
        return lz4.frame.compress(data, block_linked=False)
    if codec == "snappy":
        return bytes(cramjam.snappy.compress_raw(data))
    return bytes(getattr(cramjam, codec).compress(data))


def batch(
    records: bytes,
    *,
    codec: str | int = "none",
    count: int = 1,
    last: int | None = None,
    is_packed: bool = False,
    attributes: int = 0,
    timestamp_ms: int | None = None,
) -> bytes:
    """Return a batch with the right checksum.

    Args:
        records: one after the other.
        codec: of Kafka's, or the number of another, which leaves the records as they are.
        count: how many there are, or what it says of that.
        last: the place of the last one; what goes with ``count`` where it is not given.
        is_packed: whether the records are compressed already, or what should be is not.
        attributes: further bits of the attributes.
        timestamp_ms: of all records; the time as it is where it is not given.
    """
    number = codec if isinstance(codec, int) else CODECS[codec]
    if isinstance(codec, str) and not is_packed:
        records = pack(codec, records)
    last = count - 1 if last is None else last
    at = int(time.time() * 1000) if timestamp_ms is None else timestamp_ms
    summed = _SUMMED.pack(attributes | number, last, at, at, *NOBODY, count)
    summed += records
    length = _LEADING.size - 12 + len(summed)
    return _LEADING.pack(0, length, -1, 2, calc_crc32c(summed)) + summed


async def counts(client: Any, topic: str, partition: int) -> list[int]:
    """Return how many records each batch of a partition has; of a short one."""
    node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
    wanted = [(topic, [(partition, 0, _FETCH_BYTES)])]
    response = await client.send(node, FetchRequest(500, 1, _FETCH_BYTES, 0, wanted))
    data = bytes(response.topics[0][1][0][-1])
    found, at = [], 0
    while at < len(data):
        found += struct.unpack_from(">i", data, at + _COUNT_AT)
        (length,) = struct.unpack_from(">i", data, at + _LENGTH_AT)
        at += 12 + length
    return found


async def publish_batch(system: System, topic: str, partition: int, data: bytes) -> tuple[int, int]:
    """Publish bytes as the batch of a produce request; return Kafka's error code and the offset."""
    client = system.producer.client
    await system.producer.partitions_for(topic)
    node = client.cluster.leader_for_partition(TopicPartition(topic, partition))
    request = ProduceRequest(
        transactional_id=None,
        required_acks=-1,
        timeout=30_000,
        topics=[(topic, [(partition, data)])],
    )
    response = await client.send(node, request)
    ((_, ((_, error, offset, *_),)),) = response.topics
    return error, offset
