"""Quantiles of many values in little memory, each right to a few per cent."""

import math

# A bucket is wider than the one below it by this, so that a quantile is off by 2 % at most.
GROWTH = 1.04
_LOG = math.log(GROWTH)
# Below every bucket that a value of a nanosecond or more has.
_ZERO = -1000


class Sketch:
    """Counts of values in buckets that grow, after DDSketch (Masson, Rim, Lee, 2019)."""

    __slots__ = ("buckets", "count", "total")

    def __init__(self) -> None:
        self.buckets: dict[int, int] = {}
        self.count = 0
        self.total = 0.0

    def add(self, value: float) -> None:
        """Count a value, 0 or more; what is less counts as 0."""
        index = _ZERO if value < 1e-9 else math.ceil(math.log(value) / _LOG)
        self.buckets[index] = self.buckets.get(index, 0) + 1
        self.count += 1
        self.total += max(0.0, value)

    @property
    def mean(self) -> float | None:
        """The mean; None of nothing."""
        return self.total / self.count if self.count else None

    def quantile(self, share: float) -> float | None:
        """Return the value below which this share of all lies; None of nothing."""
        rank, seen = share * (self.count - 1), 0
        for index in sorted(self.buckets):
            seen += self.buckets[index]
            if seen > rank:
                return 0.0 if index == _ZERO else 2 * GROWTH**index / (GROWTH + 1)
        return None
