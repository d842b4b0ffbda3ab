"""Prefetch of the hold, before the group has assigned its partitions.

The partitions of a router that died are reassigned only when its session has ended, and then have
to be read again. A router that starts in its place is idle until then. So it reads the whole hold
from the beginning, and continues from there with the partitions it is assigned.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator

from mode import Service

from streams.batcher.partition_state import HeldPartition
from streams.engine.log import Log, Partition, Record
from streams.service import QuietService

# Records read ahead are no older than this when used. A request released meanwhile is dropped by
# its tombstone further on, as long as compaction leaves that in place: a day.
AHEAD_S_MAX = 60.0
# A router restarted in its place gets its share within this time, and reads only that.
GRACE_S = 0.7

logger = logging.getLogger(__name__)


class Prefetch:
    """Records of partitions that may become ours. It is best effort: ``claim`` may find none.

    Args:
        new: returns the empty memory of a partition.
        take: takes a record into such a memory.
        held_max: requests at which no more is read, over all partitions.
    """

    def __init__(
        self,
        new: Callable[[Partition], HeldPartition],
        take: Callable[[HeldPartition, Record], None],
        held_max: int,
    ) -> None:
        self._new = new
        self._take = take
        self._held_max = held_max
        self._found: dict[Partition, HeldPartition] = {}
        self._reading: asyncio.Task[None] | None = None
        self._over = asyncio.Event()

    def __iter__(self) -> Iterator[HeldPartition]:
        """Yield the records of each unclaimed partition."""
        return iter(self._found.values())

    async def run(self, log: Log, partitions: Collection[Partition]) -> None:
        """Read the partitions, until one is claimed or the records are too old."""
        if self._over.is_set():
            return
        self._reading = asyncio.ensure_future(self._read(log, partitions))
        try:
            async with asyncio.timeout(AHEAD_S_MAX):
                await self._reading
                await self._over.wait()
        except TimeoutError:
            self.end()
        except asyncio.CancelledError:
            if not self._over.is_set():
                raise
        except Exception as error:  # noqa: BLE001 - whoever takes a partition over meets it too
            logger.warning("the hold is not read ahead: %s", error)
            self.end()

    def claim(self, partition: Partition) -> HeldPartition | None:
        """Return the records of a partition that is ours now, and stop reading ahead."""
        self._stop()
        return self._found.pop(partition, None)

    def end(self) -> None:
        """Forget all unclaimed records."""
        self._stop()
        for held in self._found.values():
            held.payloads.clear()
        self._found.clear()

    def _stop(self) -> None:
        self._over.set()
        if self._reading is not None:
            self._reading.cancel()

    async def _read(self, log: Log, partitions: Collection[Partition]) -> None:
        starts = {p: first for p, (first, _) in (await log.bounds(partitions)).items()}
        for partition, first in starts.items():
            held = self._found[partition] = self._new(partition)
            held.next_offset = first
        async for records in log.read(starts):
            for record in records:
                self._take(self._found[record.partition], record)
            if sum(len(held.windows) for held in self) >= self._held_max:
                return


class PrefetchService(QuietService):
    """Reads ahead when the process starts."""

    def __init__(self, read_ahead: Callable[[Log], Awaitable[None]], log: Log) -> None:
        super().__init__()
        self._read_ahead = read_ahead
        self._log = log

    @Service.task  # type: ignore[untyped-decorator]
    async def _run(self) -> None:
        await self.sleep(GRACE_S)
        if not self.should_stop:
            await self._read_ahead(self._log)
