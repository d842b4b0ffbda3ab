"""A sliding window: the newest time slices, each with its tally."""

from collections import deque

from streams.live.counters import LiveCounters

SLICES = 30


class SlidingWindow:
    """Tallies of the last ``window_s`` seconds, in slices that expire one by one.

    It begins at the edge of a slice, so it is up to one slice, a thirtieth of it, shorter.
    """

    def __init__(self, window_s: float) -> None:
        self.window_s = window_s
        self._slice_s = window_s / SLICES
        self._slices: deque[tuple[int, LiveCounters]] = deque()

    def begins_at(self, now: float) -> float:
        """Return the start of the window, in epoch seconds."""
        return (self._number(now) - SLICES + 1) * self._slice_s

    def at(self, at: float, now: float) -> LiveCounters | None:
        """Return the tally of the slice of a time, to add to; None if it has expired."""
        self._leave(now)
        number = self._number(at)
        if number <= self._number(now) - SLICES:
            return None
        for index in range(len(self._slices) - 1, -1, -1):
            found, tally = self._slices[index]
            if found == number:
                return tally
            if found < number:
                self._slices.insert(index + 1, (number, tally := LiveCounters()))
                return tally
        self._slices.appendleft((number, tally := LiveCounters()))
        return tally

    def sum(self, now: float) -> LiveCounters:
        """Return the counts of the whole window."""
        self._leave(now)
        found = LiveCounters()
        for _, tally in self._slices:
            found.merge(tally)
        return found

    def _number(self, at: float) -> int:
        return int(at // self._slice_s)

    def _leave(self, now: float) -> None:
        first = self._number(now) - SLICES + 1
        while self._slices and self._slices[0][0] < first:
            self._slices.popleft()
