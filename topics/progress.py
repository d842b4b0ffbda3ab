"""Progress: how far a stage has come on a partition, kept as data.

The group offset alone is not enough: a broker killed between a transaction's commit and its
marker on ``__consumer_offsets`` shows the records but loses the offset (docs/decisions/0002).
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """All offsets below ``next_offset`` are finished, and so are those in ``finished``."""

    next_offset: int
    finished: tuple[int, ...] = ()

    def further(self, other: "Progress | None") -> "Progress":
        """Return whichever of the two has come further."""
        return self if other is None or self.next_offset >= other.next_offset else other


def progress_key(group: str, topic: str, partition: int) -> bytes:
    """Return the key of a stage's progress record on the progress topic."""
    return f"{group}/{topic}/{partition}".encode()
