"""Two policies compared request by request."""

from collections.abc import Iterator
from typing import Any

from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replay import ReplayRun

LISTED_MAX = 20
_OF_EACH = (
    "pool",
    "variant",
    "path",
    "status",
    "attained",
    "finished_s",
    "cost_usd",
    "expected_usd",
    "expected_of_other_usd",
)
COLUMNS = (
    "row",
    "task",
    *(f"first_{name}" for name in _OF_EACH),
    *(f"second_{name}" for name in _OF_EACH),
)
# A request that waits for a batch is priced as held.
_BATCHED = frozenset({"batch", "hold"})


def differences(first: ReplayRun, second: ReplayRun) -> dict[str, Any]:
    """Return what the second policy did differently, and the cost under each.

    ``listed`` holds the requests whose cost differs most.
    """
    pairs = list(zip(first.outcomes, second.outcomes, strict=True))
    moved = [(a, b) for a, b in pairs if (a.pool, a.variant, a.path) != (b.pool, b.variant, b.path)]
    dearest = sorted(moved, key=lambda ab: -abs(ab[0].cost_usd - ab[1].cost_usd))
    return {
        "placed_otherwise": len(moved),
        "cost_usd": [sum(o.cost_usd for o in run.outcomes) for run in (first, second)],
        "attained_only_by_first": sum(a.attained and not b.attained for a, b in pairs),
        "attained_only_by_second": sum(b.attained and not a.attained for a, b in pairs),
        "listed": [
            {
                "row": a.row,
                "task": a.profile.task,
                "pools": [a.pool, b.pool],
                "paths": [a.path, b.path],
                "cost_usd": [a.cost_usd, b.cost_usd],
                "attained": [a.attained, b.attained],
            }
            for a, b in dearest[:LISTED_MAX]
        ],
    }


def rows(first: ReplayRun, second: ReplayRun) -> Iterator[tuple[object, ...]]:
    """Yield `COLUMNS` of each request whose placement or end differs, in the trace's order.

    A policy's estimates are from its decisions on the last try: for its own choice, and for the
    other policy's. None if that was not among its candidates.
    """
    for a, b in zip(first.outcomes, second.outcomes, strict=True):
        if _facts(a) != _facts(b):
            yield (a.row, a.profile.task, *_of_each(a, b), *_of_each(b, a))


def _facts(outcome: ReplayOutcome) -> tuple[object, ...]:
    return (outcome.pool, outcome.variant, outcome.path, outcome.status, outcome.attained)


def _of_each(outcome: ReplayOutcome, other: ReplayOutcome) -> tuple[object, ...]:
    promised = outcome.promised
    return (
        *_facts(outcome),
        outcome.finished_s,
        outcome.cost_usd,
        None if promised is None else promised.cost_usd,
        _expected_usd(outcome, other),
    )


def _expected_usd(outcome: ReplayOutcome, other: ReplayOutcome) -> float | None:
    candidates = outcome.sends[-1].candidates if outcome.sends else ()
    paths = _BATCHED if other.path == "batch" else {other.path}
    for each in candidates:
        if (each.pool, each.model_variant) == (other.pool, other.variant) and each.path in paths:
            return each.cost_usd
    return None
