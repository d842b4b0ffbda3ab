"""A producer of clients' records that is replaced when it fails."""

import asyncio
import logging
from collections.abc import Sequence

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, ProducerClosed

from streams.kafka.idempotent_producer import close_producer, started_producer
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
        self._closing: dict[asyncio.Task[bool], AIOKafkaProducer] = {}

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
                while True:
                    producer = await self._connected()
                    try:
                        await producer.send_and_wait(
                            topic, value, key=key.encode(), headers=list(headers)
                        )
                    except ProducerClosed:
                        # It has taken nothing, and was closed for what became of another record.
                        if producer is self._producer:
                            raise
                    else:
                        return
        except (KafkaError, TimeoutError, OSError) as error:
            logger.warning("%s does not take a record: %r", topic, error)
            self._replace(producer)
            message = f"Kafka does not take the request: {error!r}"
            raise UnavailableError(message, may_be_there=producer is not None) from error

    def _replace(self, failed: AIOKafkaProducer | None) -> None:
        if failed is None or self._producer is not failed:
            return
        self._producer = None
        # Until then those who have given it a record wait for that, or have given up.
        closing = asyncio.create_task(close_producer(failed, PUBLISH_S_MAX))
        self._closing[closing] = failed
        closing.add_done_callback(self._closing.pop)

    async def stop(self) -> None:
        """Close the producers."""
        producer, self._producer = self._producer, None
        closing = dict(self._closing)
        for each in closing:
            each.cancel()
        await asyncio.gather(*closing, return_exceptions=True)
        for failed in closing.values():
            await let_go(failed)
        if producer is not None:
            await close_producer(producer, CLOSE_S_MAX)
