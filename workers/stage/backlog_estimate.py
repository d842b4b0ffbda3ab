"""Estimate the device time of each lane's unread requests from its last ones."""

import math
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from policies import Option
from policies.autoscaling import Work, alike, device_s, device_s_of, unread_demand
from policies.learning.transport import Transport
from streams.engine.clock import Clock
from streams.engine.log import Partition, Record
from topics import Profile

SEEN_MAX = 50
# Beside its record an offset may be a transaction's marker. A longer gap was left by retention or
# by an abort, and tells nothing of what comes.
OFFSETS_MAX = 10
# Before anything was seen: a request of some size that is due in a minute.
PRIOR_INPUT_TOKENS, PRIOR_OUTPUT_TOKENS = 1000, 250
PRIOR_ROOM_S = 60.0
# What was seen to wait may be so old, where no newer look at it succeeds; then it is unknown.
LAG_AGE_S_MAX = 10.0


class _Seen(NamedTuple):
    """A taken request, the offsets it represents, and its arrival (epoch seconds)."""

    offsets: int
    profile: Profile
    option: Option
    came_at: float


class Unread(NamedTuple):
    """Unread requests, and their device time by due time (``DUE_S``)."""

    requests: int
    due: tuple[float, ...]


class BacklogEstimate:
    """Keeps the last requests of each lane over all its partitions, its lag, and how they came."""

    def __init__(self, options: Sequence[Option], clock: Clock) -> None:
        self._clock = clock
        self._lag: tuple[float, Mapping[Partition, int]] | None = None
        prior_s = device_s_of(PRIOR_INPUT_TOKENS, PRIOR_OUTPUT_TOKENS, options[0])
        self._prior: Work = (prior_s, PRIOR_ROOM_S)
        self._seen: dict[str, deque[_Seen]] = {}
        self.transport = Transport()
        """What requests take from a router to here."""

    def took(self, record: Record, offsets: int, profile: Profile, option: Option) -> None:
        """Record a request, and the number of offsets that its partition advanced with it."""
        topic = record.partition.topic
        seen = self._seen.setdefault(topic, deque(maxlen=SEEN_MAX))
        offsets = min(max(offsets, 1), OFFSETS_MAX)
        seen.append(_Seen(offsets, profile, option, record.timestamp_ms / 1000))

    def looked(self, lag: Mapping[Partition, int]) -> None:
        """Record the number of unread offsets of each partition."""
        self._lag = (self._clock.now(), lag)

    def unread(self, now: float) -> Unread | None:
        """Return the unread work, assuming it is like what was taken last; None if unknown.

        ``now`` is epoch seconds.
        """
        if self._lag is None or now - self._lag[0] > LAG_AGE_S_MAX:
            return None
        behind: dict[str, int] = {}
        for partition, offsets in self._lag[1].items():
            if offsets:
                behind[partition.topic] = behind.get(partition.topic, 0) + offsets
        requests, work = 0.0, list[Work]()
        for topic, offsets in behind.items():
            seen = self._seen.get(topic)
            if seen is None:
                requests += offsets
                work += alike([self._prior], offsets, now, now)
                continue
            each = offsets / sum(s.offsets for s in seen)
            requests += each * len(seen)
            found = [(device_s(s.profile, s.option), s.profile.deadline - s.came_at) for s in seen]
            work += alike(found, each, seen[-1].came_at, now)
        return Unread(math.ceil(requests), unread_demand(work, now))
