"""Following the heartbeats: every router and batcher reads all of them."""

import logging

from aiokafka import AIOKafkaConsumer, TopicPartition

from policies import FleetView
from streams.kafka import consumer_options
from streams.log import Record
from topics import BadRecordError, Catalogue, PoolStatus, Settings, decode

logger = logging.getLogger(__name__)


class FleetFollower:
    """Keeps a fleet view up to date. Assigned, not by group: each process sees every heartbeat."""

    def __init__(self, settings: Settings, view: FleetView) -> None:
        self._topic = Catalogue(settings).pool_status
        self._settings = settings
        self._view = view

    async def start(self) -> None:
        """Read what there is, so that the first decision knows the fleet."""
        self._consumer = AIOKafkaConsumer(**consumer_options(self._settings))
        await self._consumer.start()
        numbers = await self._numbers()
        partitions = [TopicPartition(self._topic, number) for number in sorted(numbers)]
        self._consumer.assign(partitions)
        await self._consumer.seek_to_beginning(*partitions)
        behind = {
            p: end for p, end in (await self._consumer.end_offsets(partitions)).items() if end
        }
        while behind:
            await self.step(0.1)
            for partition in list(behind):
                if await self._consumer.position(partition) >= behind[partition]:
                    del behind[partition]

    async def _numbers(self) -> set[int]:
        numbers: set[int] | None = self._consumer.partitions_for_topic(self._topic)
        if not numbers:
            raise LookupError(
                f"topic {self._topic} does not exist: run `shunter topics apply` first"
            )
        return numbers

    async def step(self, timeout_s: float) -> None:
        """Take in the heartbeats that have come."""
        polled = await self._consumer.getmany(timeout_ms=int(timeout_s * 1000))
        for records in polled.values():
            for record in records:
                self._take(record)

    async def stop(self) -> None:
        """Close the reader."""
        await self._consumer.stop()

    def _take(self, record: Record) -> None:
        if record.value is None:
            return
        try:
            self._view.report(decode(PoolStatus, record.value))
        except BadRecordError as error:
            # A view that misses a heartbeat is a little older; nothing is lost by it.
            logger.warning("a heartbeat of %s is unreadable: %s", record.key, error.message)
