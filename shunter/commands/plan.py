"""`shunter plan`: the cheapest fleet for a trace that keeps SLOs and constraints."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.table import Table

from policies import DeclarationError, Fleet
from policies.backtest.fault_model import Reality
from policies.backtest.workload import compress
from policies.config.hardware import Kind
from shunter.backtest.files import read_trace
from shunter.backtest.programme import NoBoundError
from shunter.backtest.suite import Setting
from shunter.console import (
    AsJson,
    FleetFile,
    PolicyFile,
    UserError,
    err,
    named,
    out,
    read_declared,
    settings_from,
)
from shunter.plan.capacity import Capacity, capacity
from shunter.plan.judge import Case, Judge
from shunter.plan.market import Counts, Market, parse_market, rent
from shunter.plan.picture import draw
from shunter.plan.search import FleetSearch, JudgedFleet, NoPlanError, binding, curve
from streams.config.declarations import load_fleet, load_policy

BOUND_SHARE = 0.25
"""Share of the time that the solver may take."""


def plan(
    trace: Annotated[
        Path | None,
        typer.Option(
            "--trace", help="CSV of requests, may be gzipped; a packaged sample, if unset."
        ),
    ] = None,
    rate: Annotated[
        float, typer.Option(min=0.001, max=10_000, help="Divide arrival times by this.")
    ] = 1.0,
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    market: Annotated[
        Path | None,
        typer.Option("--market", help="YAML: offers, counts and limits of sites (docs/plan.md)."),
    ] = None,
    attainment: Annotated[
        float, typer.Option(min=0.5, max=1.0, help="Share of all requests to be served in time.")
    ] = 0.99,
    by_class: Annotated[
        float,
        typer.Option(
            "--class-attainment", min=0.0, max=1.0, help="Share of each class to be served in time."
        ),
    ] = 0.95,
    without: Annotated[
        str, typer.Option("--without-any", help="What may be gone: none, pool or region.")
    ] = "none",
    minutes: Annotated[
        float, typer.Option(min=0.1, max=600, help="Time for the whole search.")
    ] = 5.0,
    beside: Annotated[
        bool,
        typer.Option("--kinds/--no-kinds", help="Plan with each kind of device alone, too."),
    ] = True,
    plot: Annotated[Path | None, typer.Option("--plot", help="PNG to draw.")] = None,
    as_json: AsJson = False,
) -> None:
    """Find the cheapest fleet for a trace: how many replicas of which pools, rented how.

    The pools of --fleet are what may be rented; how many of them it has doesn't count. A programme
    gives a bound below which no fleet serves all in time, and a start; each fleet of the search is
    judged by the backtest of the policy. Prices are of rented time, busy or idle.

    Example: shunter plan --rate 10 --without-any pool --minutes 5
    """
    settings = settings_from(fleet=fleet, policy=policy)
    declared = _as_it_is(load_fleet(settings.fleet))
    arrivals = compress(read_trace(trace), rate)
    setting = Setting(arrivals, declared, load_policy(settings.policy), Reality())
    offered = _market(market, declared)
    cases, wanted = _cases(declared, without), (attainment, by_class)
    kinds = _kinds(setting) if beside else []
    seconds = 60 * minutes / (2 if kinds else 1)
    alone = {
        kind: _alone(setting, offered, wanted, cases, seconds / len(kinds), kind) for kind in kinds
    }
    others = [each.counts for each in alone.values() if not isinstance(each, str)]
    try:
        found = _found(setting, offered, wanted, cases, seconds, others)
    except (NoBoundError, NoPlanError) as error:
        raise UserError(str(error)) from error
    report = _report(setting, offered, found, alone)
    if plot is not None:
        draw(plot, curve(found[1].seen.values()), found[2], found[0].bound_usd_per_hour)
    if as_json:
        typer.echo(orjson.dumps(report).decode())
    else:
        _show(report)


Wanted = tuple[float, float]
"""Attainment of all, and of each class."""
Found = tuple[Capacity, FleetSearch, JudgedFleet]


def _found(
    setting: Setting,
    market: Market,
    wanted: Wanted,
    cases: list[Case],
    seconds: float,
    others: Sequence[Counts] = (),
) -> Found:
    """Return the programme's answer, the search, and its best fleet."""
    start = capacity(setting, market, cases, BOUND_SHARE * seconds, wanted)
    err.print(f"bound: ${start.bound_usd_per_hour:.2f} an hour", highlight=False)
    judge = Judge(setting, market, *wanted)
    search = FleetSearch(judge, cases, (1 - BOUND_SHARE) * seconds, _tell)
    return start, search, search.run(start.replicas, others)


