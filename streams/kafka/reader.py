"""A consumer without a group, for one read or request."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    NoOffsetForPartitionError,
    OffsetOutOfRangeError,
)

from streams.engine.concurrency import brought_to_its_end
from streams.engine.log import LogError, Partition, Record
from streams.kafka.broker_loss import client_options
from streams.kafka.record_batches import read_every_batch, records_of, seek_back
from topics import Settings

READ_RECORDS_MAX = 5000
# How far a poll may exceed its time before a rebalance must be the cause.
REBALANCE_S = 0.1
# A wrong checksum, and a partition that the client has met before its position was set.
PASSED_BY_SEEKING = (CorruptRecordException, NoOffsetForPartitionError)


def consumer_options(settings: Settings) -> dict[str, Any]:
    """Return the options of every consumer: committed records, manual offsets.

    Every consumer must be made with them, so that none reads batches by aiokafka's own parser.
    """
    read_every_batch(settings.batch_bytes_max)
    return {
        **client_options(settings),
        "isolation_level": "read_committed",
        "enable_auto_commit": False,
        "auto_offset_reset": "earliest",
    }


@contextlib.asynccontextmanager
async def reader(
    settings: Settings,
    partitions: Collection[Partition] = (),
    asks: Collection[str] = (),
    **options: Any,
) -> AsyncIterator[AIOKafkaConsumer]:
    """Provide a consumer; it is closed even if it was cancelled while it started.

    Args:
        settings: of Kafka.
        partitions: to read.
        asks: topics of which it will be asked for offsets without reading them. Of one that it does
            not know yet the client would find out only after a pause of 0.1 s, one after the other.
        options: of the client, added to the common ones or replacing them.
    """
    lent = AIOKafkaConsumer(**consumer_options(settings) | options)
    try:
        if partitions:
            lent.assign([TopicPartition(*p) for p in partitions])
        await lent.start()
        if asks:
            await lent._client.set_topics(asks)  # noqa: SLF001 - see above
        yield lent
    finally:
        await close_consumer(lent)


async def close_consumer(consumer: AIOKafkaConsumer) -> None:
    """Close a consumer, also one whose broker is gone.

    The library's own close awaits each fetch that it cancels. One that waits to try again raises
    that cancellation, as if the caller were cancelled, and all behind it stays open. And of other
    tasks it passes over the cancellation, the caller's with it.
    """
    await brought_to_its_end(_close(consumer))


async def _close(consumer: AIOKafkaConsumer) -> None:
    fetcher: Any = consumer._fetcher  # noqa: SLF001 - as told above
    if fetcher is not None:
        # The first makes the others.
        for fetches in ((fetcher._fetch_task,), fetcher._pending_tasks):  # noqa: SLF001 - likewise
            for fetch in fetches:
                fetch.cancel()
            await asyncio.gather(*fetches, return_exceptions=True)
        fetcher._pending_tasks.clear()  # noqa: SLF001 - likewise
    await consumer.stop()


async def read_some(
    reader: AIOKafkaConsumer,
    wanted: Sequence[TopicPartition],
    positions: dict[Partition, int],
) -> Mapping[Partition, Sequence[Record]]:
    """Return new records of partitions; ``positions`` is where each is read from.

    Raises:
        LogError: one has lost its end.
    """
    try:
        polled = await reader.getmany(*wanted, timeout_ms=50, max_records=READ_RECORDS_MAX)
    except PASSED_BY_SEEKING:
        seek_back(reader, positions)
        return {}
    except OffsetOutOfRangeError as error:
        # Retention has overtaken us, or the end is gone; nothing is read from elsewhere.
        for topic_partition in error.args[0]:
            first = (await reader.beginning_offsets([topic_partition]))[topic_partition]
            if first <= positions[Partition(*topic_partition)]:
                raise LogError(f"{Partition(*topic_partition)} has lost its end") from error
            positions[Partition(*topic_partition)] = first
        seek_back(reader, positions)
        return {}
    return {Partition(*p): records_of(Partition(*p), rs) for p, rs in polled.items()}


async def buffered(
    consumer: AIOKafkaConsumer, partitions: Collection[TopicPartition], records_max: int
) -> dict[TopicPartition, Sequence[Any]]:
    """Return the records that the client has buffered, up to a limit per partition.

    It fills a poll from one partition while it has records of that. But each partition has its own
    transaction, and while one commits another can be worked on.
    """
    found: dict[TopicPartition, Sequence[Any]] = {}
    # As in `KafkaLog.poll`; records found until then must not be lost.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(REBALANCE_S):
            for partition in partitions:
                found |= await consumer.getmany(partition, max_records=records_max)
    return found


def unstable(consumer: AIOKafkaConsumer) -> dict[Partition, tuple[int, int]]:
    """Return last stable offset and end of a consumer's partitions, as of its last fetch.

    Partitions where both are the same are left out.
    """
    found: dict[Partition, tuple[int, int]] = {}
    for partition in consumer.assignment():
        stable_end, end = consumer.last_stable_offset(partition), consumer.highwater(partition)
        if stable_end is not None and end is not None and 0 <= stable_end < end:
            found[Partition(*partition)] = (stable_end, end)
    return found
