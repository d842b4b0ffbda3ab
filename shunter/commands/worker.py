"""`shunter worker`."""

from typing import Annotated

import typer

from shunter.console import (
    Bootstrap,
    FleetFile,
    Instance,
    PolicyFile,
    Prefix,
    UserError,
    settings_from,
)
from shunter.processes.worker import UnknownPoolError, run_worker
from workers.backends.base import BackendSettingError


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
        run_worker(pool, settings, evacuates=evacuate)
    except (UnknownPoolError, BackendSettingError) as error:
        raise UserError(str(error)) from error
