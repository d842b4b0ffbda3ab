"""The prefix cache of a modelled replica: computed tokens that it may use again."""

from collections import OrderedDict
from dataclasses import dataclass, field

Key = tuple[str, str]
"""Session and variant."""


@dataclass(slots=True)
class PrefixCache:
    """Keys and values of past requests by session, in memory that running jobs leave free.

    The least recently used sessions are evicted first, as a whole.
    """

    _kept: OrderedDict[Key, tuple[int, float]] = field(default_factory=OrderedDict)
    _bytes: float = 0.0

    def tokens(self, key: Key) -> int:
        """Return the number of cached tokens of a session."""
        return self._kept.get(key, (0, 0.0))[0]

    def keep(self, key: Key, tokens: int, kv_bytes: float, free_bytes: float) -> None:
        """Replace a session's cached tokens, if there is room."""
        _, before = self._kept.pop(key, (0, 0.0))
        self._kept[key] = (tokens, kv_bytes)
        self._bytes += kv_bytes - before
        self.shrink(free_bytes)

    def shrink(self, free_bytes: float) -> None:
        """Evict what no longer fits beside the running jobs."""
        while self._kept and self._bytes > free_bytes:
            _, (_, kv_bytes) = self._kept.popitem(last=False)
            self._bytes -= kv_bytes
