"""State that a worker keeps of one partition of its lanes."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from streams.engine.log import Record
from streams.engine.stage import Effect
from topics import Progress


@dataclass(slots=True)
class InFlight:
    """Requests that a worker has taken and not finished, over all of its partitions."""

    count: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Lane:
    """State of one partition: the offsets taken, and those finished."""

    next_offset: int
    open: dict[int, int] = field(default_factory=dict)
    """Offsets that were taken and are not finished, and the bytes of each record."""
    in_flight: InFlight = field(default_factory=InFlight)
    """The sums of those of all partitions."""
    finished: set[int] = field(default_factory=set)
    """Offsets that are finished and visible, from the lowest one not finished or not read on."""
    ready: list[tuple[int, Effect]] = field(default_factory=list)
    """Finished, and in no transaction yet."""
    committing: list[int] = field(default_factory=list)
    """Offsets in the transaction under way; others may finish meanwhile."""
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    commit_at: float = 0.0
    """When the next commit may be, by the loop's clock, while the worker is busy."""

    def progress(self, committing: Sequence[int]) -> Progress:
        """Return the progress after a commit of these offsets."""
        done = self.finished.union(committing)
        still_open = self.open.keys() - committing
        lowest = min(still_open, default=self.next_offset)
        return Progress(lowest, tuple(sorted(offset for offset in done if offset >= lowest)))

    def take(self, record: Record) -> None:
        """Mark a record as open."""
        self.open[record.offset] = size = record.size_bytes
        self.in_flight.count += 1
        self.in_flight.bytes += size

    def committed(self, next_offset: int) -> None:
        """Mark the offsets of the commit as visible, with the given lowest open offset."""
        for offset in self.committing:
            self._finish(offset)
        self.finished.update(self.committing)
        self.finished = {offset for offset in self.finished if offset >= next_offset}
        self.committing = []

    def let_go(self) -> None:
        """Leave what is open to another process."""
        for offset in list(self.open):
            self._finish(offset)

    def _finish(self, offset: int) -> None:
        self.in_flight.bytes -= self.open.pop(offset)
        self.in_flight.count -= 1
