"""The ground of every demo: its Kafka and topics, its keys, its log, and staying up."""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from shunter.console import UserError, settings_from
from shunter.demo.show import Show
from shunter.demo.system import System
from shunter.demo.traces import Jaeger, jaeger
from streams.logs import set_up_logging
from topics import Catalogue, Settings
from topics.admin.provisioning import apply
from topics.embedded_broker.broker import BrokerError, EmbeddedBroker
from topics.signing.keys import load_signing_key, write_signing_key

logger = logging.getLogger(__name__)

CLEANED_S_MAX = 10.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """The user's options; None means the demo's default."""

    speed: float | None = None
    requests: int | None = None
    bootstrap_servers: str | None = None
    topic_prefix: str | None = None
    keep: bool = False
    gateway: bool = True
    traced: bool = False
    jaeger_program: Path | None = None
    fleet: Path | None = None
    model: Path | None = None
    """Of a demo on real models: the GGUF file; None is the packaged one."""


def log_to(path: Path) -> None:
    """Send the Kafka client's warnings to a file, not through the live view."""
    with contextlib.redirect_stderr(path.open("a", encoding="utf-8")):
        set_up_logging("warning")
    logging.captureWarnings(capture=True)


def traces_of(plan: Plan, run_dir: Path, stack: contextlib.ExitStack) -> Jaeger | None:
    """Return the Jaeger that is asked for, None if none is. Raises UserError: there is none."""
    if not plan.traced:
        return None
    page, log = settings_from().jaeger_url, run_dir / "jaeger.log"
    return stack.enter_context(jaeger(page, plan.jaeger_program, log))


def kafka_of(plan: Plan, stack: contextlib.ExitStack, show: Show) -> dict[str, Any]:
    """Start a Kafka if the plan names none; return the settings by which it is reached.

    Raises:
        UserError: it can't be started.
    """
    own: dict[str, Any] = {"bootstrap_servers": plan.bootstrap_servers}
    prefix = f"demo-{secrets.token_hex(4)}"
    if plan.bootstrap_servers is None:
        show.say("Starting Apache Kafka ...")
        broker = EmbeddedBroker(announce=show.say)
        try:
            stack.enter_context(broker)
        except BrokerError as error:
            raise UserError(f"{error}\nOr name a Kafka that runs: --bootstrap-servers.") from error
        own = {"bootstrap_servers": broker.bootstrap_servers, "security_protocol": "PLAINTEXT"}
        prefix = "inference"
    return own | {"topic_prefix": plan.topic_prefix or prefix}


def installation_key(run_dir: Path) -> tuple[str, dict[str, str]]:
    """Make an installation key that introduces each process; return its fingerprint, and where.

    It lies beside the processes and not offline, and so binds their names to nothing but this run.
    """
    path = run_dir / "installation.pem"
    write_signing_key(path, [Ed25519PrivateKey.generate()], time.time())
    return load_signing_key(path).id, {"SHUNTER_EVIDENCE_INTRODUCER": str(path)}


async def create_topics(settings: Settings, pools: Iterable[str]) -> None:
    """Create the topics of a demo, which shares none with anybody. Raises UserError."""
    report = await apply(settings, pools)
    found = [topic.name for topic in report.topics if topic.state != "created"]
    if found:
        raise UserError(
            f"{settings.bootstrap_servers} has topics of the prefix {settings.topic_prefix!r}"
            f" already ({found[0]} ...), and the demo shares none; choose another --topic-prefix"
        )


async def delete_topics(settings: Settings, pools: Iterable[str]) -> None:
    """Delete the demo's topics on a foreign Kafka; if it is gone, leave them."""
    admin = AIOKafkaAdminClient(**settings.kafka_options())
    try:
        async with asyncio.timeout(CLEANED_S_MAX):
            await admin.start()
            names = [topic.name for topic in Catalogue(settings).topics(pools)]
            await admin.delete_topics(names)
    except (KafkaError, TimeoutError) as error:
        logger.warning("the topics %s.* were left: %s", settings.topic_prefix, error)
    finally:
        await admin.close()


async def stop(
    plan: Plan, system: System, settings: Settings, pools: Iterable[str], show: Show
) -> None:
    """Stop the processes of a demo, and delete its topics from a Kafka of the user's."""
    # Where a terminal was closed there is nobody to tell.
    with contextlib.suppress(OSError):
        show.say("Stopping ...")
    system.stop()
    if plan.bootstrap_servers is not None:
        await delete_topics(settings, pools)


async def keep_up(system: System) -> None:
    """Tend a system until somebody interrupts."""
    with contextlib.suppress(asyncio.CancelledError):
        while True:
            system.tend()
            await asyncio.sleep(POLL_S)
