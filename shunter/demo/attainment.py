"""Decide if a request met the targets of its class."""

from dataclasses import dataclass

from policies import Policy
from policies.scoring.slo import kept
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
    is_done = result.status == "completed" and got.finish_s is not None
    counts = wanted.latency_sensitive
    return kept(
        in_time=is_done and (got.finish_s or 0.0) <= wanted.deadline_s,
        ttft_s=got.ttft_s if counts else None,
        ttft_max_s=_seconds(wanted.ttft_ms),
        tpot_s=got.tpot_s if counts else None,
        tpot_max_s=_seconds(wanted.tpot_ms),
    )["all"]


def _seconds(ms: float | None) -> float | None:
    return None if ms is None else ms / 1000
