"""Forgotten payloads leave the disk of a real broker, though nobody writes any more."""

import asyncio
import base64
import secrets
import tempfile
import time
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from shunter.audit.forgetting import forget_tenant
from shunter.audit.texts import read_salts
from shunter.console import UserError
from topics import Catalogue, Salt, Settings, encode
from topics.signing.salts import SALT_BYTES, digest_key, salt_key, text_digest

pytestmark = pytest.mark.kafka
GONE_S_MAX = 30.0


def dumped(topic: str) -> bytes:
    """Return every byte on disk of a topic, of files that await deletion too."""
    places = list(Path(tempfile.gettempdir()).glob(f"shunter-*/**/{topic}-0"))
    if not places:
        pytest.skip("the broker is not one of this machine")
    files = [file for place in places for file in place.iterdir() if file.is_file()]
    found = b""
    for file in files:
        try:
            found += file.read_bytes()
        except FileNotFoundError:
            continue
    return found


async def until_absent(topic: str, salt: Salt) -> None:
    async with asyncio.timeout(GONE_S_MAX):
        while salt.salt.encode() in dumped(topic):  # noqa: ASYNC110 - a disk tells of nothing
            await asyncio.sleep(0.2)


def make_salt(tenant: str) -> Salt:
    raw = base64.b64encode(secrets.token_bytes(SALT_BYTES)).decode()
    return Salt(tenant, secrets.token_hex(8), raw)


async def salts_topic(settings: Settings, *salts: Salt, **changes: str) -> str:
    """Make the topic, with settings that differ from the catalogue's, and put salts there.

    They are a minute old: what is written to the topic then begins a segment.
    """
    catalogue = Catalogue(settings)
    topic = next(t for t in catalogue.shared_topics() if t.name == catalogue.evidence_salts)
    config = topic.config() | {"compression.type": "uncompressed"} | changes
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    await admin.create_topics([NewTopic(topic.name, 1, 1, topic_configs=config)])
    await admin.close()
    kafka = settings.bootstrap_servers
    async with AIOKafkaProducer(bootstrap_servers=kafka, acks="all") as producer:
        for salt in salts:
            key = salt_key(salt.tenant, salt.id)
            at_ms = int((time.time() - 60) * 1000)
            await producer.send_and_wait(topic.name, encode(salt), key=key, timestamp_ms=at_ms)
    return topic.name


async def test_a_forgotten_salt_is_on_no_disk_though_the_topic_is_quiet(
    kafka: str, prefix: str
) -> None:
    settings = Settings(bootstrap_servers=kafka, topic_prefix=prefix)
    first, second, other = make_salt("acme"), make_salt("acme"), make_salt("other")
    # As in the catalogue, but that a cleaned file is deleted at once.
    topic = await salts_topic(settings, first, second, other, **{"file.delete.delay.ms": "1"})
    assert all(salt.salt.encode() in dumped(topic) for salt in (first, second, other))

    assert await forget_tenant(settings, "acme") == 2
    for salt in (first, second):
        await until_absent(topic, salt)
    # A neighbour of the same segment keeps its own; and one that is forgotten at once goes too.
    assert await read_salts(settings) == [other]
    assert other.salt.encode() in dumped(topic)
    assert await forget_tenant(settings, "other") == 1
    await until_absent(topic, other)
    # Whoever kept the digest has nothing to compare a text with.
    kept = text_digest(digest_key(other, None), "text")
    assert not any(
        text_digest(digest_key(salt, None), "text") == kept for salt in await read_salts(settings)
    )


async def test_a_broker_that_takes_no_time_ahead_is_told_of(kafka: str, prefix: str) -> None:
    settings = Settings(bootstrap_servers=kafka, topic_prefix=prefix)
    await salts_topic(settings, make_salt("acme"), **{"message.timestamp.after.max.ms": "1000"})
    with pytest.raises(UserError, match=r"1 salts of acme are deleted.*InvalidTimestamp"):
        await forget_tenant(settings, "acme")
    assert await read_salts(settings) == []
