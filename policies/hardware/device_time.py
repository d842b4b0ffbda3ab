"""Device time charged to each of the requests that share a server."""


class DeviceShare:
    """Divides the time of replicas evenly among their running requests.

    A server doesn't report the time per request. While more requests run than there are replicas,
    each is charged its share of the time; one that has a replica to itself is charged all of it.
    So a share also gives the mean number of requests while one ran. Times are seconds from any
    origin that doesn't jump.
    """

    def __init__(self, replicas: int) -> None:
        self._replicas = replicas
        self._running = 0
        self._at = 0.0
        self._charged_s = 0.0

    @property
    def running(self) -> int:
        """Requests that run now."""
        return self._running

    def begin(self, now: float, answers: int = 1) -> float:
        """Count a request as running, each of its answers as one; return a mark for ``end``."""
        self._advance(now)
        self._running += answers
        return self._charged_s

    def end(self, mark: float, now: float, answers: int = 1) -> float:
        """Count the request as ended; return its device time to charge, in seconds."""
        self._advance(now)
        self._running -= answers
        return (self._charged_s - mark) * answers

    def _advance(self, now: float) -> None:
        if self._running:
            share = min(1.0, self._replicas / self._running)
            self._charged_s += max(0.0, now - self._at) * share
        self._at = now
