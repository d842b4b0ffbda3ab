"""Lines that were turned away for now, and are to be published anew."""

from collections.abc import Callable, Iterable, Sequence

from gateway.batches.record import LinesAway
from topics import Result

_BY_RATE = frozenset({"rate_limited", "over_share"})


def away_s(result: Result, now: float, rate_wait_s: Callable[[], float]) -> float | None:
    """Return after how many seconds a line that was turned away may go again; None: it was not.

    Args:
        result: of the line.
        now: epoch seconds.
        rate_wait_s: returns after how many seconds the tenant's rate takes one more.
    """
    error = result.error
    if result.status != "rejected" or error is None:
        return None
    if error.retry_at is not None:
        return max(0.0, error.retry_at - now)
    return rate_wait_s() if error.code in _BY_RATE else None


class TurnedAway:
    """Lines by number, each with why it was turned away and when it may go again."""

    def __init__(self) -> None:
        self._at: dict[int, float] = {}
        self._codes: dict[int, str] = {}

    def add(self, n: int, code: str, at: float) -> None:
        """Add a line, unless it is there; ``at`` is epoch seconds, ``code`` that of its refusal."""
        if n not in self._at:
            self._at[n], self._codes[n] = at, code

    def due(self, now: float, most: int) -> list[int]:
        """Return lines that may go now, the first ones."""
        return sorted(n for n, at in self._at.items() if at <= now)[:most]

    def gone(self, lines: Iterable[int]) -> None:
        """Forget lines: they are published anew."""
        for n in lines:
            del self._at[n], self._codes[n]

    def lines(self) -> Sequence[int]:
        """Return all of them."""
        return list(self._at)

    def code(self, n: int) -> str | None:
        """Return why a line was turned away; None if it was not, or an owner before knew why."""
        return self._codes.get(n) or None

    def told(self) -> LinesAway | None:
        """Return how many wait, and the next of them for clients; None where none does."""
        if not self._at:
            return None
        n, until = min(self._at.items(), key=lambda each: each[1])
        return LinesAway(len(self._at), self.code(n), until)
