"""Following a topic: read from its beginning, then on and on, by each process for itself."""

from abc import ABC, abstractmethod

from aiokafka import AIOKafkaConsumer

from streams.kafka import consumer_options
from streams.log import Partition, Record
from streams.undecodable import UNDECODABLE, poll_past_undecodable, records_of
from topics import Settings


class TopicFollower(ABC):
    """Reads a topic. Assigned, not by group: each process sees every record."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._topic = topic
        self._settings = settings
        self._positions: dict[Partition, int] = {}

    @abstractmethod
    def take(self, record: Record) -> None:
        """Take a record in. May not raise: nothing is lost by a record that is passed over."""

    async def start(self) -> None:
        """Read what there is, so that it is known before anything is decided."""
        # Without a group the client assigns itself every partition of the topic.
        self._consumer = AIOKafkaConsumer(self._topic, **consumer_options(self._settings))
        await self._consumer.start()
        assigned = self._consumer.assignment()
        firsts = await self._consumer.beginning_offsets(assigned)
        self._positions = {Partition(*p): first for p, first in firsts.items()}
        ends = await self._consumer.end_offsets(assigned)
        behind = {partition: end for partition, end in ends.items() if end}
        while behind:
            await self._read(0.1)
            for partition in list(behind):
                if await self._consumer.position(partition) >= behind[partition]:
                    del behind[partition]

    async def step(self, timeout_s: float) -> None:
        """Take in what has come."""
        await self._read(timeout_s)

    async def _read(self, timeout_s: float) -> None:
        try:
            polled = await self._consumer.getmany(timeout_ms=int(timeout_s * 1000))
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
