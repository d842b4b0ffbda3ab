"""Following topics: read from the beginning, then on and on, by each process for itself."""

from abc import ABC, abstractmethod
from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.log import Partition, Record
from streams.reader import consumer_options, reader
from streams.undecodable import UNDECODABLE, poll_past_undecodable, records_of
from topics import Settings


class TopicFollower(ABC):
    """Reads topics. Assigned, not by group: each process sees every record."""

    def __init__(
        self,
        settings: Settings,
        *topics: str,
        poll_records_max: int | None = None,
        fetch_bytes_min: int = 1,
    ) -> None:
        """Follow these topics.

        Args:
            settings: where they are.
            topics: their names.
            poll_records_max: how many are taken in at once; None for all that have come.
            fetch_bytes_min: what the broker waits for, half a second at most, before it answers.
        """
        self._topics = topics
        self._settings = settings
        self._poll_records_max = poll_records_max
        self._fetch_bytes_min = fetch_bytes_min
        self._positions: dict[Partition, int] = {}

    @abstractmethod
    def take(self, record: Record) -> None:
        """Take a record in. May not raise: nothing is lost by a record that is passed over."""

    async def start(self) -> None:
        """Read what there is, so that it is known before anything is decided."""
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
            await self._consumer.stop()
            raise

    async def _catch_up(self) -> None:
        assigned = self._consumer.assignment()
        # Asked by another client: this one fetches already, and the broker, which holds the answer
        # to that back for half a second where nothing is new, answers one after the other.
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
        """Return where to begin: at the first record there is."""
        firsts = await consumer.beginning_offsets(assigned)
        return {Partition(*p): first for p, first in firsts.items()}

    async def step(self, timeout_s: float) -> None:
        """Take in what has come."""
        try:
            polled = await self._consumer.getmany(
                timeout_ms=int(timeout_s * 1000), max_records=self._poll_records_max
            )
            found = {Partition(*p): records_of(Partition(*p), rs) for p, rs in polled.items()}
        except UNDECODABLE:
            wanted = self._consumer.assignment()
            found = await poll_past_undecodable(self._consumer, wanted, self._positions)
        for partition, records in found.items():
            for record in records:
                self.take(record)
                self._positions[partition] = record.offset + 1

    async def stop(self) -> None:
        """Close the reader."""
        await self._consumer.stop()
