"""Read the policies topic, and publish to it."""

import asyncio
import getpass
import socket
from collections.abc import Sequence

from shunter.client.kafka import note
from shunter.client.submit import ACKNOWLEDGED_S_MAX, producer_of
from shunter.console import UserError
from shunter.logs.reading import place_of, read_all
from streams.config.declarations import Declarations, declared_by
from streams.kafka.log import KafkaLog
from topics import BadRecordError, Catalogue, PolicyEntry, PolicyLog, Settings, encode, entry_key
from topics.admin.provisioning import partition_counts


async def read_policy_log(settings: Settings) -> PolicyLog:
    """Return the topic's log; a record that is unreadable here is reported and left out.

    Raises:
        AdminError: Kafka can't be reached, or the topic is missing.
    """
    topic = Catalogue(settings).policies
    await partition_counts(settings, [topic])
    said = PolicyLog()
    async for record in read_all(KafkaLog(settings), topic, 1):
        try:
            said.add(record.value)
        except BadRecordError as error:
            note(f"{place_of(record)} is left out: {error.message}")
    return said


async def declarations_in_force(settings: Settings, own: Declarations) -> Declarations:
    """Return what routers that were started with ``own`` decide by.

    Raises:
        AdminError: Kafka can't be reached, or the topic is missing.
        DeclarationError: what was applied can't be read here.
    """
    said = await read_policy_log(settings)
    return own if said.current is None else declared_by(said, said.current, own)


async def publish_entries(settings: Settings, entries: Sequence[PolicyEntry]) -> None:
    """Publish entries one by one, so that a change comes after the entries it names.

    Raises:
        UserError: Kafka does not acknowledge one.
    """
    topic = Catalogue(settings).policies
    async with producer_of(settings) as producer:
        for entry in entries:
            try:
                async with asyncio.timeout(ACKNOWLEDGED_S_MAX):
                    await producer.send_and_wait(topic, encode(entry), key=entry_key(entry))
            except TimeoutError as error:
                raise UserError(
                    f"no acknowledgement within {ACKNOWLEDGED_S_MAX:g} s; look at `shunter policy"
                    " history` before you try again"
                ) from error


def who() -> str:
    """Return the user of this command, as the machine knows them."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
