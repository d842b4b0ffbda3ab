"""Sketches: the distribution of positive numbers in a few counts that can be added."""

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from math import ceil, log2

BINS_PER_DOUBLING = 4
# From 1/16 to 2^17, whatever is measured: 84 bins, of which few are ever in use.
LEAST = 1 / 16
BINS_MAX = 84


def bin_of(value: float) -> int:
    """Return the bin of a value; values out of range count in the first or the last bin."""
    if value <= LEAST:
        return 0
    return min(BINS_MAX - 1, ceil(BINS_PER_DOUBLING * log2(value / LEAST)))


def upper_end(index: float) -> float:
    """Return the largest value of a bin; a fraction lies between two bins."""
    return float(LEAST * 2.0 ** (index / BINS_PER_DOUBLING))


class DecayingHistogram:
    """Counts in bins that grow by 2^(1/4); newer values count for more.

    Args:
        memory: approximate number of the newest values that count.
    """

    def __init__(self, memory: int) -> None:
        self._kept = 1.0 - 1.0 / memory
        self._counts: dict[int, float] = {}
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count a value, and reduce the weight of earlier ones."""
        self.fade()
        self._sum += value
        index = bin_of(value)
        self._counts[index] = self._counts.get(index, 0.0) + 1.0

    def fade(self) -> None:
        """Reduce the weight of all values as if one more had been counted."""
        self._sum *= self._kept
        for index in self._counts:
            self._counts[index] *= self._kept

    @property
    def total(self) -> float:
        """Weight of all values counted, after decay."""
        return sum(self._counts.values())

    @property
    def mean(self) -> float:
        """Mean of the values counted."""
        return self._sum / self.total

    def counts(self) -> tuple[float, ...]:
        """Return the first bin in use, then the counts from it to the last one, rounded."""
        used = [index for index, count in self._counts.items() if count >= 0.05]
        if not used:
            return ()
        first = min(used)
        rounded = (round(self._counts.get(i, 0.0), 1) for i in range(first, max(used) + 1))
        return (float(first), *rounded)


def merged(each: Iterable[Sequence[float]]) -> list[float]:
    """Return the counts of all bins from the first, given the results of `counts`."""
    total: list[float] = []
    for first, *counts in filter(None, each):
        start = min(max(0, int(first)), BINS_MAX)
        spread = [0.0] * start + counts[: BINS_MAX - start]
        total = [a + b for a, b in zip_longest(total, spread, fillvalue=0.0)]
    return total


def quantile(counts: Sequence[float], share: float) -> float:
    """Return the value below which this share lies, interpolated in its bin; 0.0 if empty."""
    wanted, below = share * sum(counts), 0.0
    for index, count in enumerate(counts):
        if count > 0 and below + count >= wanted:
            return upper_end(index - 1 + (wanted - below) / count)
        below += count
    return 0.0
