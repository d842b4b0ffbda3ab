"""The record of a batch: its state as clients see it, and OpenAI's object made of it."""

from dataclasses import dataclass, field
from typing import Any, Literal

Status = Literal[
    "validating",
    "failed",
    "in_progress",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
]
FINAL: frozenset[str] = frozenset({"failed", "completed", "expired", "cancelled"})
# From these a batch may still be cancelled.
CANCELLABLE: frozenset[str] = frozenset({"validating", "in_progress"})
_TIMES = (
    "in_progress_at",
    "expires_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


@dataclass(frozen=True, slots=True)
class LineError:
    """A fault of an input file; ``line`` counts from 1, None for the file."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


@dataclass(slots=True)
class BatchCounts:
    """Counts of lines by their ends. A new owner counts all of them anew from the written lines."""

    total: int = 0
    completed: int = 0
    failed: int = 0
    input_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0


@dataclass(frozen=True, slots=True)
class LinesAway:
    """Lines that wait since the tenant's budget, rate or share turned them away.

    ``code`` is why the next of them was, None where that is not known; ``until`` when it is
    published anew, epoch seconds.
    """

    lines: int
    code: str | None
    until: float

    def told(self) -> dict[str, Any]:
        """Return what clients see."""
        return {"lines": self.lines, "code": self.code, "until": int(self.until)}


@dataclass(slots=True)
class BatchRecord:
    """A batch. Times are epoch seconds, None for what has not happened."""

    id: str
    tenant: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: float
    expires_at: float
    metadata: dict[str, str] | None = None
    output_expires_s: int | None = None
    key_id: str | None = None
    """What the policy calls the API key that it was created with."""
    traceparent: str | None = None
    """The span of the HTTP request that created it."""
    status: Status = "validating"
    counts: BatchCounts = field(default_factory=BatchCounts)
    errors: list[LineError] = field(default_factory=list)
    turned_away: LinesAway | None = None
    model: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    in_progress_at: float | None = None
    finalizing_at: float | None = None
    completed_at: float | None = None
    failed_at: float | None = None
    expired_at: float | None = None
    cancelling_at: float | None = None
    cancelled_at: float | None = None

    def enter(self, status: Status, now: float) -> None:
        """Change the status, and note when."""
        self.status = status
        if status != "validating":
            setattr(self, f"{status}_at", now)

    def told(self, cancelling_at: float | None = None) -> dict[str, Any]:
        """Return OpenAI's object.

        Args:
            cancelling_at: when somebody asked for the batch to be cancelled; its owner may not
                know yet.
        """
        counts = self.counts
        times = {name: getattr(self, name) for name in _TIMES}
        status = self.status
        if cancelling_at is not None:
            times["cancelling_at"] = times["cancelling_at"] or cancelling_at
            if status in CANCELLABLE:
                status = "cancelling"
        errors = [
            {"code": e.code, "message": e.message, "param": e.param, "line": e.line}
            for e in self.errors
        ]
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.completion_window,
            "status": status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": int(self.created_at),
            **{name: None if at is None else int(at) for name, at in times.items()},
            "request_counts": {
                "total": counts.total,
                "completed": counts.completed,
                "failed": counts.failed,
            },
            "usage": {
                "input_tokens": counts.input_tokens,
                "input_tokens_details": {"cached_tokens": counts.cached_tokens},
                "output_tokens": counts.output_tokens,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": counts.input_tokens + counts.output_tokens,
            },
            "metadata": self.metadata,
            "shunter": {
                "cost_usd": counts.cost_usd,
                "turned_away": None if self.turned_away is None else self.turned_away.told(),
            },
        }
