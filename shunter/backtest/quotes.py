"""Quotes over a trace: what was promised and kept, and the errors that promises are made with."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import yaml
from rich.table import Table

from policies import Policy, compile_options
from policies.backtest.quote_outcomes import QuotingShunter, Taken, measured_errors, quote_scores
from policies.backtest.workload import tagger
from policies.config.quotes import PromiseErrors
from shunter.backtest.suite import ScoredRun, Setting, run_one
from shunter.console import write_output

NAME = "shunter_quoted"
CALIBRATION_ROUNDS = 6


def quoted_run(setting: Setting, share: float) -> tuple[ScoredRun, QuotingShunter]:
    """Return a run in which a share of the requests takes quotes, and the route that gave them."""
    options = compile_options(setting.fleet)
    tag = tagger(setting.arrivals, setting.fleet, setting.policy)
    route = QuotingShunter(options, setting.policy, tag, share)
    return run_one(NAME, setting, options, route), route


def measured(setting: Setting, share: float) -> dict[str, Any]:
    """Return what came of quotes under the policy's errors."""
    run, route = quoted_run(setting, share)
    return _told(run, quote_scores(run.run.outcomes, route.taken))


def calibrated(setting: Setting, share: float, rounds: int) -> tuple[dict[str, Any], Policy]:
    """Return what came of quotes that told no errors, and the policy behind them.

    Half of the quotes, by their ids, tell the errors: each round quotes by those of the one before,
    and what comes of that are the errors of the next. The first round's are those of the policy.
    Later deadlines let requests wait longer, so that errors answer to errors and swing from round
    to round: each goes a smaller part of the way. The other half is judged, in all and by when it
    came.
    """
    for number in range(1, rounds + 1):
        run, route = quoted_run(setting, share)
        outcomes, before = run.run.outcomes, setting.policy.quotes.errors
        step = 2.0 / (number + 1)
        found = measured_errors(outcomes, _half(route.taken, tells=True), before, step)
        setting = replace(setting, policy=with_errors(setting.policy, found))
    run, route = quoted_run(setting, share)
    held_back, outcomes = _half(route.taken, tells=False), run.run.outcomes
    middle_s = setting.arrivals[len(setting.arrivals) // 2].arrival_s
    early = {name: each for name, each in held_back.items() if each.at <= middle_s}
    late = {name: each for name, each in held_back.items() if each.at > middle_s}
    by_time = {
        name: quote_scores(outcomes, taken)["by_chance"]
        for name, taken in (("first_half", early), ("second_half", late))
    }
    return _told(run, quote_scores(outcomes, held_back)) | {"by_time": by_time}, setting.policy


def _half(taken: Mapping[str, Taken], *, tells: bool) -> dict[str, Taken]:
    # Other bits of the digest than those that say who takes a quote, and which.
    return {
        name: each
        for name, each in taken.items()
        if (crc32(f"{name} tells".encode()) % 2 == 0) is tells
    }


def with_errors(policy: Policy, errors: dict[str, PromiseErrors]) -> Policy:
    """Return a policy that quotes by these errors."""
    quotes = policy.quotes.model_copy(update={"errors": errors})
    return policy.model_copy(update={"quotes": quotes})


def write_errors(path: Path, policy: Policy) -> None:
    """Write a policy's errors as the YAML that stands under its ``quotes``.

    Raises:
        UserError: the file can't be written.
    """
    errors = {
        task: {
            name: [list(point) for point in points]
            for name, points in (("direct", each.direct), ("hold", each.hold))
            if points
        }
        for task, each in policy.quotes.errors.items()
    }
    text = yaml.safe_dump({"errors": errors}, sort_keys=False, default_flow_style=None, width=100)
    write_output(path, text.encode())


def _told(run: ScoredRun, scores: dict[str, Any]) -> dict[str, Any]:
    return scores | {
        "run_cost_usd": run.scores["cost_usd"],
        "slo_attainment": run.scores["slo_attainment"],
    }


def table_of_quotes(report: dict[str, Any]) -> Table:
    """Return what was promised and kept."""
    table = Table(title="Quotes: answered by the deadline that was promised")
    for name in ("promised", "requests", "kept"):
        table.add_column(name, justify="right")
    for row in report["by_chance"]:
        table.add_row(f"{row['chance']:.0%}", f"{row['promises']:,}", f"{row['kept']:.2%}")
    return table


def lines_of_quotes(report: dict[str, Any]) -> list[str]:
    """Return what was quoted, charged and spent, in words."""
    shares = ", ".join(
        f"{margin} {share:.1%}"
        for margin, share in report["charged_share_by_margin"].items()
        if share is not None
    )
    money = (
        f"{report['quotes']:,} quotes: at most {report['quoted_usd']:.4f} US dollars,"
        f" {report['charged_usd']:.4f} charged, {report['cost_usd']:.4f} spent;"
        f" {report['cost_more_than_quoted']:,} cost more than was quoted"
    )
    return [money, f"charged of what was spent, by margin: {shares or 'nothing was spent'}"]
