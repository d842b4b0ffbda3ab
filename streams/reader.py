"""A consumer of no group, for as long as it takes to read or to ask something."""

import contextlib
from collections.abc import AsyncIterator, Collection
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.log import Partition
from streams.record_batches import read_every_batch
from topics import Settings


def consumer_options(settings: Settings) -> dict[str, Any]:
    """Return what every consumer here has in common: committed records, offsets by hand.

    Whoever makes a consumer asks here first, so that none reads batches as aiokafka alone does.
    """
    read_every_batch(settings.batch_bytes_max)
    return {
        **settings.kafka_options(),
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
    """Lend a consumer; it is closed even where it was given up while it started.

    Args:
        settings: where Kafka is.
        partitions: to read.
        asks: topics of which it will be asked for offsets without reading them. Of one that it does
            not know yet the client would find out only after a pause of 0.1 s, one after the other.
        options: of the client, beside or instead of those that all here have.
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
        await lent.stop()
