"""Arrival rates of batch groups: how soon a batch would fill."""

import math

from topics.bounded_dict import BoundedDict

# Seconds over which an old arrival loses its weight, unless windows are shorter.
MEMORY_S = 30.0
# A group not seen for this many times as long starts from the prior again.
FORGET = 20
GROUPS_MAX = 10_000


class Arrivals:
    """An exponentially weighted arrival rate per group, in requests per second."""

    def __init__(self, prior_per_s: float, memory_s: float = MEMORY_S) -> None:
        self._prior_per_s = prior_per_s
        self._memory_s = memory_s
        self._seen: BoundedDict[str, tuple[float, float]] = BoundedDict(GROUPS_MAX)

    def under(self, prior_per_s: float, memory_s: float) -> "Arrivals":
        """Return these arrivals with another prior and memory; both share the observations."""
        found = Arrivals(prior_per_s, memory_s)
        found._seen = self._seen
        return found

    def observe(self, group: str, now: float) -> None:
        """Count one arrival. Time that goes backwards counts as zero."""
        rate, last = self._seen.get(group, (self._prior_per_s, now))
        if now - last > FORGET * self._memory_s:
            rate, last = self._prior_per_s, now
        decay = math.exp(-max(0.0, now - last) / self._memory_s)
        self._seen.put(group, (rate * decay + 1.0 / self._memory_s, max(now, last)))

    def rate_per_s(self, group: str, now: float) -> float:
        """Return the rate at which the group's requests arrive, by all that came."""
        if group not in self._seen:
            return self._prior_per_s
        rate, last = self._seen[group]
        elapsed_s = max(0.0, now - last)
        if elapsed_s > FORGET * self._memory_s:
            return self._prior_per_s
        return rate * math.exp(-elapsed_s / self._memory_s)

    def rate_besides(self, group: str, arrived: float, now: float) -> float:
        """Return the rate by all that came but one, which says nothing of how soon others come.

        Args:
            group: the group.
            arrived: when that one came, epoch seconds.
            now: epoch seconds.
        """
        own = math.exp(-max(0.0, now - arrived) / self._memory_s) / self._memory_s
        return max(0.0, self.rate_per_s(group, now) - own)
