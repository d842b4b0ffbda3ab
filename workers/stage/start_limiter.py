"""Limit the rate of starts, so that requests do not all end at one moment."""

# So many may start at once; what goes beyond is spread. A thousand requests that began together end
# together at a server that takes as long for each, and again and again: reading and replacing them
# all took 0.2 to 0.3 s in which the server had nothing to do.
BURST = 100
PER_S = 1000.0
# Where calls are short more must start: all places may be filled anew in the time of a call.
CALL_S_MIN = 0.001
# That time is a mean in which the newest call has this weight.
NEWEST = 0.1


class StartLimiter:
    """A token bucket. Times are seconds from any origin that doesn't jump."""

    def __init__(self) -> None:
        self._tokens = float(BURST)
        self._at = 0.0
        self.call_s = 1.0
        """The time that a call takes of late, in seconds."""

    def ended(self, took_s: float) -> None:
        """Record the duration of a call, in seconds."""
        self.call_s += NEWEST * (max(took_s, 0.0) - self.call_s)

    def take(self, now: float, places: int) -> float:
        """Take a start and return 0.0, or return the seconds to wait for one.

        Args:
            now: the time.
            places: number of calls that can run at once.
        """
        per_s = max(PER_S, places / max(self.call_s, CALL_S_MIN))
        self._tokens = min(float(BURST), self._tokens + max(0.0, now - self._at) * per_s)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / per_s
        self._tokens -= 1.0
        return 0.0
