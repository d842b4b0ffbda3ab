"""The tables of a backtest: cost, attainment and times of each policy, and missed SLOs."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rich.table import Table

from shunter.backtest.suite import Scored


def tables(scored: Sequence[Scored]) -> Iterator[Table]:
    """Yield tables of cost and attainment, of times, and of the first run's classes."""
    yield _money(scored)
    yield _times(scored)
    yield _classes(scored[0])


def without_answer(scored: Sequence[Scored]) -> Iterator[str]:
    """Yield, for each run with unanswered requests, their number and reasons."""
    for each in scored:
        reasons = sorted(each.scores["refusals"].items(), key=lambda pair: (-pair[1], pair[0]))
        if reasons:
            told = ", ".join(f"{reason} {count}" for reason, count in reasons)
            yield f"without an answer, {each.name}: {told}"


def _table(first: str, *numbers: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    table.add_column(f"\n{first}", no_wrap=True)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _money(scored: Sequence[Scored]) -> Table:
    table = _table("policy", "US\ndollars", "per\nMtok", "SLO\nattained", "missed\ndeadline",
                   "\nrejected", "viola-\ntions")  # fmt: skip
    table.add_column("\nworst class", overflow="fold")
    for each in scored:
        found = each.scores
        worst = min(found["slo_by_task"].items(), key=lambda pair: pair[1])
        table.add_row(
            each.name,
            f"{found['cost_usd']:.4f}",
            _number(found["usd_per_million_tokens"], 4),
            f"{found['slo_attainment']:.2%}",
            str(found["deadline_misses"]),
            str(found["rejected"]),
            str(found["constraint_violations"]),
            f"{worst[0]} {worst[1]:.2%}",
        )
    return table


def table_of_draws(told: Mapping[str, Mapping[str, Any]], count: int) -> Table:
    """Return the table of `shunter.backtest.draws.summary`: 10 %, median and 90 % of the draws."""
    table = _table(
        f"of {count} draws", "\nUS dollars", "SLO\nattained %", "shunter's\ncost over it"
    )
    for name, each in told.items():
        table.add_row(
            name,
            " ".join(f"{usd:.3f}" for usd in each["cost_usd"]),
            " ".join(f"{100 * share:.1f}" for share in each["slo_attainment"]),
            " ".join(f"{ratio:.2f}" for ratio in each["over"]),
        )
    return table


def _times(scored: Sequence[Scored]) -> Table:
    table = _table("policy", "TTFT ms\np50", "\np99", "TPOT ms\np50", "\np99", "finish s\np50",
                   "\np99", "held s\nmean", "\np99", "step\nfill")  # fmt: skip
    for each in scored:
        found = each.scores
        table.add_row(
            each.name,
            _number(found["p50_ttft_ms"], 0),
            _number(found["p99_ttft_ms"], 0),
            _number(found["p50_tpot_ms"], 1),
            _number(found["p99_tpot_ms"], 1),
            _number(found["p50_finish_s"], 1),
            _number(found["p99_finish_s"], 1),
            _number(found["mean_held_s"] if found["held"] else None, 1),
            _number(found["p99_held_s"], 1),
            _number(found["mean_batch_size"], 1),
        )
    return table


def _classes(first: Scored) -> Table:
    table = _table(f"class, {first.name}", "\nrequests", "SLO\nattained", "missed\nTTFT",
                   "missed\nTPOT", "missed\ndeadline")  # fmt: skip
    for task, missed in first.scores["missed_by_task"].items():
        table.add_row(
            task,
            str(missed["requests"]),
            f"{first.scores['slo_by_task'][task]:.2%}",
            str(missed["ttft"]),
            str(missed["tpot"]),
            str(missed["deadline"]),
        )
    return table


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
