"""The prefix cache of a modelled replica: what it has computed and may use again."""

from collections import OrderedDict
from dataclasses import dataclass, field

Key = tuple[str, str]
"""Session and variant."""


@dataclass(slots=True)
class PrefixCache:
    """Keys and values of past requests, by session, in the memory that running jobs leave.

    The least recently used give way first, whole.
    """

    _kept: OrderedDict[Key, tuple[int, float]] = field(default_factory=OrderedDict)
    _bytes: float = 0.0

    def tokens(self, key: Key) -> int:
        """Return how many tokens of a session are there."""
        return self._kept.get(key, (0, 0.0))[0]

    def keep(self, key: Key, tokens: int, kv_bytes: float, free_bytes: float) -> None:
        """Keep a session's tokens in place of what there was of it, if there is room."""
        _, before = self._kept.pop(key, (0, 0.0))
        self._kept[key] = (tokens, kv_bytes)
        self._bytes += kv_bytes - before
        self.shrink(free_bytes)

    def shrink(self, free_bytes: float) -> None:
        """Give up what doesn't fit beside the running jobs any more."""
        while self._kept and self._bytes > free_bytes:
            _, (_, kv_bytes) = self._kept.popitem(last=False)
            self._bytes -= kv_bytes
