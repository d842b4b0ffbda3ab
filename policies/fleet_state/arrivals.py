"""Arrival rates of batch groups: how soon a batch would fill."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from topics.bounded_dict import BoundedDict

# Seconds over which an old arrival loses its weight, unless windows are shorter.
MEMORY_S = 30.0
# A group not seen for this many times as long starts from the prior again.
FORGET = 20
GROUPS_MAX = 10_000


@dataclass(slots=True)
class _Observed:
    """Rate and time of the last arrival by group, and the share of all arrivals that is seen."""

    groups: BoundedDict[str, tuple[float, float]] = field(
        default_factory=lambda: BoundedDict(GROUPS_MAX)
    )
    part: float = 1.0


class Arrivals:
    """An exponentially weighted arrival rate per group, in requests per second.

    It is that of the installation: one of several routers sees a part of what arrives, and each
    arrival that it sees counts for those that the others see meanwhile. A group's window is one
    for all of them.
    """

    def __init__(self, prior_per_s: float, memory_s: float = MEMORY_S) -> None:
        self._prior_per_s = prior_per_s
        self._memory_s = memory_s
        self._observed = _Observed()

    def under(self, prior_per_s: float, memory_s: float) -> "Arrivals":
        """Return these arrivals with another prior and memory; both share the observations."""
        found = Arrivals(prior_per_s, memory_s)
        found._observed = self._observed
        return found

    def see_part(self, part: float) -> None:
        """Set the part of all arrivals that is observed from now on; 0 leaves it as it is."""
        if part > 0:
            self._observed.part = part

    def observe(self, group: str, now: float) -> None:
        """Count one arrival. Time that goes backwards counts as zero."""
        rate, last = self._observed.groups.get(group, (self._prior_per_s, now))
        if now - last > FORGET * self._memory_s:
            rate, last = self._prior_per_s, now
        decay = math.exp(-max(0.0, now - last) / self._memory_s)
        self._observed.groups.put(group, (rate * decay + self._one_per_s, max(now, last)))

    def recall(self, group: str, times: Iterable[float]) -> None:
        """Learn of a group that nobody has seen here from those of it that are held.

        Args:
            group: the group.
            times: when each of them came, one at least; epoch seconds.
        """
        if group in self._observed.groups:
            return
        first, *others = sorted(times)
        rate, last = self._prior_per_s + 1.0 / self._memory_s, first
        for at in others:
            rate = rate * math.exp((last - at) / self._memory_s) + 1.0 / self._memory_s
            last = at
        self._observed.groups.put(group, (rate, last))

    def rate_per_s(self, group: str, now: float) -> float:
        """Return the rate at which the group's requests arrive, by all that came."""
        if group not in self._observed.groups:
            return self._prior_per_s
        rate, last = self._observed.groups[group]
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
        own = math.exp(-max(0.0, now - arrived) / self._memory_s) * self._one_per_s
        return max(0.0, self.rate_per_s(group, now) - own)

    @property
    def _one_per_s(self) -> float:
        """The rate that one arrival adds, in requests per second."""
        return 1.0 / (self._memory_s * self._observed.part)
