"""Reader of the live view's topics: compacted ones in whole, the evidence from recently on."""

import asyncio
from collections.abc import Collection

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.engine.clock import Clock
from streams.engine.log import Partition, Record
from streams.kafka.follower import TopicFollower
from streams.live.view import LiveView
from topics import Settings

# Processed within about 2 ms, so that the rest of the process is not delayed.
POLL_RECORDS_MAX = 100
# One answer of the broker for some 20 steps, not one for each: most of the work of following quiet
# topics is answers. If less comes, the view is half a second late.
FETCH_BYTES_MIN = 64 * 1024


class LiveFollower(TopicFollower):
    """Keeps a live view up to date, from its ``since`` on."""

    def __init__(self, settings: Settings, view: LiveView, clock: Clock) -> None:
        super().__init__(
            settings,
            *view.topics,
            poll_records_max=POLL_RECORDS_MAX,
            fetch_bytes_min=FETCH_BYTES_MIN,
        )
        self._view = view
        self._clock = clock
        self.is_current = False
        """Whether all records that existed at the start have been read."""

    def take(self, record: Record) -> None:
        """Process a record."""
        self._view.take(record, self._clock.now())

    async def start(self) -> None:
        """Read the existing records."""
        await super().start()
        self.is_current = True

    async def step(self, timeout_s: float) -> None:
        """Process some new records, then yield to the rest of the process."""
        await super().step(timeout_s)
        # Buffered records are returned without waiting for anything.
        await asyncio.sleep(0)

    async def _starts(
        self, consumer: AIOKafkaConsumer, assigned: Collection[TopicPartition]
    ) -> dict[Partition, int]:
        starts = await super()._starts(consumer, assigned)
        recent = [p for p in assigned if p.topic not in self._view.whole_topics]
        since_ms = int(self._view.since * 1000)
        # Asked first: records that arrive before the next answer are then not skipped.
        ends = await consumer.end_offsets(recent)
        # A record is stamped when it is sent, after its step.
        found = await consumer.offsets_for_times(dict.fromkeys(recent, since_ms))
        for partition in recent:
            first = found.get(partition)
            starts[Partition(*partition)] = ends[partition] if first is None else first.offset
        return starts