def _kinds(setting: Setting) -> list[Kind]:
    """Return the kinds of device that serve each model of the trace."""
    fleet, models = setting.fleet, {arrival.model for arrival in setting.arrivals}
    served: dict[Kind, set[str]] = {}
    for pool in fleet.pools.values():
        kind = fleet.devices[pool.device].kind
        served.setdefault(kind, set()).update(each.model for each in pool.serves)
    return sorted(kind for kind, known in served.items() if models <= known)


def _alone(
    setting: Setting,
    market: Market,
    wanted: Wanted,
    cases: list[Case],
    seconds: float,
    kind: Kind,
) -> JudgedFleet | str:
    """Return the best fleet of one kind of device, or why there is none."""
    fleet = setting.fleet
    pools = {n: p for n, p in fleet.pools.items() if fleet.devices[p.device].kind == kind}
    only = Setting(
        setting.arrivals, fleet.model_copy(update={"pools": pools}), setting.policy, setting.reality
    )
    kept = {name: known for name, known in market.pools.items() if name in pools}
    regions = {pool.region for pool in pools.values()}
    sites = {name: site for name, site in market.sites.items() if name in regions}
    err.print(f"of {kind} alone:", highlight=False)
    narrowed = market.model_copy(update={"pools": kept, "sites": sites})
    inside = [tuple(name for name in case if name in pools) for case in cases]
    try:
        return _found(only, narrowed, wanted, [case for case in inside if case], seconds)[2]
    except (NoBoundError, NoPlanError) as error:
        return str(error)


def _as_it_is(fleet: Fleet) -> Fleet:
    """Return a fleet whose pools take the time that their devices take.

    Raises:
        UserError: a pool is simulated faster or slower, while its rent is that of its devices.
    """
    scaled = [
        f"{name} of {scale:g}"
        for name, pool in fleet.pools.items()
        if (scale := getattr(pool.backend, "time_scale", 1.0)) != 1.0
    ]
    if scaled:
        raise UserError(
            f"pools have a time_scale, {', '.join(scaled)}: a plan rents devices as they are;"
            " leave it out"
        )
    return fleet


def _market(path: Path | None, fleet: Fleet) -> Market:
    if path is None:
        return Market()
    try:
        return parse_market(read_declared(path), named(path), fleet)
    except DeclarationError as error:
        raise UserError(str(error)) from error


def _cases(fleet: Fleet, without: str) -> list[Case]:
    if without == "none":
        return []
    if without == "pool":
        return [(name,) for name in fleet.pools]
    if without == "region":
        regions = sorted({pool.region for pool in fleet.pools.values()})
        return [
            tuple(name for name, pool in fleet.pools.items() if pool.region == region)
            for region in regions
        ]
    raise UserError(f"--without-any {without!r}: is none, pool or region")


def _tell(line: str) -> None:
    err.print(line, highlight=False)


