"""Follow topics: each process reads them from the beginning, then continuously."""

import logging
from abc import ABC, abstractmethod
from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException

from streams.engine.log import Partition, Record
from streams.engine.unexpected_errors import log_unexpected
from streams.kafka.reader import close_consumer, consumer_options, reader
from streams.kafka.record_batches import records_of, seek_back
from topics import Settings

# Processed at once unless fewer are asked for; a compressed batch may hold millions.
POLL_RECORDS_MAX = 5000

logger = logging.getLogger(__name__)


class TopicFollower(ABC):
    """Reads topics without a group: each process sees every record."""

    def __init__(
        self,
        settings: Settings,
        *topics: str,
        poll_records_max: int = POLL_RECORDS_MAX,
        fetch_bytes_min: int = 1,
    ) -> None:
        """Follow these topics.

        Args:
            settings: of Kafka.
            topics: their names.
            poll_records_max: records processed at once.
            fetch_bytes_min: bytes that the broker waits for, half a second at most.
        """
        self._topics = topics
        self._settings = settings
        self._poll_records_max = poll_records_max
        self._fetch_bytes_min = fetch_bytes_min
        self._positions: dict[Partition, int] = {}
        self.set_aside = dict.fromkeys(topics, 0)
        """The number of unreadable or unprocessable records of each topic."""

    @abstractmethod
    def take(self, record: Record) -> None:
        """Process a readable record. If this raises, the record is skipped."""

    async def start(self) -> None:
        """Read the existing records, so that they are known before any decision."""
        # Without a group the client assigns itself every partition of the topics.
        self._consumer = AIOKafkaConsumer(
            *self._topics,
            **consumer_options(self._settings),
            fetch_min_bytes=self._fetch_bytes_min,
        )
        try:
            await self._consumer.start()
            await self._catch_up()
        except BaseException:
            await close_consumer(self._consumer)
            raise

    async def _catch_up(self) -> None:
        assigned = self._consumer.assignment()
        # Asked by another client: this one fetches already, and the broker, which delays that
        # answer for half a second if nothing is new, answers in order.
        async with reader(self._settings, asks=self._topics) as probe:
            ends = await probe.end_offsets(assigned)
            self._positions = await self._starts(probe, assigned)
        for partition, position in self._positions.items():
            self._consumer.seek(TopicPartition(*partition), position)
        behind = {partition: end for partition, end in ends.items() if end}
        while behind:
            await self.step(timeout_s=0.1)
            for partition in list(behind):
                if await self._consumer.position(partition) >= behind[partition]:
                    del behind[partition]

    async def _starts(
        self, consumer: AIOKafkaConsumer, assigned: Collection[TopicPartition]
    ) -> dict[Partition, int]:
        """Return the start offsets: the first record of each partition."""
        firsts = await consumer.beginning_offsets(assigned)
        return {Partition(*p): first for p, first in firsts.items()}

    async def step(self, timeout_s: float) -> None:
        """Process new records."""
        try:
            polled = await self._consumer.getmany(
                timeout_ms=int(timeout_s * 1000), max_records=self._poll_records_max
            )
            found = {Partition(*p): records_of(Partition(*p), rs) for p, rs in polled.items()}
        except CorruptRecordException:
            seek_back(self._consumer, self._positions)
            return
        for partition, records in found.items():
            for record in records:
                self._take_or_pass(record)
                self._positions[partition] = record.offset + 1

    def _take_or_pass(self, record: Record) -> None:
        try:
            # A malformed header name doesn't matter to readers of key and value.
            if not record.is_lost:
                self.take(record)
                return
            logger.warning("passed over: %s of %s", record.unreadable, record.partition)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            log_unexpected(error, f"passed over: offset {record.offset} of {record.partition}")
        self.set_aside[record.partition.topic] += 1

    async def stop(self) -> None:
        """Close the reader."""
        await close_consumer(self._consumer)
