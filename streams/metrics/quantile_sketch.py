"""Quantiles of a stream of values, in memory that does not grow with the count."""

import math
from collections import Counter

# Each bucket is wider than the one below it by this, so that a quantile is off by 2 % at most.
GROWTH = 1.04
_LOG = math.log(GROWTH)
# Below every bucket that a value of a nanosecond or more has.
_ZERO = -1000


class QuantileSketch:
    """Counts of values in growing buckets, after DDSketch (Masson, Rim, Lee, 2019).

    Sketches can be added, so that a window is the sum of its slices.
    """

    __slots__ = ("buckets", "total")

    def __init__(self) -> None:
        self.buckets: Counter[int] = Counter()
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value, 0 or more; negative values count as 0."""
        self.buckets[_ZERO if value < 1e-9 else math.ceil(math.log(value) / _LOG)] += 1
        self.total += max(0.0, value)

    def merge(self, other: "QuantileSketch") -> None:
        """Add another's counts."""
        self.buckets.update(other.buckets)
        self.total += other.total

    @property
    def mean(self) -> float | None:
        """The mean; None if empty."""
        return self.total / self.buckets.total() if self.buckets else None

    def quantile(self, share: float) -> float | None:
        """Return the value at a share (0 to 1) of the counts, by nearest rank; None if empty."""
        rank = math.ceil(share * self.buckets.total())
        for index in sorted(self.buckets):
            rank -= self.buckets[index]
            if rank <= 0:
                return 0.0 if index == _ZERO else 2 * GROWTH**index / (GROWTH + 1)
        return None
