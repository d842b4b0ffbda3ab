"""Curves: piecewise constant functions of time, by which prices and carbon intensity move."""

from bisect import bisect_right
from dataclasses import dataclass
from math import inf
from typing import Protocol

MINUTES_OF_DAY = 1440
DAY_S = 86_400.0
WEEK_S = 7 * DAY_S
# The epoch was a Thursday; weeks begin on Monday.
EPOCH_IN_WEEK_S = 3 * DAY_S
# What is rounded to just before a change is taken as the change.
GRAIN_S = 1e-6


class Curve(Protocol):
    """A value by time, epoch seconds; constant between changes."""

    @property
    def known_ahead_s(self) -> float | None:
        """Seconds ahead of the present for which it is known; None: for ever."""

    def at(self, time: float) -> float:
        """Return the value at a time."""

    def next_change(self, time: float) -> float:
        """Return the first time after this one at which the value may change; inf if never."""


@dataclass(frozen=True, slots=True)
class Steps:
    """A value from each time on; before the first it is the first one's."""

    times: tuple[float, ...]
    values: tuple[float, ...]
    known_ahead_s: float | None = None

    def at(self, time: float) -> float:
        """Return the value at a time."""
        return self.values[max(0, bisect_right(self.times, time) - 1)]

    def next_change(self, time: float) -> float:
        """Return when the next step begins; the first is none, since its value holds before."""
        place = max(1, bisect_right(self.times, time))
        return self.times[place] if place < len(self.times) else inf


@dataclass(frozen=True, slots=True)
class Week:
    """A value by the hour of the week in a time zone.

    ``starts`` are seconds from Monday, 0:00, on. ``offsets`` are the times from which on the zone
    is so many seconds ahead of UTC.
    """

    starts: tuple[float, ...]
    values: tuple[float, ...]
    offsets: tuple[tuple[float, float], ...]
    known_ahead_s: float | None = None

    def at(self, time: float) -> float:
        """Return the value at a time."""
        return self.values[bisect_right(self.starts, self._in_week(time)) - 1]

    def next_change(self, time: float) -> float:
        """Return when the next hours begin, or the zone changes its clocks."""
        here = self._in_week(time)
        place = bisect_right(self.starts, here)
        start = self.starts[place] if place < len(self.starts) else WEEK_S
        zone = bisect_right(self.offsets, (time, inf))
        shifts = self.offsets[zone][0] if zone < len(self.offsets) else inf
        return min(time + max(GRAIN_S, start - here), shifts)

    def _in_week(self, time: float) -> float:
        zone = max(0, bisect_right(self.offsets, (time, inf)) - 1)
        local = (time + self.offsets[zone][1] + EPOCH_IN_WEEK_S) % WEEK_S
        # Sums of large numbers miss a change by some nanoseconds.
        place = bisect_right(self.starts, local)
        near = self.starts[place] if place < len(self.starts) else WEEK_S
        return local if near - local > GRAIN_S else near % WEEK_S


def horizon(curve: Curve, now: float | None) -> float:
    """Return the time until which a curve is known at ``now``; inf without a ``now``."""
    ahead_s = curve.known_ahead_s
    return inf if now is None or ahead_s is None else now + ahead_s


def mean(curve: Curve, begin: float, end: float, now: float | None = None) -> float:
    """Return the mean value over a span, or the value at its beginning if it has no length.

    Args:
        curve: the values.
        begin: epoch seconds.
        end: the same.
        now: the present, beyond which no more is known than the curve says; None: all of it is.
    """
    known_until = horizon(curve, now)
    at = min(begin, known_until)
    last = min(end, known_until)
    value, change = curve.at(at), curve.next_change(at)
    # Most spans have one value, which is then told to the last digit.
    if change >= last:
        return value
    total = 0.0
    while change < last:
        total += value * (change - at)
        at, value = change, curve.at(change)
        change = curve.next_change(at)
    return (total + value * (end - at)) / (end - begin)
