"""A dict that drops its oldest entries beyond a limit."""

from collections import OrderedDict
from typing import TypeVar

Key = TypeVar("Key")
Value = TypeVar("Value")


class BoundedDict(OrderedDict[Key, Value]):
    """A dict for optional data with keys that others choose; ``put`` adds entries.

    It is an ``OrderedDict``, because a plain dict scans all deleted entries for its first one: each
    drop takes 4 us with 10,000 entries and 40 us with 100,000, instead of 0.4.
    """

    def __init__(self, entries_max: int) -> None:
        super().__init__()
        self._entries_max = entries_max

    def put(self, key: Key, value: Value) -> None:
        """Add or replace an entry as the newest; reading doesn't renew it."""
        self[key] = value
        self.move_to_end(key)
        if len(self) > self._entries_max:
            self.popitem(last=False)
