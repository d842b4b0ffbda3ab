"""`shunter report savings`: what was paid, and what other policies would have paid."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer

from policies import Fleet, Policy
from shunter.audit.source import open_trail
from shunter.backtest.bound import bound_or_reason
from shunter.backtest.parallel_runs import scored_beside
from shunter.backtest.suite import Scored, Setting, assumed_pools
from shunter.command_tree import CommandTree
from shunter.commands.audit_report import time_of
from shunter.console import (
    ArchiveUrl,
    AsJson,
    Bootstrap,
    FleetFile,
    PolicyFile,
    Prefix,
    UserError,
    check_writable,
    err,
    settings_from,
    wide_out,
    write_output,
)
from shunter.savings.counterfactuals import TOLD, planned, setting_of
from shunter.savings.page import as_page
from shunter.savings.report import ReportCommands, savings
from shunter.savings.table import tables
from shunter.savings.traffic import EvidenceTraffic
from streams.config.declarations import load_fleet, load_policy
from topics import Catalogue
from topics.iso_time import iso_time

report = CommandTree(
    add_completion=False,
    name="report",
    help="Reports for people, from evidence.",
    no_args_is_help=True,
)


@report.callback()
def _group() -> None:
    """Keep the name of the only command."""


@report.command("savings")
def savings_command(
    start: Annotated[
        str | None, typer.Option("--from", help="First day or time, ISO 8601, UTC if it says none.")
    ] = None,
    end: Annotated[str | None, typer.Option("--to", help="The first not counted.")] = None,
    output: Annotated[
        Path | None, typer.Option("--output", help="Page of HTML to write, beside what is printed.")
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option("--only", help=f"Of the replays beside this policy's: {', '.join(TOLD)}."),
    ] = None,
    bound: Annotated[
        bool, typer.Option("--bound/--no-bound", help="Compute what no schedule undercuts.")
    ] = True,
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    archive: ArchiveUrl = None,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    as_json: AsJson = False,
) -> None:
    """Tell what was paid, by class, pool and tenant, and what other policies would have paid.

    All of it is from evidence: the same requests are replayed in virtual time under --fleet and
    --policy, on premium GPUs alone, by simple rules, without waiting, without constraints. Each
    figure names its evidence and the command that makes it again.

    Example: shunter report savings --from 2026-11-01 --to 2026-12-01 --output november.html
    """
    if unknown := [name for name in only or () if name not in TOLD]:
        raise UserError(f"--only {unknown[0]}: give one of {', '.join(TOLD)}")
    check_writable(output)
    settings = settings_from(
        bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, fleet=fleet, policy=policy
    )
    declared = load_fleet(settings.fleet), load_policy(settings.policy)
    span = time_of(start, 0.0), time_of(end, math.inf)
    traffic = EvidenceTraffic(*span)
    open_trail(archive, settings).each("evidence", traffic.add)
    if not traffic.total.requests:
        raise UserError("the evidence has no request that ended in that time")
    commands = ReportCommands(
        _options(("--archive", archive), ("--from", start), ("--to", end)),
        _options(("--fleet", fleet), ("--policy", policy)),
    )
    found = _savings(declared, traffic, commands, only or (), bound=bound) | {
        "span": _span(*span),
        "trail": archive or f"{Catalogue(settings).evidence} at {settings.bootstrap_servers}",
    }
    if output is not None:
        write_output(output, as_page(found).encode())
    if as_json:
        typer.echo(orjson.dumps(found).decode())
    else:
        console = wide_out()
        for each in tables(found):
            console.print(each, soft_wrap=isinstance(each, str), highlight=False)


def _savings(
    declared: tuple[Fleet, Policy],
    traffic: EvidenceTraffic,
    commands: ReportCommands,
    only: Sequence[str],
    *,
    bound: bool,
) -> dict[str, Any]:
    setting = setting_of(traffic, *declared)
    return savings(
        traffic,
        len(setting.arrivals),
        _replays(setting, only),
        bound_or_reason(setting) if bound and setting.arrivals else (None, None),
        commands,
        assumed_pools(setting.fleet),
    )


def _options(*given: tuple[str, str | Path | None]) -> tuple[str, ...]:
    return tuple(text for name, value in given if value is not None for text in (name, str(value)))


def _span(start: float, end: float) -> str:
    first = "from the beginning" if start <= 0 else f"from {iso_time(start)}"
    return first if math.isinf(end) else f"{first} until before {iso_time(end)}"


def _replays(setting: Setting, only: Sequence[str]) -> list[Scored]:
    """Return the figures of each run, and say how long each took."""
    if not setting.arrivals:
        return []
    scored = []
    for each, took_s in scored_beside(planned(setting, only), ours=1):
        err.print(f"{each.name}: {took_s:.1f} s", highlight=False)
        scored.append(each)
    return scored
