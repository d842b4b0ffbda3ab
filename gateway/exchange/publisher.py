"""A producer of clients' records that is replaced when it fails."""

import asyncio
import logging
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.kafka.idempotent_producer import started_producer
from streams.kafka.writer import let_go
from topics import Settings
from topics.registry import INGEST_BYTES_MAX

PUBLISH_S_MAX = 10.0
CLOSE_S_MAX = 2.0

logger = logging.getLogger(__name__)


class UnavailableError(Exception):
    """Kafka does not take or give records now.

    ``may_be_there`` is true of a record that a broker may have all the same, or get yet.
    """

    def __init__(self, message: str, *, may_be_there: bool = False) -> None:
        super().__init__(message)
        self.may_be_there = may_be_there


class RequestPublisher:
    """Writes records with ``acks=all``, idempotently."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._producer: AIOKafkaProducer | None = None
        self._connecting = asyncio.Lock()

    async def start(self) -> None:
        """Connect.

        Raises:
            KafkaError: no broker answers.
        """
        await self._connected()

    async def _connected(self) -> AIOKafkaProducer:
        async with self._connecting:
            if self._producer is None:
                self._producer = await started_producer(
                    self._settings, max_request_size=INGEST_BYTES_MAX
                )
            return self._producer

    async def send(
        self,
        topic: str,
        key: str,
        value: bytes | None,
        headers: Sequence[tuple[str, bytes]] = (),
    ) -> None:
        """Write a record, and return once the log has it.

        Raises:
            UnavailableError: it is not known to have it.
        """
        producer: AIOKafkaProducer | None = None
        try:
            async with asyncio.timeout(PUBLISH_S_MAX):
                producer = await self._connected()
                await producer.send_and_wait(topic, value, key=key.encode(), headers=list(headers))
        except (KafkaError, TimeoutError, OSError) as error:
            logger.warning("%s does not take a record: %r", topic, error)
            await self._replace(producer)
            message = f"Kafka does not take the request: {error!r}"
            raise UnavailableError(message, may_be_there=producer is not None) from error

    async def _replace(self, failed: AIOKafkaProducer | None) -> None:
        if failed is None or self._producer is not failed:
            return
        self._producer = None
        await _close(failed)

    async def stop(self) -> None:
        """Close the producer."""
        producer, self._producer = self._producer, None
        if producer is not None:
            await _close(producer)


async def _close(producer: AIOKafkaProducer) -> None:
    try:
        async with asyncio.timeout(CLOSE_S_MAX):
            await producer.stop()
    except (TimeoutError, KafkaError):
        # Else it sends what it has whenever a broker is back, and is there for ever.
        await let_go(producer)
