"""Scores of a backtest: cost, attainment, latencies, and whether promises were kept."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from math import ceil
from typing import Any

from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replay import ReplayRun
from policies.config.options import Options

# Upper ends of the bins of promised chances.
CHANCE_BINS = (0.5, 0.8, 0.9, 0.95, 0.99, 1.0)


def scores_of(run: ReplayRun, options: Options, violations: int) -> dict[str, Any]:
    """Return the figures of one run for the report.

    Costs are US dollars of busy device time, or of tokens where a pool is paid by them. Attainment
    is the share of all requests that were answered within deadline, TTFT and TPOT; percentiles are
    of completed requests, held times of those that waited in the hold. An unanswered request counts
    as a missed deadline only. ``mean_batch_size`` is the mean number of sequences in a decode step.
    """
    outcomes, by_task = run.outcomes, _by_task(run.outcomes)
    done = [o for o in outcomes if o.status == "completed"]
    cost_usd = sum(o.cost_usd for o in outcomes)
    tokens = sum(o.input_tokens + o.output_tokens for o in done)
    ttft_ms = sorted(1000 * o.ttft_s for o in done if o.ttft_s is not None)
    tpot_ms = sorted(1000 * o.tpot_s for o in done if o.tpot_s is not None)
    held_s = sorted(o.held_s for o in outcomes if o.held_s is not None)
    finish_s = sorted(o.finished_s - o.profile.created_at for o in done if o.finished_s is not None)
    return {
        "cost_usd": cost_usd,
        "usd_per_million_tokens": 1e6 * cost_usd / tokens if tokens else None,
        "slo_attainment": _share(o.attained for o in outcomes),
        "slo_by_task": {task: _share(o.attained for o in some) for task, some in by_task.items()},
        "missed_by_task": {task: _missed(some) for task, some in by_task.items()},
        "deadline_misses": sum(not o.met_deadline for o in outcomes),
        "rejected": sum(o.status == "rejected" for o in outcomes),
        "refusals": dict(Counter(o.reason for o in outcomes if o.status != "completed")),
        "constraint_violations": violations,
        "p50_ttft_ms": percentile(ttft_ms, 0.5),
        "p99_ttft_ms": percentile(ttft_ms, 0.99),
        "p50_tpot_ms": percentile(tpot_ms, 0.5),
        "p99_tpot_ms": percentile(tpot_ms, 0.99),
        "p50_finish_s": percentile(finish_s, 0.5),
        "p99_finish_s": percentile(finish_s, 0.99),
        "mean_batch_size": run.tokens / run.steps if run.steps else None,
        "migrations": run.migrations,
        "batches": run.batches,
        "mean_batch_members": run.batched / run.batches if run.batches else None,
        "held": len(held_s),
        "mean_held_s": _mean(held_s) or 0.0,
        "p50_held_s": percentile(held_s, 0.5),
        "p99_held_s": percentile(held_s, 0.99),
        "tries": sum(o.tries for o in outcomes),
        "busy_s_by_pool": run.busy_s,
        "usd_by_pool": {
            pool: busy_s * options.by_pool[pool][0].usd_per_s for pool, busy_s in run.busy_s.items()
        }
        | run.tokens_usd
        | run.moving_usd,
        "energy_wh": sum(o.energy_wh for o in outcomes),
        "gco2": sum(o.gco2 for o in outcomes),
        "tokens_usd": sum(run.tokens_usd.values()),
    }


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """Return the nearest-rank percentile of sorted values; None if there are none."""
    return ordered[ceil(share * len(ordered)) - 1] if ordered else None


def calibration_of(outcomes: Iterable[ReplayOutcome]) -> dict[str, Any]:
    """Return the share of kept promises for each stated chance, and their Brier score.

    A promise is the chance of meeting deadline, TTFT and TPOT that was stated at the request's
    last send to a pool.
    """
    bins: dict[float, list[tuple[float, bool]]] = defaultdict(list)
    for outcome in outcomes:
        chance = None if outcome.promised is None else outcome.promised.chance
        if chance is not None:
            bound = next(b for b in CHANCE_BINS if chance <= b)
            bins[bound].append((chance, outcome.attained))
    every = [pair for pairs in bins.values() for pair in pairs]
    return {
        "promises": len(every),
        "promised": _mean(chance for chance, _ in every),
        "met": _share(met for _, met in every),
        "brier": _mean((chance - met) ** 2 for chance, met in every),
        "met_of_promised_95": _share(met for chance, met in every if chance >= 0.95),
        "bins": [
            {
                "chance_max": bound,
                "promises": len(bins[bound]),
                "promised": _mean(chance for chance, _ in bins[bound]),
                "met": _share(met for _, met in bins[bound]),
            }
            for bound in CHANCE_BINS
            if bound in bins
        ],
    }


def _by_task(outcomes: Iterable[ReplayOutcome]) -> dict[str, list[ReplayOutcome]]:
    by_task: dict[str, list[ReplayOutcome]] = defaultdict(list)
    for outcome in outcomes:
        by_task[outcome.profile.task].append(outcome)
    return {task: by_task[task] for task in sorted(by_task)}


def _missed(outcomes: Sequence[ReplayOutcome]) -> dict[str, int]:
    """Return the number of outcomes, and how many missed each objective; one may miss several."""
    return {
        "requests": len(outcomes),
        "ttft": sum(o.missed_ttft for o in outcomes),
        "tpot": sum(o.missed_tpot for o in outcomes),
        "deadline": sum(not o.met_deadline for o in outcomes),
    }


def _share(values: Iterable[bool]) -> float | None:
    return _mean(float(value) for value in values)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) / len(found) if found else None
