"""Two policies compared request by request."""

from typing import Any

from policies.backtest.replay import Run

LISTED_MAX = 20


def differences(first: Run, second: Run) -> dict[str, Any]:
    """Return what the second policy did otherwise, and what each would have cost.

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
