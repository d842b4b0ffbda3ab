"""Following the heartbeats: every router and batcher reads all of them."""

import logging

from aiokafka import AIOKafkaConsumer

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
        # Without a group the client assigns itself every partition of the topic.
        self._consumer = AIOKafkaConsumer(self._topic, **consumer_options(self._settings))
        await self._consumer.start()
        ends = await self._consumer.end_offsets(self._consumer.assignment())
        behind = {partition: end for partition, end in ends.items() if end}
        while behind:
            await self.step(timeout_s=0.1)
            for partition in list(behind):
                if await self._consumer.position(partition) >= behind[partition]:
                    del behind[partition]

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
