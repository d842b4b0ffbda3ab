"""Times at which those who were turned away may come again, each at one of its own."""

from bisect import bisect_left, bisect_right, insort
from collections import deque

from topics.bounded_dict import BoundedDict

# OpenAI's clients obey no longer wait than this.
WAIT_S_MAX = 60.0
# Ends are counted over so long, in seconds, to tell how fast places become free.
ENDS_S = 10.0
# A place is kept for who is to come within this time, and as long as one who waits whole seconds
# may be late.
AHEAD_S, LATE_S = 0.5, 1.25
# Who comes later than that, as on a busy machine, finds no place kept, and still goes before those
# who have never been here: else it would wait for the whole queue again.
KNOWN_S = 15.0
# So few who wait keep nobody out: most often nobody else comes.
SPARE = 2
# One who comes up to this much before its time is as good as there.
EARLY_S = 0.25
# Some give up: so much more than is served is given out, and who finds no place waits a little.
SURPLUS = 1.02
PROMISES_MAX = 50_000
TENANTS_MAX = 10_000
# Behind every name.
_LAST = b"\xff" * 8


class Places:
    """A queue of those who wait outside: places are given in the order in which they first came.

    Who is turned away gets a time at which, as fast as places become free, one should be; who
    comes then goes before those who have never been here. Nothing but memory is lost with it.

    Args:
        most: places.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self.taken = 0
        self._line: list[tuple[float, bytes]] = []
        self._times: dict[bytes, list[float]] = {}
        self._next_at = 0.0
        self._ends: deque[float] = deque()

    def take(self, name: bytes, now: float) -> float:
        """Take a place and return 0, or return the seconds after which to come again.

        Args:
            name: the same when somebody comes again; several may have the same.
            now: epoch seconds.
        """
        self._forget(now)
        times = self._times.get(name)
        is_due = times is not None and times[0] <= now + EARLY_S
        free = self.most - self.taken
        if not is_due:
            past = bisect_left(self._line, (now - LATE_S, b""))
            kept = bisect_right(self._line, (now + AHEAD_S, _LAST)) - past
            if times is None:
                free -= max(0, kept - SPARE)
            else:
                # It comes early: those before it have theirs all the same.
                free -= min(kept, bisect_left(self._line, (times[0], name)) - past)
        if times is not None and (is_due or free > 0):
            self._withdraw(name, times[0])
        if free > 0:
            self.taken += 1
            return 0.0
        gap_s = 1.0 / (SURPLUS * self.per_s(now))
        if is_due:
            # It waits on, before all that were promised a later time.
            at = now + max(gap_s, EARLY_S)
        else:
            at = self._next_at = min(max(now, self._next_at) + gap_s, now + WAIT_S_MAX)
        if len(self._line) < PROMISES_MAX:
            insort(self._line, (at, name))
            insort(self._times.setdefault(name, []), at)
        return at - now

    def leave(self, now: float) -> None:
        """Give a place back."""
        self.taken -= 1
        self._ends.append(now)
        # Here too: where nobody is turned away nobody asks how fast places become free.
        self._forget_ends(now)

    def per_s(self, now: float) -> float:
        """Return how many places become free in a second, by the last few; one if none did."""
        self._forget_ends(now)
        if len(self._ends) < 2:
            return 1.0
        return len(self._ends) / max(now - self._ends[0], 0.1)

    def _forget_ends(self, now: float) -> None:
        while self._ends and not 0.0 <= now - self._ends[0] <= ENDS_S:
            self._ends.popleft()

    def _withdraw(self, name: bytes, at: float) -> None:
        del self._line[bisect_left(self._line, (at, name))]
        times = self._times[name]
        times.remove(at)
        if not times:
            del self._times[name]

    def _forget(self, now: float) -> None:
        """Forget those whose time has long passed, and who have not come."""
        for at, name in self._line[: bisect_left(self._line, (now - KNOWN_S, b""))]:
            self._withdraw(name, at)


class WindowTurns:
    """Turns of tenants, whose rates count by windows: one is promised until it is full."""

    def __init__(self) -> None:
        self._promised: BoundedDict[str, tuple[int, int]] = BoundedDict(TENANTS_MAX)

    def wait_s(self, tenant: str, now: float, rate_per_s: float, window_s: float) -> float:
        """Return the seconds until the first window with a turn left, and take that."""
        first = int(now // window_s) + 1
        number, count = self._promised.get(tenant, (first, 0))
        if number < first:
            number, count = first, 0
        elif count + 0.5 > rate_per_s * window_s:
            number, count = number + 1, 0
        if number > first and number * window_s > now + WAIT_S_MAX:
            number, count = first, 0
        self._promised.put(tenant, (number, count + 1))
        return number * window_s - now
