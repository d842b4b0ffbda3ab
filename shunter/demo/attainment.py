"""Decide if a request met the targets of its class."""

from dataclasses import dataclass

from policies import Policy
from topics import Result


@dataclass(frozen=True, slots=True)
class Latency:
    """Measured latencies in seconds; ``ttft_s`` and ``finish_s`` since ``created_at``."""

    ttft_s: float | None
    tpot_s: float | None
    finish_s: float | None


def latency_of(result: Result) -> Latency:
    """Return a result's latencies, from its own timing."""
    timing, usage = result.timing, result.usage
    first, end = timing.first_token_at, timing.finished_at
    steps = usage.output_tokens - 1 if usage else 0
    return Latency(
        ttft_s=None if first is None else first - timing.created_at,
        tpot_s=(end - first) / steps
        if first is not None and end is not None and steps > 0
        else None,
        finish_s=None if end is None else end - timing.created_at,
    )


def is_attained(result: Result, task: str, policy: Policy) -> bool:
    """Return whether a request met its class's deadline and latency SLO.

    The TTFT and TPOT of a class count if it is latency-sensitive. A rejected, expired or failed
    request is missed.
    """
    wanted, got = policy.classes[task], latency_of(result)
    if result.status != "completed" or got.finish_s is None or got.finish_s > wanted.deadline_s:
        return False
    if not wanted.latency_sensitive:
        return True
    return _within(got.ttft_s, wanted.ttft_ms) and _within(got.tpot_s, wanted.tpot_ms)


def _within(seconds: float | None, limit_ms: float | None) -> bool:
    return seconds is None or limit_ms is None or seconds * 1000 <= limit_ms
