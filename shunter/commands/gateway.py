"""`shunter gateway`."""

import asyncio

from aiokafka.errors import KafkaError

from gateway.http.keys import KeysError
from gateway.server import run_gateway
from shunter.console import Bootstrap, FleetFile, PolicyFile, Prefix, UserError, settings_from
from streams.logs import set_up_logging


def gateway(
    bootstrap_servers: Bootstrap = None,
    topic_prefix: Prefix = None,
    fleet: FleetFile = None,
    policy: PolicyFile = None,
) -> None:
    """Serve the OpenAI API over HTTP: requests go to Kafka, answers come from its results.

    Runs until SIGTERM or SIGINT. Any number of gateways may run side by side.

    Example: shunter gateway
    """
    settings = settings_from(
        bootstrap_servers=bootstrap_servers, topic_prefix=topic_prefix, fleet=fleet, policy=policy
    )
    set_up_logging(settings.log_level, settings.log_format)
    try:
        asyncio.run(run_gateway(settings))
    except (KeysError, OSError) as error:
        raise UserError(str(error)) from error
    except KafkaError as error:
        raise UserError(f"Kafka: {error}") from error
