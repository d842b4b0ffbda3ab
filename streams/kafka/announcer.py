"""Announcements outside of transactions: a lost one is superseded by the next."""

import asyncio
import contextlib
import logging

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from aiokafka.structs import RecordMetadata

from streams.kafka.idempotent_producer import close_producer, started_producer
from streams.kafka.refused_rights import REFUSED_RIGHTS
from topics import Settings

logger = logging.getLogger(__name__)

FAREWELL_S_MAX = 2.0


class Announcer:
    """A producer for ``topic`` that is replaced when it fails."""

    def __init__(self, settings: Settings, topic: str) -> None:
        self._settings = settings
        self._topic = topic
        self._producer: AIOKafkaProducer | None = None

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: no broker answers.
        """
        self._producer = await started_producer(self._settings)

    async def publish(self, key: bytes, value: bytes | None) -> RecordMetadata:
        """Write a record, and return the broker's answer once the log has it.

        Raises:
            KafkaError: the log doesn't have it.
        """
        if self._producer is None:
            await self.start()
        assert self._producer is not None  # noqa: S101  made by ``start``
        try:
            return await self._producer.send_and_wait(self._topic, value, key=key)
        except KafkaError:
            producer, self._producer = self._producer, None
            await close_producer(producer, FAREWELL_S_MAX)
            raise

    async def tell(self, key: bytes, value: bytes | None) -> RecordMetadata | None:
        """Write a record and return the answer; on failure, leave it to the next record.

        Raises:
            KafkaError: a right is missing.
        """
        try:
            return await self.publish(key, value)
        except REFUSED_RIGHTS:
            raise
        except KafkaError as error:
            logger.warning("%s has not been told of %s: %r", self._topic, key.decode(), error)
            return None

    async def stop(self, *last: tuple[bytes, bytes | None]) -> None:
        """Write the last records and close, without waiting for a broker that is gone."""
        if self._producer is None:  # an earlier service has failed to start
            return
        until = asyncio.get_running_loop().time() + FAREWELL_S_MAX
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(until):
                    for key, value in last:
                        await self.tell(key, value)
        finally:
            producer, self._producer = self._producer, None
            if producer is not None:
                await close_producer(producer, until - asyncio.get_running_loop().time())
