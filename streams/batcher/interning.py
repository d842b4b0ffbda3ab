"""Interning: values that many held requests share are kept once.

A decoded profile has a string of its own for each of its names, though few differ from request to
request: 1,200 bytes for a held request beside its payload, 675 with the names, the numbers of its
class and an empty set of labels shared (`python -m benchmarks --only hold`).
"""

from sys import intern
from typing import Any

from topics import Profile

# Classes and tiers are few; the limit keeps others' numbers from filling the memory.
_NUMBERS_MAX = 1000

_numbers: dict[float, float] = {}
_NO_LABELS: dict[str, str] = {}


def share_common(profile: Profile) -> None:
    """Share the common values of a newly decoded profile that nobody else has yet."""
    # Frozen to type checkers only (topics/records/frozen.py); `object.__setattr__` takes twice as
    # long.
    shared: Any = profile
    shared.tenant = intern(profile.tenant)
    shared.task = intern(profile.task)
    shared.model = intern(profile.model)
    shared.operation = intern(profile.operation)
    shared.tier = intern(profile.tier)
    if len(_numbers) < _NUMBERS_MAX:
        same = _numbers.setdefault
        shared.target_chance = same(profile.target_chance, profile.target_chance)
        shared.longest_wait_s = same(profile.longest_wait_s, profile.longest_wait_s)
        shared.window_s = same(profile.window_s, profile.window_s)
        shared.price_factor = same(profile.price_factor, profile.price_factor)
    if not profile.labels:
        shared.labels = _NO_LABELS
