"""Thrift: what many held requests have in common is kept once.

A decoded profile has a string of its own for each of its names, though few differ from request to
request: 1,020 bytes for a held request beside its payload, 520 with the names, the times of its
class and an empty set of labels shared (`python -m benchmarks --only hold`).
"""

from sys import intern

from topics import Profile

_NAMES = ("tenant", "task", "model", "operation", "tier")
_TIMES = ("target_chance", "longest_wait_s", "window_s")
# Classes and tiers are few; so that nobody else's times can fill the memory, no more are kept.
_TIMES_MAX = 1000

_times: dict[float, float] = {}
_NO_LABELS: dict[str, str] = {}


def share_common(profile: Profile) -> None:
    """Let a profile that was just decoded, and that nobody else has yet, share what is common."""
    share = object.__setattr__
    for name in _NAMES:
        share(profile, name, intern(getattr(profile, name)))
    if len(_times) < _TIMES_MAX:
        for name in _TIMES:
            time = getattr(profile, name)
            share(profile, name, _times.setdefault(time, time))
    if not profile.labels:
        share(profile, "labels", _NO_LABELS)
