"""The time that a request takes from a router's decision to its pool, as a worker sees it."""

from math import exp, log

# Weight of the newest request in the mean: the last fifty or so count.
NEWEST = 0.04
# Less is no time that two processes can tell. More is a topic that nobody read for a while, which
# must not keep the next requests away.
SHORTEST_S, LONGEST_S = 1e-3, 0.5


class Transport:
    """An exponentially weighted mean in the log: what most requests take, and not the slowest."""

    def __init__(self) -> None:
        self._log = 0.0
        self._known = 0.0

    def learn(self, took_s: float) -> None:
        """Learn from one request's seconds from the decision to the worker that took it."""
        took = log(min(LONGEST_S, max(SHORTEST_S, took_s)))
        self._log = took if not self._known else self._log + NEWEST * (took - self._log)
        self._known += NEWEST * (1.0 - self._known)

    @property
    def usual_s(self) -> float | None:
        """Seconds that most requests take; None before the first."""
        return round(exp(self._log), 4) if self._known else None

    @property
    def known(self) -> float:
        """The measured part of that, 0 to 1; the rest is the policy's."""
        return round(self._known, 3)
