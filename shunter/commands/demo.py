"""`shunter demo`."""

import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from aiokafka.errors import KafkaError

from shunter.console import AsJson, UserError, err, out
from shunter.demo import DemoOutcome, Plan, RealOutcome, run_demo, run_real
from shunter.demo.real_report import figures_of, print_real
from shunter.demo.report import print_door, print_savings, print_traces, report, traces
from shunter.demo.savings import short
from shunter.demo.show import Lines
from shunter.demo.view import View
from streams.engine.log import LogError
from topics import BadRecordError
from topics.admin.provisioning import AdminError

Speed = Annotated[
    float | None,
    typer.Option(
        min=0.1,
        max=100,
        help="How many seconds of the trace pass in one of ours; as many as this machine was"
        " measured to carry, if not given.",
    ),
]
Traced = Annotated[
    bool,
    typer.Option(
        "--jaeger",
        help="Send traces to the Jaeger on this machine (or of OTEL_EXPORTER_OTLP_ENDPOINT and"
        " SHUNTER_JAEGER_URL), and end with the addresses of two.",
    ),
]
Keep = Annotated[
    bool | None,
    typer.Option(
        "--keep/--no-keep",
        help="Leave everything up at the end, until Ctrl-C, with a gateway for OpenAI clients: so"
        " it is on a terminal, unless --json or --no-keep says otherwise.",
    ),
]
Door = Annotated[bool, typer.Option("--gateway/--no-gateway", help="Open the gateway of --keep.")]
JaegerProgram = Annotated[
    Path | None,
    typer.Option("--jaeger-program", metavar="FILE", help="Run this Jaeger while the demo runs."),
]

SimulatedFleet = Annotated[
    Path | None, typer.Option("--fleet", help="Simulate this fleet: a YAML file, or `full`.")
]

Real = Annotated[
    bool,
    typer.Option(
        "--real",
        help="Answer some requests by real models on this machine's processor in place of the"
        " replay: chat by llama.cpp, embeddings and moderations by the worker (extra `real`).",
    ),
]
ModelFile = Annotated[
    Path | None,
    typer.Option("--model", metavar="FILE", help="With --real: chat by this GGUF model."),
]


def demo(
    as_json: AsJson = False,
    speed: Speed = None,
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
    jaeger: Traced = False,
    jaeger_program: JaegerProgram = None,
    fleet: SimulatedFleet = None,
    keep: Keep = None,
    gateway: Door = True,
    real: Real = False,
    model: ModelFile = None,
) -> None:
    """Run the whole system on this machine, on a replay of real traffic, and check the outcome.

    Starts Kafka, the router and a worker per pool of the packaged fleet, whose devices are
    simulated, and says where their live page is. On a terminal all of it stays up at the end,
    behind a gateway, until Ctrl-C. Exit code 0 if every request got exactly one result and no
    constraint was broken.

    Example: shunter demo
    """
    _end_as_by_ctrl_c()
    plan = Plan(
        speed,
        requests,
        bootstrap_servers,
        topic_prefix,
        _stays(keep, as_json=as_json),
        gateway,
        traced=jaeger or jaeger_program is not None,
        jaeger_program=jaeger_program,
        fleet=fleet,
        model=model,
    )
    if real or model is not None:
        return _on_real_models(plan, as_json=as_json)
    drawn = out.is_terminal and not as_json
    show = View(out) if drawn else Lines(err)

    def tell(outcome: DemoOutcome) -> None:
        if isinstance(show, View):
            show.close()
        if as_json:
            typer.echo(orjson.dumps(_figures(outcome)).decode())
            sys.stdout.flush()
        else:
            out.print(report(outcome, kept=plan.keep))
            print_savings(out, outcome, kept=plan.keep)
            print_traces(out, outcome)
            print_door(out, outcome.door, kept=plan.keep)

    return _ended(lambda: run_demo(plan, show, tell))


def _end_as_by_ctrl_c() -> None:
    """Have SIGTERM and a terminal that is closed stop the processes started, as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # What `nohup` has told to be ignored stays so.
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, signal.default_int_handler)


def _stays(keep: bool | None, *, as_json: bool) -> bool:
    """Return whether the demo stays up: as is said, else where somebody sits at a terminal."""
    if keep is not None:
        return keep
    return not as_json and sys.stdin.isatty() and sys.stdout.isatty()


def _on_real_models(plan: Plan, *, as_json: bool) -> None:
    if plan.speed is not None or plan.requests is not None or plan.fleet is not None:
        raise UserError("--real sends requests of its own: give it no --speed, --requests, --fleet")

    def tell(outcome: RealOutcome) -> None:
        if as_json:
            typer.echo(orjson.dumps(figures_of(outcome)).decode())
            sys.stdout.flush()
        else:
            print_real(out, outcome, kept=plan.keep)

    _ended(lambda: run_real(plan, Lines(err), tell))


def _ended(run: Callable[[], bool]) -> None:
    """Run a demo, and exit as its checks ended."""
    try:
        is_good = run()
    except (AdminError, LogError, BadRecordError, TimeoutError) as error:
        raise UserError(str(error)) from error
    except KafkaError as error:
        raise UserError(f"Kafka: {error}") from error
    if not is_good:
        raise typer.Exit(1)


def _figures(outcome: DemoOutcome) -> dict[str, Any]:
    """Return the figures for programs."""
    figures = outcome.figures
    figures |= {"traces": traces(outcome)} if outcome.jaeger else {}
    return figures | ({"savings": short(outcome.savings)} if outcome.savings else {})
