"""The rate at which a batch publishes: slower where its tenant's rate turns lines away."""

LINES_PER_S_MAX = 500.0
LINES_PER_S_MIN = 0.5
# What a second without a refusal adds.
GROWTH = 1.1
_BURST_S = 0.5


class LinePace:
    """A bucket of lines whose rate halves when lines are turned away, and grows back.

    Requests that other clients have sent meanwhile don't stand behind a whole batch; and what is
    turned away by the tenant's rate is sent again rather than failed.
    """

    def __init__(self) -> None:
        self._per_s = LINES_PER_S_MAX
        self._left = LINES_PER_S_MAX * _BURST_S
        self._at: float | None = None
        self._slowed_at = float("-inf")

    def room(self, now: float) -> int:
        """Return how many lines may be published; ``now`` is epoch seconds."""
        passed_s = 0.0 if self._at is None else max(0.0, now - self._at)
        self._at = now
        if now - self._slowed_at > 1.0:
            self._per_s = min(LINES_PER_S_MAX, self._per_s * GROWTH**passed_s)
        most = max(1.0, self._per_s * _BURST_S)
        self._left = min(most, self._left + passed_s * self._per_s)
        return int(self._left)

    def published(self, lines: int) -> None:
        """Count lines that were published."""
        self._left -= lines

    def turned_away(self, now: float, wait_s: float) -> float:
        """Slow down, and return when the line may be sent again, epoch seconds.

        Args:
            now: epoch seconds.
            wait_s: after which the tenant's rate takes one more.
        """
        if now - self._slowed_at > 1.0:
            self._per_s = max(LINES_PER_S_MIN, self._per_s / 2)
            self._slowed_at = now
            self._left = 0.0
        return now + max(wait_s, 1.0 / self._per_s)
