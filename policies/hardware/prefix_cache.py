"""The prefix cache of a modelled replica: computed tokens that it may use again."""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field

Key = tuple[str, str]
"""Session and variant."""

# Tokens of a block, of which servers evict whole ones (vLLM's default).
BLOCK_TOKENS = 16
# Turns that count in how often what is kept is used again, about.
TURNS = 200


@dataclass(slots=True)
class PrefixCache:
    """Keys and values of past requests by session, in memory that running jobs leave free.

    The least recently used sessions are evicted first, each from its end, by blocks. What a
    running job uses again is that job's: it takes no memory beside it.
    """

    used_share: float = 0.0
    """How many of the last turns found their session here, 0 to 1."""
    _kept: OrderedDict[Key, tuple[int, float]] = field(default_factory=OrderedDict)
    _bytes: float = 0.0

    @property
    def kv_bytes(self) -> float:
        """Memory of what is kept and not in use, in bytes."""
        return self._bytes

    def tokens(self, key: Key) -> int:
        """Return the number of cached tokens of a session."""
        return self._kept.get(key, (0, 0.0))[0]

    def use(self, key: Key) -> None:
        """Lend what is kept of a session to a job that begins, until it is kept anew."""
        tokens, kv_bytes = self._kept.pop(key, (0, 0.0))
        self.used_share += ((tokens > 0) - self.used_share) / TURNS
        if tokens:
            self._kept[key] = (tokens, 0.0)
            self._bytes -= kv_bytes

    def keep(self, key: Key, tokens: int, kv_bytes: float, free_bytes: float) -> None:
        """Replace a session's cached tokens, if there is room."""
        _, before = self._kept.pop(key, (0, 0.0))
        if tokens:
            self._kept[key] = (tokens, kv_bytes)
        self._bytes += (kv_bytes if tokens else 0.0) - before
        self.shrink(free_bytes)

    def oldest(self) -> Iterator[tuple[str, int, float]]:
        """Yield variant, tokens and bytes of what would be evicted, the first one first."""
        for (_, variant), (tokens, kv_bytes) in self._kept.items():
            if kv_bytes:
                yield variant, tokens, kv_bytes

    def shrink(self, free_bytes: float) -> None:
        """Evict what no longer fits beside the running jobs."""
        for key in list(self._kept) if self._bytes > free_bytes else ():
            over_bytes = self._bytes - free_bytes
            if over_bytes <= 0:
                return
            tokens, kv_bytes = self._kept[key]
            if not kv_bytes:
                continue
            token_bytes = kv_bytes / tokens
            blocks = max(0, tokens - -(-over_bytes // token_bytes)) // BLOCK_TOKENS
            left = int(blocks) * BLOCK_TOKENS
            if left:
                self._kept[key] = (left, left * token_bytes)
            else:
                del self._kept[key]
            self._bytes -= kv_bytes - left * token_bytes

    def clear(self) -> None:
        """Forget all, as a server that ends."""
        self._kept.clear()
        self._bytes = 0.0
