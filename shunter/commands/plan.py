"""`shunter plan`: the cheapest fleet for a trace that keeps SLOs and constraints."""

from pathlib import Path
from typing import Annotated

import orjson
import typer

from policies import DeclarationError, Fleet
from policies.backtest.fault_model import Reality
from policies.backtest.workload import compress
from shunter.backtest.files import read_known
from shunter.backtest.suite import Setting
from shunter.console import (
    AsJson,
    FleetFile,
    PolicyFile,
    UserError,
    named,
    read_declared,
    settings_from,
)
from shunter.plan.market import INTERRUPTIONS_MAX, Market, parse_market
from shunter.render.figure import check_figure
from streams.config.declarations import load_fleet, load_policy


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

    The pools of --fleet are what may be rented; how many it has of them doesn't count. A programme
    gives a start, and a bound below which no schedule serves all in time. The backtest judges each
    fleet; cheaper ones that clearly fail give a bound of this policy. Prices are of rented time.

    Example: shunter plan --rate 10 --without-any pool --minutes 5
    """
    try:
        from shunter.commands.planning import find_plan, show_plan  # noqa: PLC0415  an extra
    except ImportError as error:
        told = f"a plan needs more: pip install 'shunter[backtest]' ({error})"
        raise UserError(told) from error
    settings = settings_from(fleet=fleet, policy=policy)
    declared = _as_it_is(load_fleet(settings.fleet))
    offered, cases = _market(market, declared), _cases(declared, without)
    check_figure(plot)
    live = load_policy(settings.policy)
    arrivals = compress(read_known(trace, declared, live), rate)
    report = find_plan(
        Setting(arrivals, declared, live, Reality()),
        offered,
        (attainment, by_class),
        cases,
        60 * minutes,
        beside=beside,
        plot=plot,
    )
    if as_json:
        typer.echo(orjson.dumps(report).decode())
    else:
        show_plan(report)


def _as_it_is(fleet: Fleet) -> Fleet:
    """Return a fleet whose pools take the time that their devices take.

    Raises:
        UserError: a pool is simulated faster or slower, while its rent is that of its devices, or
            prices move, while a rent stands, or a pool has nothing but interruptions.
    """
    moving = [f"pools.{name}.tariff" for name, pool in fleet.pools.items() if pool.tariff]
    moving += [f"series.{name}" for name, series in fleet.series.items() if series.moves]
    if moving:
        raise UserError(
            f"the fleet's prices move, {', '.join(moving)}: a plan rents at prices that stand;"
            " leave that out, and say what is paid in --market"
        )
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
    for name, pool in fleet.pools.items():
        if pool.interruptions_per_hour > INTERRUPTIONS_MAX:
            raise UserError(
                f"pools.{name}.interruptions_per_hour is {pool.interruptions_per_hour:g}: a plan"
                f" takes {INTERRUPTIONS_MAX:g} at most"
            )
    return fleet


def _market(path: Path | None, fleet: Fleet) -> Market:
    if path is None:
        return Market()
    try:
        return parse_market(read_declared(path), named(path), fleet)
    except DeclarationError as error:
        raise UserError(str(error)) from error


def _cases(fleet: Fleet, without: str) -> list[tuple[str, ...]]:
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
