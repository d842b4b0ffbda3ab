"""`shunter worker`."""

from collections.abc import Sequence
from typing import Annotated

import typer

from shunter.console import (
    Bootstrap,
    FleetFile,
    Instance,
    PolicyFile,
    Prefix,
    UserError,
    out,
    settings_from,
)
from shunter.processes.worker import UnknownPoolError, run_worker
from shunter.processes.worker_check import check_worker
from workers.backends.base import BackendSettingError
from workers.backends.openai.inspection import ServerFinding


def worker(
    pool: Annotated[str, typer.Argument(help="A pool of the fleet file.")],
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    instance: Instance = None,
    evacuate: Annotated[
        bool,
        typer.Option(
            "--evacuate",
            help="Run nothing: hand what stands in the pool's lanes to other pools. Routers send"
            " nothing more to a pool of which no other worker is up.",
        ),
    ] = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Ask the pool's server for some tokens, say what is missing, and end; without"
            " Kafka. Exit code 1 where anything is.",
        ),
    ] = False,
) -> None:
    """Serve the requests of one pool on its backend.

    Runs until SIGTERM or SIGINT: then it finishes what runs, as far as the grace period goes, and
    leaves the rest to its successor. Several workers of a pool share its partitions; on several
    hosts whose names are alike each needs an --instance of its own.

    Example: shunter worker premium-eu --instance premium-eu-0
    """
    settings = settings_from(
        bootstrap_servers=bootstrap_servers,
        topic_prefix=topic_prefix,
        fleet=fleet,
        policy=policy,
        instance=instance,
    )
    try:
        if check:
            raise typer.Exit(_tell(check_worker(pool, settings)))
        run_worker(pool, settings, evacuates=evacuate)
    except (UnknownPoolError, BackendSettingError) as error:
        raise UserError(str(error)) from error


def _tell(findings: Sequence[ServerFinding]) -> int:
    """Print what was found; return the exit code."""
    for found in findings:
        out.print(f"{found.state:8}{found.what}: {found.told}", soft_wrap=True)
    return int(any(found.state != "ok" for found in findings))
