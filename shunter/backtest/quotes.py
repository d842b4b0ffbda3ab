"""Quotes over a trace: what was promised and kept, and the errors that promises are made with."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain, repeat
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple
from zlib import crc32

import yaml
from rich.table import Table

from policies import Policy, compile_options
from policies.backtest.quote_outcomes import (
    QuoteEnd,
    QuotingShunter,
    ends_of,
    kept_by_chance,
    measured_errors,
    quote_scores,
)
from policies.backtest.workload import tagger
from policies.config.quotes import PromiseErrors
from shunter.backtest.parallel_runs import adopt, adopted, can_fork, cores, forked
from shunter.backtest.suite import Setting, run_one
from shunter.console import write_output

NAME = "shunter_quoted"
_TITLE = "Quotes: answered by the deadline that was promised"
CALIBRATION_ROUNDS = 6
# Who comes in one burst is late together: from one replay to the next, what was promised 95 % is
# kept in some per cent more or less of all cases. So errors are told by several, in each of which
# others take quotes, and judged in more, of other draws.
TELLING_DRAWS, JUDGING_DRAWS = (0, 1), (2, 3, 4, 5)


class QuotedReplay(NamedTuple):
    """The quotes of a replay as they ended, with cost and attainment of all its requests."""

    ends: list[QuoteEnd]
    cost_usd: float
    slo_attainment: float


Errors = dict[str, PromiseErrors]

Replaying = Callable[[Errors, Sequence[int]], list[QuotedReplay]]
"""Returns a replay with these errors for each draw of those that take quotes."""


def quoted_replay(setting: Setting, share: float, draw: int = 0) -> QuotedReplay:
    """Return what came of a share of the requests that took quotes."""
    options = compile_options(setting.fleet)
    tag = tagger(setting.arrivals, setting.fleet, setting.policy)
    route = QuotingShunter(options, setting.policy, tag, share, draw)
    run = run_one(NAME, setting, options, route)
    ends = ends_of(run.run.outcomes, route.taken)
    return QuotedReplay(ends, run.scores["cost_usd"], run.scores["slo_attainment"])


def measured(setting: Setting, share: float) -> dict[str, Any]:
    """Return what came of quotes under the policy's errors."""
    found = quoted_replay(setting, share)
    return _told([found], [found.ends])


def calibrated(
    setting: Setting, share: float, rounds: int, told: Callable[[str], object] = lambda _: None
) -> tuple[dict[str, Any], Policy]:
    """Return what came of quotes that told no errors, and the policy behind them.

    Half of the requests, by their ids, tell the errors: each round quotes by those of the one
    before, and what comes of that are the errors of the next. The first round's are those of the
    policy. Later deadlines let requests wait longer, so that errors answer to errors and swing from
    round to round: each goes a smaller part of the way. The other half is judged, in all, by the
    replay, and by when it came.

    Args:
        setting: what is replayed, and the policy.
        share: part of the requests that take a quote.
        rounds: in which errors are told.
        told: gets a line for people after each round.
    """
    errors = setting.policy.quotes.errors
    with _replaying(setting, share) as replayed:
        for number in range(1, rounds + 1):
            began = time.monotonic()
            found = [end for each in replayed(errors, TELLING_DRAWS) for end in each.ends]
            errors = measured_errors(_half(found, tells=True), errors, 2.0 / (number + 1))
            told(f"errors, round {number} of {rounds}: {time.monotonic() - began:.1f} s")
        began = time.monotonic()
        replays = replayed(errors, JUDGING_DRAWS)
        told(f"judged in {len(replays)} replays: {time.monotonic() - began:.1f} s")
    judged = [_half(each.ends, tells=False) for each in replays]
    middle_s = setting.arrivals[len(setting.arrivals) // 2].arrival_s
    by_time = {
        name: kept_by_chance(end for end in chain(*judged) if (end.taken.at > middle_s) is is_late)
        for name, is_late in (("first_half", False), ("second_half", True))
    }
    report = _told(replays, judged) | {"by_time": by_time}
    return report, with_errors(setting.policy, errors)


@contextmanager
def _replaying(setting: Setting, share: float) -> Iterator[Replaying]:
    """Give what replays, on as many cores as there are."""
    if not can_fork():
        yield lambda errors, draws: [_replay(setting, share, errors, draw) for draw in draws]
        return
    with forked(min(cores(), len(JUDGING_DRAWS)), adopt, (setting, share)) as processes:
        yield lambda errors, draws: list(processes.map(_replay_here, repeat(errors), draws))


def _replay_here(errors: Errors, draw: int) -> QuotedReplay:
    setting, share = adopted()
    return _replay(setting, share, errors, draw)


def _replay(setting: Setting, share: float, errors: Errors, draw: int) -> QuotedReplay:
    return quoted_replay(replace(setting, policy=with_errors(setting.policy, errors)), share, draw)


def _half(ends: Iterable[QuoteEnd], *, tells: bool) -> list[QuoteEnd]:
    # By another digest than that which says who takes a quote, and which.
    return [
        end for end in ends if (crc32(f"{end.taken.quoted.id} tells".encode()) % 2 == 0) is tells
    ]


def with_errors(policy: Policy, errors: Errors) -> Policy:
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


def _told(replays: Sequence[QuotedReplay], judged: Sequence[Sequence[QuoteEnd]]) -> dict[str, Any]:
    """Return what came of the quotes that are judged, of all replays together and of each."""
    return quote_scores([*chain(*judged)]) | {
        "by_replay": [kept_by_chance(ends) for ends in judged],
        "run_cost_usd": fmean(each.cost_usd for each in replays),
        "slo_attainment": fmean(each.slo_attainment for each in replays),
    }


def table_of_quotes(report: dict[str, Any]) -> Table:
    """Return what was promised and kept, in all and in the worst and the best replay."""
    table, replays = Table(title=_TITLE), report["by_replay"]
    names = ["promised", "requests", "kept"]
    if len(replays) > 1:
        names.append(f"in each of {len(replays)} replays")
    for name in names:
        table.add_column(name, justify="right")
    for row in report["by_chance"]:
        chance = row["chance"]
        cells = [f"{chance:.0%}", f"{row['promises']:,}", f"{row['kept']:.2%}"]
        if len(replays) > 1:
            each = [one["kept"] for found in replays for one in found if one["chance"] == chance]
            cells.append(" to ".join(f"{kept:.2%}" for kept in sorted({min(each), max(each)})))
        table.add_row(*cells)
    return table


def lines_of_quotes(report: dict[str, Any]) -> list[str]:
    """Return what was quoted, charged and spent, in words."""
    shares = ", ".join(
        f"{margin} {share:.1%}"
        for margin, share in report["charged_share_by_margin"].items()
        if share is not None
    )
    count = len(report["by_replay"])
    of = f" of {count} replays" if count > 1 else ""
    money = (
        f"{report['quotes']:,} quotes{of}: at most {report['quoted_usd']:.4f} US dollars,"
        f" {report['charged_usd']:.4f} charged, {report['cost_usd']:.4f} spent;"
        f" {report['cost_more_than_quoted']:,} cost more than was quoted"
    )
    return [money, f"charged of what was spent, by margin: {shares or 'nothing was spent'}"]
