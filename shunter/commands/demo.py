"""`shunter demo`."""

import signal
import sys
from typing import Annotated

import orjson
import typer
from aiokafka.errors import KafkaError

from shunter.console import AsJson, UserError, err, out
from shunter.demo import Outcome, Plan, run_demo
from shunter.demo.report import report
from shunter.demo.show import Lines
from shunter.demo.view import View
from streams import LogError
from topics import BadRecordError
from topics.admin import AdminError

SPEED = 4.0


def demo(
    as_json: AsJson = False,
    speed: Annotated[
        float,
        typer.Option(min=0.1, max=100, help="How many seconds of the trace pass in one of ours."),
    ] = SPEED,
    requests: Annotated[
        int | None,
        typer.Option(min=1, help="Take so many rows, spread over the trace, instead of all."),
    ] = None,
    bootstrap_servers: Annotated[
        str | None,
        typer.Option(
            "--bootstrap-servers",
            metavar="HOST:PORT",
            help="Use this Kafka instead of starting one; SHUNTER_SASL_* and SHUNTER_SSL_* apply.",
        ),
    ] = None,
    topic_prefix: Annotated[
        str | None,
        typer.Option("--topic-prefix", help="What topic names begin with; must not be in use."),
    ] = None,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave everything up at the end, until Ctrl-C.")
    ] = False,
) -> None:
    """Run the whole system on this machine, on a replay of real traffic, and check the outcome.

    Starts Kafka, the router and a worker per pool of the packaged fleet, whose devices are
    simulated. Exit code 0 if every request got exactly one result and no constraint was broken.

    Example: shunter demo
    """
    # A polite end then goes the way of Ctrl-C, which stops what was started.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    plan = Plan(speed, requests, bootstrap_servers, topic_prefix, keep)
    drawn = out.is_terminal and not as_json
    show = View(out) if drawn else Lines(err)

    def tell(outcome: Outcome) -> None:
        if isinstance(show, View):
            show.close()
        if as_json:
            typer.echo(orjson.dumps(outcome.figures).decode())
            sys.stdout.flush()
        else:
            out.print(report(outcome, kept=keep))

    try:
        is_good = run_demo(plan, show, tell)
    except (AdminError, LogError, BadRecordError, TimeoutError) as error:
        raise UserError(str(error)) from error
    except KafkaError as error:
        raise UserError(f"Kafka: {error}") from error
    if not is_good:
        raise typer.Exit(1)
