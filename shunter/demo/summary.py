"""The figures of a demo, for ``--json`` and for the tables."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from policies import Policy
from shunter.demo.attainment import is_attained, latency_of
from shunter.demo.check import Verdict
from shunter.demo.ledger import Ledger
from shunter.demo.trace import TraceRow
from topics import Result


def summarize(
    rows: Sequence[TraceRow],
    ledger: Ledger,
    verdict: Verdict,
    policy: Policy,
    premium_usd: Mapping[str, float],
    *,
    pools: Sequence[str],
    speed: float,
) -> dict[str, Any]:
    """Return the figures of a run as a JSON object.

    Latencies are in seconds of the trace: measured ones times ``speed``.

    Args:
        rows: the published requests.
        ledger: their outcomes.
        verdict: of the check.
        policy: as it was in force, at the demo's speed.
        premium_usd: what each would have cost on premium GPUs, where that is known.
        pools: of the fleet, so that the figures include an unused one.
        speed: the trace's seconds in one of the run's.
    """
    results = list(ledger.results.values())
    attained = {r.id for r in rows if _attained(ledger.results.get(r.id), r.task, policy)}
    by_task = {
        task: _task([row for row in rows if row.task == task], ledger, attained, premium_usd, speed)
        for task in sorted({row.task for row in rows})
    }
    return {
        "requests": len(rows),
        "results": len(results),
        "lost": verdict.lost,
        "duplicated": verdict.duplicated,
        "dead_lettered": verdict.dead_lettered,
        "constraint_violations": verdict.constraint_violations,
        "unexplained": verdict.unexplained,
        "problems": verdict.problems,
        "statuses": dict(Counter(result.status for result in results)),
        "by_pool": {pool: _pool(results, pool) for pool in pools},
        "by_task": by_task,
        "batches": _batches(results),
        "cached_share": _cached(results),
        "slo_attainment": {
            "overall": _share(len(attained), len(rows)),
            "by_task": {
                task: _share(figures.pop("attained"), figures["requests"])
                for task, figures in by_task.items()
            },
        },
        "cost_usd": _usd(results),
        "compared": len(premium_usd),
        "cost_compared_usd": _usd([r for r in results if r.id in premium_usd]),
        "cost_all_premium_usd": round(sum(premium_usd.values()), 6),
        "speed": speed,
    }


def _attained(result: Result | None, task: str, policy: Policy) -> bool:
    return result is not None and is_attained(result, task, policy)


def _task(
    rows: Sequence[TraceRow],
    ledger: Ledger,
    attained: set[str],
    premium_usd: Mapping[str, float],
    speed: float,
) -> dict[str, Any]:
    results = [ledger.results[row.id] for row in rows if row.id in ledger.results]
    latencies = [latency_of(result) for result in results]
    placed = Counter(r.placement.pool for r in results if r.placement)
    return {
        "requests": len(rows),
        "completed": sum(result.status == "completed" for result in results),
        "attained": sum(row.id in attained for row in rows),
        "pools": dict(placed.most_common()),
        "batched": sum(_batch_id(result) is not None for result in results),
        "ttft_s": _spread([g.ttft_s * speed for g in latencies if g.ttft_s is not None]),
        "tpot_s": _spread([g.tpot_s * speed for g in latencies if g.tpot_s is not None]),
        "finish_s": _spread([g.finish_s * speed for g in latencies if g.finish_s is not None]),
        "cost_usd": _usd(results),
        "cost_all_premium_usd": round(sum(premium_usd.get(row.id, 0.0) for row in rows), 6),
    }


def _pool(results: Sequence[Result], pool: str) -> dict[str, Any]:
    mine = [r for r in results if r.placement is not None and r.placement.pool == pool]
    batched = sum(_batch_id(result) is not None for result in mine)
    return {
        "requests": len(mine),
        "direct": len(mine) - batched,
        "batch": batched,
        "batches": _batches(mine)["count"],
        "output_tokens": sum(r.usage.output_tokens for r in mine if r.usage),
        "cost_usd": _usd(mine),
    }


def _batches(results: Sequence[Result]) -> dict[str, Any]:
    sizes = Counter(name for r in results if (name := _batch_id(r)) is not None)
    mean = sum(sizes.values()) / len(sizes) if sizes else 0.0
    return {"count": len(sizes), "mean_size": round(mean, 2)}


def _cached(results: Sequence[Result]) -> float:
    """Return the part of the answered prompts' tokens that prefix caches had."""
    answered = [result for result in results if result.status == "completed"]
    usages = [result.usage for result in answered if result.usage is not None]
    prompts = sum(usage.input_tokens for usage in usages)
    return round(sum(usage.cached_tokens for usage in usages) / prompts, 4) if prompts else 0.0


def _batch_id(result: Result) -> str | None:
    return result.placement.batch_id if result.placement else None


def _usd(results: Sequence[Result]) -> float:
    return round(sum(result.cost.usd for result in results if result.cost), 6)


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 1.0


def _spread(values: list[float]) -> dict[str, float] | None:
    """Return median and 95th percentile, each a value that occurred."""
    if not values:
        return None
    ordered = sorted(values)
    return {
        name: round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)
        for name, share in (("p50", 0.5), ("p95", 0.95))
    }
