"""Erasure: a tenant's salts, destroyed on the disks of the brokers too."""

import time

from aiokafka.errors import KafkaError

from shunter.client.submit import producer_of
from shunter.console import UserError
from shunter.logs.reading import read_all
from streams.kafka.log import KafkaLog
from topics import BadRecordError, Catalogue, Salt, Settings, decode
from topics.admin.provisioning import partition_counts
from topics.registry import SALT_SEGMENT_MS
from topics.signing.salts import salt_key


async def forget_tenant(settings: Settings, tenant: str) -> int:
    """Destroy the salts of a tenant; return how many there were.

    Raises:
        UserError: the salts are deleted, but not from disk yet.

    Kafka never compacts the segment that it writes to, and begins another only with a record that
    comes ``segment.ms`` after its first. On a quiet topic none does; so the last tombstone is
    written again, with a time by which it is due.
    """
    topic = Catalogue(settings).evidence_salts
    await partition_counts(settings, [topic])
    known: dict[bytes, bytes | None] = {}
    newest_ms = int(time.time() * 1000)
    async for record in read_all(KafkaLog(settings), topic, 1):
        newest_ms = max(newest_ms, record.timestamp_ms)
        known[record.key or b""] = record.value
    gone = [key for key, value in known.items() if _is_of(tenant, key, value)]
    async with producer_of(settings) as producer:
        for key in gone:
            sent = await producer.send_and_wait(topic, None, key=key)
            # On a topic that was quiet for long the first of them has begun a segment itself.
            newest_ms = max(newest_ms, sent.timestamp)
        if gone:
            due_ms = newest_ms + SALT_SEGMENT_MS + 1
            try:
                await producer.send_and_wait(topic, None, key=gone[-1], timestamp_ms=due_ms)
            except KafkaError as error:
                raise UserError(
                    f"{len(gone)} salts of {tenant} are deleted from {topic}, but stay on the"
                    " brokers' disks until it is written to again: the record that ends the segment"
                    f" was refused ({error!r}; message.timestamp.after.max.ms?)"
                ) from error
    return len(gone)


def _is_of(tenant: str, key: bytes, value: bytes | None) -> bool:
    try:
        salt = decode(Salt, value or b"")
    except BadRecordError:
        return False
    return salt.tenant == tenant and key == salt_key(tenant, salt.id)
