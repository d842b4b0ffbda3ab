"""`shunter top`."""

import contextlib
import sys
from typing import Annotated

import typer

from policies import compile_options
from shunter.client.kafka import run
from shunter.console import (
    AsJson,
    Bootstrap,
    FleetFile,
    PolicyFile,
    Prefix,
    UserError,
    out,
    settings_from,
    wide_out,
)
from shunter.top import look_once, screen, watch
from shunter.top.state import State
from streams.config.declarations import load_fleet, load_policy
from streams.engine.clock import SystemClock
from streams.live import LiveView
from streams.live.view import WINDOW_S
from topics import Catalogue, encode


def top(
    once: Annotated[bool, typer.Option("--once", help="Print the view once, and end.")] = False,
    interval: Annotated[
        float, typer.Option(min=0.1, max=60, help="Seconds between two drawings.")
    ] = 1.0,
    window: Annotated[
        float,
        typer.Option(min=10, max=3600, help="Seconds that rates, shares and quantiles are of."),
    ] = WINDOW_S,
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    as_json: AsJson = False,
) -> None:
    """Show what the whole system does at this moment: pools, holds, classes, money, fallbacks.

    Reads the topics and writes nothing; `?` tells the keys. With --once --json it prints one JSON
    object; docs/live.md has its fields.

    Example: shunter top --once --json
    """
    settings = settings_from(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=topic_prefix,
        fleet=fleet,
        policy=policy,
    )
    if as_json and not once:
        raise UserError("--json prints one view: say --once --json")
    if not once and not (out.is_terminal and sys.stdin.isatty()):
        raise UserError("this is no terminal; `shunter top --once` prints the view once")
    clock = SystemClock()
    view = LiveView(
        Catalogue(settings),
        compile_options(load_fleet(settings.fleet)),
        load_policy(settings.policy),
        since=clock.now() - window,
        window_s=window,
        held_records_max=settings.held_records_max,
    )
    if not once:
        with contextlib.suppress(KeyboardInterrupt):
            run(watch(settings, view, clock, out, interval))
        return
    snapshot = run(look_once(settings, view, clock))
    if as_json:
        typer.echo(encode(snapshot).decode())
    else:
        console = wide_out()
        where = f"{settings.topic_prefix} on {settings.bootstrap_servers}"
        console.print(screen(snapshot, State(active=""), console.width, None, where=where))
