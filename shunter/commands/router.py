"""`shunter router`."""

from shunter.console import Bootstrap, FleetFile, Instance, PolicyFile, Prefix, settings_from
from shunter.processes.router import run_router


def router(
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    fleet: FleetFile = None,
    policy: PolicyFile = None,
    instance: Instance = None,
) -> None:
    """Route requests to pools, and hold those that wait for a batch.

    Runs until SIGTERM or SIGINT. Start as many as there are partitions.

    Example: shunter router --bootstrap-servers 127.0.0.1:9092
    """
    run_router(
        settings_from(
            bootstrap_servers=bootstrap_servers,
            topic_prefix=topic_prefix,
            fleet=fleet,
            policy=policy,
            instance=instance,
        )
    )
