"""The offsets that a consumer group tells Kafka, for tools that show lag and for autoscalers.

They are not part of the transactions: progress is (``streams/engine/progress.py``). In each of them
they would cost two more requests to the broker, two writes and one more marker, as much as all the
rest at a steady load (docs/decisions/0029). So they follow, once a second.
"""

import asyncio
import logging
from collections.abc import Collection

from streams.engine.log import Log, LogError, Partition

logger = logging.getLogger(__name__)

EVERY_S = 1.0
# Of the last time before the end of a process.
LAST_S_MAX = 1.0


class GroupOffsets:
    """Tells the group how far its partitions are done, now and then, and beside all other work."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._untold: dict[Partition, int] = {}
        self._being_told: dict[Partition, int] = {}
        self._telling: asyncio.Task[None] | None = None
        self._next_at = 0.0

    def moved(self, partition: Partition, next_offset: int) -> None:
        """Note that all below an offset is done, and tell if it is time."""
        self._untold[partition] = next_offset
        self.tell_if_due()

    def forget(self, partitions: Collection[Partition]) -> None:
        """Leave partitions to their next owner."""
        for partition in partitions:
            self._untold.pop(partition, None)
            self._being_told.pop(partition, None)

    def tell_if_due(self) -> None:
        """Begin to tell what is not told, unless that was done less than a second ago."""
        now = asyncio.get_running_loop().time()
        if not self._untold or self._telling is not None or now < self._next_at:
            return
        self._next_at = now + EVERY_S
        self._telling = asyncio.create_task(self._tell())
        self._telling.add_done_callback(self._told)

    async def tell_last(self) -> None:
        """Tell what is not told before the process leaves the group."""
        try:
            async with asyncio.timeout(LAST_S_MAX):
                if self._telling is not None:
                    await self._telling
                await self._tell()
        except TimeoutError:
            logger.debug("the group was not told of its last offsets")

    async def _tell(self) -> None:
        self._being_told, self._untold = self._untold, {}
        if self._being_told:
            try:
                await self._log.commit_offsets(dict(self._being_told))
            except LogError as error:
                logger.debug("the group was not told of its offsets: %r", error)
                # But not what is another's since.
                self._untold = self._being_told | self._untold

    def _told(self, telling: "asyncio.Task[None]") -> None:
        self._telling = None
        if not telling.cancelled() and (error := telling.exception()) is not None:
            logger.warning("the group can't be told of its offsets: %r", error)
