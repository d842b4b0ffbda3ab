"""`shunter gateway`."""

import asyncio
from typing import Annotated, NoReturn

import typer
from aiokafka.errors import KafkaError

from gateway.http.keys import KeysError
from gateway.server import run_gateway
from shunter.console import (
    Bootstrap,
    FleetFile,
    PolicyFile,
    Prefix,
    UserError,
    out,
    settings_from,
)
from streams.logs import set_up_logging
from topics import Settings


def gateway(
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    host: Annotated[
        str | None,
        typer.Option("--host", help="Where to listen.  [env: SHUNTER_GATEWAY_HOST]"),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option("--port", help="Its port; 0 takes a free one.  [env: SHUNTER_GATEWAY_PORT]"),
    ] = None,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Serve on a free port of this machine, try that through OpenAI's own client (one"
            " token of a live model), and end; exit code 1 if something fails.",
        ),
    ] = False,
) -> None:
    """Serve the OpenAI API over HTTP: requests go to Kafka, answers come from its results.

    Runs until SIGTERM or SIGINT. Any number of gateways may run side by side.

    Example: shunter gateway --port 8400
    """
    settings = settings_from(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=topic_prefix,
        fleet=fleet,
        policy=policy,
        gateway_host=host,
        gateway_port=port,
    )
    set_up_logging("warning" if check else settings.log_level, settings.log_format)
    try:
        if check:
            _check(settings)
        asyncio.run(run_gateway(settings))
    except (KeysError, OSError) as error:
        raise UserError(str(error)) from error
    except KafkaError as error:
        raise UserError(f"Kafka: {error}") from error


def _check(settings: Settings) -> NoReturn:
    # Its client is an extra, and slow to import.
    from shunter.client.gateway_check import check_gateway  # noqa: PLC0415

    is_good = asyncio.run(
        check_gateway(settings, lambda what, found: out.print(f"{what}: {found}", soft_wrap=True))
    )
    raise typer.Exit(0 if is_good else 1)
