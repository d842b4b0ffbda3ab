"""Quantiles of what was counted, in memory that does not grow with the count."""

import math
from collections import Counter
from dataclasses import dataclass, field

# Each bucket is so much wider than the one below it, so a quantile is off by 2 % at most.
GROWTH = 1.04
LEAST = 1e-4
_LOG_GROWTH = math.log(GROWTH)


@dataclass(slots=True)
class Histogram:
    """Counts of positive numbers in buckets that grow by ``GROWTH``; what is below ``LEAST`` is it.

    Two of them can be added, so that a window is the sum of its slices.
    """

    counts: Counter[int] = field(default_factory=Counter)

    def add(self, value: float) -> None:
        """Count a value."""
        self.counts[math.floor(math.log(max(value, LEAST)) / _LOG_GROWTH)] += 1

    def merge(self, other: "Histogram") -> None:
        """Count what another has counted."""
        self.counts.update(other.counts)

    def quantile(self, share: float) -> float | None:
        """Return the value at a share (0 to 1) of the counts, by nearest rank; None of nothing."""
        rank = math.ceil(share * self.counts.total())
        for bucket in sorted(self.counts):
            rank -= self.counts[bucket]
            if rank <= 0:
                return math.exp((bucket + 0.5) * _LOG_GROWTH)
        return None
