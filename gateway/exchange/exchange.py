"""The exchange: publish a request, follow it to its result, cancel it."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

from gateway.exchange.dispatcher import Dispatcher
from gateway.exchange.history import StreamHistory
from gateway.exchange.lookup import ResultLookup
from gateway.exchange.mailbox import Mailbox, PiecesBefore
from gateway.exchange.publisher import RequestPublisher
from topics import BadRecordError, Cancellation, Catalogue, Result, Settings, decode, encode


class Exchange:
    """The exchange of one process's endpoints: a producer, and a reader of results and streams."""

    def __init__(self, settings: Settings) -> None:
        self.catalogue = Catalogue(settings)
        self._publisher = RequestPublisher(settings)
        self._dispatcher = Dispatcher(settings)
        self._lookup = ResultLookup(settings, self._dispatcher)
        self._history = StreamHistory(settings)

    async def start(self) -> None:
        """Connect, and follow results and streams from now on.

        Raises:
            AdminError: Kafka can't be reached, or a topic is missing.
            KafkaError: no broker answers.
        """
        await self._publisher.start()
        await self._dispatcher.start()

    async def stop(self) -> None:
        """Close everything."""
        await self._dispatcher.stop()
        await self._publisher.stop()

    @property
    def is_up(self) -> bool:
        """True if results are being read."""
        return self._dispatcher.failure is None

    async def failed(self) -> None:
        """Wait until the reading of results ends by an error, and raise that."""
        await self._dispatcher.failed()

    @contextlib.contextmanager
    def follow(self, request_id: str) -> Iterator[Mailbox]:
        """Provide the mailbox of a request; enter before it is published."""
        box = self._dispatcher.open(request_id)
        try:
            yield box
        finally:
            self._dispatcher.close(box)

    def when_ended(self, request_id: str, take: Callable[[Result], None]) -> None:
        """Give a request's result to a function when it comes, whether anybody waits or not."""

        def read(value: bytes) -> None:
            # Whoever waits for it is told that it can't be read.
            with contextlib.suppress(BadRecordError):
                take(decode(Result, value))

        self._dispatcher.when_ended(request_id, read)

    def is_followed(self, request_id: str) -> bool:
        """Return whether somebody at this gateway waits for a request."""
        return self._dispatcher.is_open(request_id)

    async def publish(
        self,
        request_id: str,
        value: bytes,
        headers: Sequence[tuple[str, bytes]] = (),
        *,
        session: str | None = None,
    ) -> None:
        """Publish a request: JSON as in docs/reference/requests.md, with this id.

        Publishing it again under the same id and session is no harm: routers serve an id once.
        Requests of a session go to one partition, and so to one router and to workers that have
        what it left in their caches.

        Raises:
            UnavailableError: Kafka is not known to have it.
        """
        key = request_id if session is None else session
        await self._publisher.send(self.catalogue.requests, key, value, headers)

    async def cancel(self, request_id: str, reason: str) -> None:
        """Cancel a request, wherever it is.

        Raises:
            UnavailableError: Kafka is not known to have the cancellation.
        """
        value = encode(Cancellation(reason))
        await self._publisher.send(self.catalogue.cancellations, request_id, value)

    async def send(self, topic: str, key: str, value: bytes | None) -> None:
        """Write another record of the gateway's own. Raises UnavailableError."""
        await self._publisher.send(topic, key, value)

    async def result(self, request_id: str, since: float | None = None) -> Result | None:
        """Return the result of a request, read back from the log; None if it has none by now.

        Args:
            request_id: its id.
            since: epoch seconds before which it can't have ended; None reads what the topic keeps.

        Raises:
            UnavailableError: Kafka does not answer.
            BadRecordError: the result can't be read.
        """
        return await self._lookup.find(request_id, since)

    async def pieces(self, request_id: str, since: float) -> PiecesBefore:
        """Return the pieces that a running request has told so far, read back from the log.

        Args:
            request_id: its id.
            since: epoch seconds before which it told none.

        Raises:
            UnavailableError: Kafka does not answer.
        """
        return await self._history.find(request_id, since)
