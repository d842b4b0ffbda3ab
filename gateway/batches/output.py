"""Ends of a batch's lines: each in one of two files, once."""

from typing import Any

from gateway.batches.record import BatchCounts
from topics.openai_api.batch_output import EXPIRED, MESSAGES


class Ends:
    """Which of a batch's lines have ended, and sums over them."""

    def __init__(self, total: int) -> None:
        self.counts = BatchCounts(total=total)
        self.expired = 0
        self.done_count = 0
        self._done = bytearray(total)

    def is_done(self, n: int) -> bool:
        """Return whether a line, counted from 0, has ended."""
        return bool(self._done[n])

    def count(self, line: dict[str, Any], *, is_error: bool) -> None:
        """Count a line, unless it was counted."""
        n = line_number(line["id"])
        if self._done[n]:
            return
        self._done[n] = 1
        self.done_count += 1
        counts = self.counts
        if is_error:
            counts.failed += 1
        else:
            counts.completed += 1
        error = line["error"]
        self.expired += error is not None and error["code"] == EXPIRED
        told = line.get("shunter") or {}
        usage, cost = told.get("usage") or {}, told.get("cost") or {}
        counts.input_tokens += usage.get("input_tokens", 0)
        counts.cached_tokens += usage.get("cached_tokens", 0)
        counts.output_tokens += usage.get("output_tokens", 0)
        counts.cost_usd += cost.get("usd", 0.0)


def line_id(prefix: str, n: int) -> str:
    """Return the id of an output line, which tells its number."""
    return f"batch_req_{prefix}{n}"


def line_number(told: str) -> int:
    """Return the number, from 0, that a line's id tells."""
    return int(told.rpartition("-")[2])


def unanswered(
    prefix: str, n: int, custom_id: str, code: str, away: str | None = None
) -> dict[str, Any]:
    """Return the line of a request that never ended: expired, or cancelled.

    ``away`` is why it was turned away the last time, if it was.
    """
    why = "" if away is None else f" It waited: it was last turned away as {away}."
    return {
        "id": line_id(prefix, n),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": MESSAGES[code] + why},
    }