def _report(
    setting: Setting, market: Market, found: Found, alone: dict[Kind, JudgedFleet | str]
) -> dict[str, Any]:
    start, search, best = found
    rents = {name: rent(name, count, setting.fleet, market) for name, count in best.counts.items()}
    last_s = max(arrival.arrival_s for arrival in setting.arrivals)
    return {
        "requests": len(setting.arrivals),
        "requests_per_s": len(setting.arrivals) / last_s if last_s else math.nan,
        "usd_per_hour": best.usd_per_hour,
        "bound_usd_per_hour": start.bound_usd_per_hour,
        "gap": best.usd_per_hour / start.bound_usd_per_hour - 1
        if start.bound_usd_per_hour
        else None,
        "pools": {
            name: {
                "replicas": best.counts[name],
                "region": setting.fleet.pools[name].region,
                "device": setting.fleet.pools[name].device,
                "rented": each.by_offer,
                "usd_per_hour": each.usd_per_hour,
            }
            for name, each in rents.items()
        },
        "binds": binding(search, best),
        "attainment": best.usual.attainment,
        "attainment_by_task": best.usual.by_task,
        "worst_case": {
            "gone": best.worst_case,
            "attainment": best.worst.attainment,
            "attainment_by_task": best.worst.by_task,
        },
        "busy_usd": best.usual.busy_usd,
        "unservable": start.unservable,
        "curve": [
            {
                "usd_per_hour": each.usd_per_hour,
                "attainment": each.usual.attainment,
                "replicas": each.counts,
            }
            for each in curve(search.seen.values())
        ],
        "fleets_judged": len(search.seen),
        "one_kind": {
            kind: each
            if isinstance(each, str)
            else {
                "usd_per_hour": each.usd_per_hour,
                "replicas": each.counts,
                "dearer_by": each.usd_per_hour / best.usd_per_hour - 1,
            }
            for kind, each in alone.items()
        },
    }


def _show(report: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("pool", "device", "region"):
        table.add_column(heading)
    for heading in ("replicas", "rented as", "$ an hour"):
        table.add_column(heading, justify="right")
    for name, pool in report["pools"].items():
        rented = ", ".join(f"{count} {offer}" for offer, count in pool["rented"].items())
        table.add_row(
            *(name, pool["device"], pool["region"], str(pool["replicas"]), rented),
            f"{pool['usd_per_hour']:.2f}",
        )
    out.print(table)
    out.print()
    gap = "" if report["gap"] is None else f", {report['gap']:.0%} above the bound of"
    bound = f" ${report['bound_usd_per_hour']:.2f}" if gap else ""
    out.print(
        f"${report['usd_per_hour']:.2f} an hour{gap}{bound}, for {report['requests_per_s']:.1f}"
        f" requests/s; {report['fleets_judged']} fleets judged",
        highlight=False,
    )
    classes = ", ".join(f"{t} {share:.1%}" for t, share in report["attainment_by_task"].items())
    out.print(f"attains {report['attainment']:.2%}: {classes}", highlight=False)
    if gone := report["worst_case"]["gone"]:
        share = report["worst_case"]["attainment"]
        out.print(f"at worst, with {', '.join(gone)} gone, {share:.2%}", highlight=False)
    for pool, missed in report["binds"].items():
        objectives = ", ".join(f"{task} its {name}" for task, name in missed.items())
        out.print(f"with a replica less of {pool}: too many miss, of {objectives}", highlight=False)
    if report["unservable"]:
        out.print(f"{report['unservable']} requests no pool could serve in time, whatever its size")
    for kind, each in report["one_kind"].items():
        told = (
            f"none: {each}"
            if isinstance(each, str)
            else f"${each['usd_per_hour']:.2f} an hour, {each['dearer_by']:+.0%}"
        )
        out.print(f"of {kind} alone: {told}", highlight=False, soft_wrap=True)
    curve_table = Table(box=None, pad_edge=False, header_style="bold")
    curve_table.add_column("$ an hour", justify="right")
    curve_table.add_column("attained", justify="right")
    curve_table.add_column("fleet")
    for point in report["curve"]:
        fleet = ", ".join(f"{count} x {name}" for name, count in point["replicas"].items())
        curve_table.add_row(f"{point['usd_per_hour']:.2f}", f"{point['attainment']:.1%}", fleet)
    out.print()
    out.print(curve_table)
