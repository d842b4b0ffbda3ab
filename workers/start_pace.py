"""The pace at which requests are started, so that they do not all end at one moment too."""

# So many may start at once; what goes beyond is spread. A thousand requests that began together end
# together at a server that takes as long for each, and again and again: reading and replacing them
# all took 0.2 to 0.3 s in which the server had nothing to do.
BURST = 100
PER_S = 1000.0


class StartPace:
    """A token bucket. Times are seconds from any origin that doesn't jump."""

    def __init__(self) -> None:
        self._tokens = float(BURST)
        self._at = 0.0

    def take(self, now: float) -> float:
        """Take a start; return 0.0, or the seconds to wait where there is none to take."""
        self._tokens = min(float(BURST), self._tokens + max(0.0, now - self._at) * PER_S)
        self._at = now
        if self._tokens < 1.0:
            return (1.0 - self._tokens) / PER_S
        self._tokens -= 1.0
        return 0.0
