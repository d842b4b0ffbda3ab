"""Pieces of answers, published as they come to clients that asked for a stream."""

import asyncio
import logging
from collections.abc import Awaitable
from functools import partial
from typing import Any, Protocol

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError, MessageSizeTooLargeError

from streams.engine.clock import Clock
from streams.engine.unexpected_errors import is_asked_for
from streams.kafka.idempotent_producer import close_producer, started_producer
from streams.service import QuietService
from topics import Catalogue, Placement, Profile, Settings, StreamPiece, encode

# A stream that Kafka holds up for longer is given up: the result matters more.
PUBLISH_S_MAX = 2.0

logger = logging.getLogger(__name__)


class Sink(Protocol):
    """Destination of pieces. It keeps the order of each request's pieces."""

    @property
    def clock(self) -> Clock:
        """The clock of the pieces' timestamps."""
        ...

    async def send(self, piece: StreamPiece) -> Awaitable[object]:
        """Send a piece; return a future that ends when the log has stored or refused it."""
        ...


class Streams:
    """Opens the stream of each request that asks for one."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink

    def open(
        self, profile: Profile, trace_id: str | None = None, placement: Placement | None = None
    ) -> "Stream":
        """Return the stream of a request; nothing is written before it runs."""
        return Stream(self._sink, profile, trace_id, placement)


class Stream:
    """The pieces of one answer, in the order of ``tell``; ``finish`` comes last."""

    def __init__(
        self,
        sink: Sink,
        profile: Profile,
        trace_id: str | None = None,
        placement: Placement | None = None,
    ) -> None:
        self._sink = sink
        self._profile = profile
        self._trace_id = trace_id
        self._placement = placement
        self._sent: list[Awaitable[object]] = []
        self._is_given_up = False
        self.pieces = 0

    async def tell(self, chunk: dict[str, Any]) -> None:
        """Publish a piece; wait while Kafka is slow, which also delays reading of more."""
        if self._is_given_up:
            return
        profile = self._profile
        now = self._sink.clock.now()
        where = None if self.pieces else self._placement
        piece = StreamPiece(profile.id, profile.attempt, self.pieces, now, chunk, placement=where)
        self.pieces += 1
        try:
            async with asyncio.timeout(PUBLISH_S_MAX):
                self._sent.append(await self._sink.send(piece))
        except (KafkaError, TimeoutError) as error:
            self._give_up(error)

    async def finish(self) -> None:
        """Wait until all pieces are in the log, so that the result comes after them."""
        sent, self._sent = self._sent, []
        try:
            async with asyncio.timeout(PUBLISH_S_MAX):
                await asyncio.gather(*sent)
        except (KafkaError, TimeoutError, asyncio.CancelledError) as error:
            # A producer that is closed cancels what it has not sent.
            if is_asked_for(error):
                raise
            self._give_up(error)

    def _give_up(self, error: BaseException) -> None:
        self._is_given_up = True
        told = error or type(error).__name__
        logger.warning(
            "the stream of a request has a gap: %s", told, extra={"trace_id": self._trace_id}
        )


class StreamPublisher(QuietService):
    """Publishes pieces outside of any transaction: late pieces are worthless."""

    def __init__(self, settings: Settings, clock: Clock) -> None:
        super().__init__()
        self._settings = settings
        self._topic = Catalogue(settings).streams
        self._producer: AIOKafkaProducer | None = None
        self._has_failed = False
        self._connecting = asyncio.Lock()
        self._clock = clock

    @property
    def clock(self) -> Clock:
        """The clock of the pieces' timestamps."""
        return self._clock

    async def on_stop(self) -> None:
        """Stop the producer; unsent pieces belong to requests that run again."""
        if self._producer is None:
            return
        if not await close_producer(self._producer, PUBLISH_S_MAX):
            logger.warning("Kafka does not take the last pieces of streams")

    async def send(self, piece: StreamPiece) -> Awaitable[object]:
        """Send a piece; return a future that ends when the log has stored it."""
        producer = await self._connected()
        try:
            sent: asyncio.Future[object] = await producer.send(
                self._topic, encode(piece), key=piece.id.encode()
            )
        except MessageSizeTooLargeError:
            # That says nothing of the producer.
            raise
        except KafkaError:
            self._distrust(producer)
            raise
        sent.add_done_callback(partial(self._ended, producer))
        return sent

    def _ended(self, producer: AIOKafkaProducer, sent: asyncio.Future[object]) -> None:
        if not sent.cancelled() and sent.exception() is not None:
            self._distrust(producer)

    def _distrust(self, producer: AIOKafkaProducer) -> None:
        if producer is self._producer:
            self._has_failed = True

    async def _connected(self) -> AIOKafkaProducer:
        """Return the producer, created at the first piece, since many workers never stream.

        One that has failed is replaced: it may refuse all that comes, or have numbered a batch that
        no broker has, without which brokers refuse the next ones of its partition.
        """
        async with self._connecting:
            if self._producer is not None and self._has_failed:
                failed, self._producer, self._has_failed = self._producer, None, False
                await close_producer(failed, PUBLISH_S_MAX)
            if self._producer is None:
                self._producer = await started_producer(self._settings)
        return self._producer
