"""Shared parts of the client commands: reads by key, following of topics, error messages."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from typing import Any, TypeVar

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from shunter.console import UserError, err
from streams.engine.log import LogError, Partition, Record
from streams.kafka.log import KafkaLog
from streams.kafka.reader import close_consumer, consumer_options
from streams.kafka.record_batches import records_of
from streams.kafka.writer import partition_of
from streams.logs import set_up_logging
from topics import BadRecordError, Settings
from topics.admin.provisioning import AdminError, partition_counts
from topics.credentials import masked

T = TypeVar("T")

POLL_RECORDS_MAX = 500


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run the asynchronous part of a command.

    Raises:
        UserError: Kafka can't be reached, or refuses, or a record can't be read.
    """
    set_up_logging("warning")
    try:
        return asyncio.run(work)
    except (AdminError, LogError, BadRecordError) as error:
        raise UserError(str(error)) from error
    except KafkaError as error:
        raise UserError(f"Kafka: {error}") from error


def note(line: str) -> None:
    """Print a line on standard error, with only credentials removed."""
    err.print(masked(line), highlight=False, soft_wrap=True)


async def read_by_key(settings: Settings, topic: str, key: bytes) -> list[Record]:
    """Return all committed records of a key, oldest first, from its one partition.

    Raises:
        AdminError: Kafka can't be reached, or the topic is missing.
        LogError: a transaction stays open.
    """
    counts = await partition_counts(settings, [topic])
    home = Partition(topic, partition_of(key, counts[topic]))
    log = KafkaLog(settings)
    first, _ = (await log.bounds([home]))[home]
    return [
        record
        async for records in log.read({home: first})
        for record in records
        if record.key == key
    ]


class Tail:
    """Reads topics continuously, without a consumer group."""

    def __init__(self, consumer: AIOKafkaConsumer) -> None:
        self._consumer = consumer

    async def poll(self, timeout_s: float) -> Sequence[Record]:
        """Return new committed records, empty if there are none within ``timeout_s``."""
        polled = await self._consumer.getmany(
            timeout_ms=int(timeout_s * 1000), max_records=POLL_RECORDS_MAX
        )
        return [
            record
            for partition, records in polled.items()
            for record in records_of(Partition(*partition), records)
        ]


@contextlib.asynccontextmanager
async def tail(
    settings: Settings,
    topics: Sequence[str],
    *,
    also: Sequence[str] = (),
    from_beginning: bool = False,
) -> AsyncIterator[Tail]:
    """Provide a reader of these topics, positioned at their end or beginning.

    Topics in ``also`` are read if the user may see them, and skipped otherwise.

    All records committed after entry are read.

    Raises:
        AdminError: Kafka can't be reached, or a topic is missing.
    """
    counts = await partition_counts(settings, topics)
    with contextlib.suppress(AdminError):
        counts |= await partition_counts(settings, also)
    options = consumer_options(settings)
    if not from_beginning:
        # Otherwise the reset at the start could overtake ours.
        options["auto_offset_reset"] = "latest"
    consumer = AIOKafkaConsumer(**options)
    try:
        consumer.assign(list(_partitions(counts)))
        await consumer.start()
        seek = consumer.seek_to_beginning if from_beginning else consumer.seek_to_end
        if not await seek():
            raise AdminError(
                f"{settings.bootstrap_servers} does not tell where {', '.join(topics)} end;"
                " is the cluster healthy?"
            )
        yield Tail(consumer)
    finally:
        await close_consumer(consumer)


def _partitions(counts: dict[str, int]) -> Iterator[TopicPartition]:
    for topic, count in counts.items():
        for number in range(count):
            yield TopicPartition(topic, number)
