"""Kafka as a batch sees it: lines out, results back from a position on, what the log has."""

import asyncio
import contextlib
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Protocol

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from gateway.exchange.exchange import Exchange
from gateway.exchange.publisher import UnavailableError
from gateway.exchange.request_ids import PREFIX, TAG_CHARACTERS
from gateway.http.spans import Publication
from streams.engine.clock import Clock
from streams.engine.log import LogError, Partition, Record
from streams.engine.trace_context import Context
from streams.kafka.follower import TopicFollower
from streams.kafka.log import KafkaLog
from streams.kafka.reader import reader
from streams.kafka.writer import partition_of
from streams.tracing.telemetry import Telemetry
from topics import Catalogue, Settings
from topics.admin.provisioning import AdminError, partition_counts

# The id and the value of a result, as its record has them.
Take = Callable[[str, bytes], None]
TakeAwaited = Callable[[str, bytes], Awaitable[None]]
HeaderList = Sequence[tuple[str, bytes]]
# Clocks of gateway and broker may differ by so much.
CLOCKS_S = 60.0


class LineExchange(Protocol):
    """Kafka as a batch needs it. Each method raises UnavailableError while there is none."""

    async def publish(
        self, request_id: str, value: bytes, headers: HeaderList, cause: Context | None
    ) -> None:
        """Publish a line's request; ``cause`` is the span that created its batch."""
        ...

    async def cancel(self, request_id: str) -> None:
        """Cancel it."""
        ...

    async def ends(self) -> Mapping[int, int]:
        """Return where each partition of the results ends; what comes later stands behind it."""
        ...

    def following(self, prefix: str, take: Take) -> contextlib.AbstractAsyncContextManager[None]:
        """Have results taken whose ids begin so, from now on, for as long as this is entered."""
        ...

    def positions(self) -> Mapping[int, int]:
        """Return the offsets below which all results that are followed were taken."""
        ...

    async def catch_up(self, positions: Mapping[int, int], prefix: str, take: TakeAwaited) -> None:
        """Have results taken from these offsets to where the results end now."""
        ...

    async def published(self, ids: Collection[str], since: float) -> set[str]:
        """Return which of these requests the log has; none is from before ``since``."""
        ...


class LineResults(TopicFollower):
    """Follows results from now on, and gives those of batches to whoever drives them."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Catalogue(settings).results)
        self._takers: dict[str, Take] = {}

    async def _starts(
        self, consumer: AIOKafkaConsumer, assigned: Collection[TopicPartition]
    ) -> dict[Partition, int]:
        ends = await consumer.end_offsets(assigned)
        return {Partition(*p): end for p, end in ends.items()}

    def positions(self) -> dict[int, int]:
        """Return the offset of each partition up to which all has been taken."""
        return {partition.number: at for partition, at in self._positions.items()}

    @contextlib.contextmanager
    def taking(self, prefix: str, take: Take) -> Iterator[None]:
        """Give a batch its results."""
        self._takers[prefix] = take
        try:
            yield
        finally:
            del self._takers[prefix]

    def take(self, record: Record) -> None:
        """Give a result to its batch, if that is ours."""
        request_id = (record.key or b"").decode()
        taker = self._takers.get(prefix_of(request_id))
        if taker is not None and record.value is not None:
            taker(request_id, record.value)


def prefix_of(request_id: str) -> str:
    """Return what an id has before the number of its line, with tenant and batch in it."""
    return request_id[: request_id.find("-", len(PREFIX) + TAG_CHARACTERS) + 1]


class KafkaLines:
    """The lines of batches on Kafka. The follower runs while a batch is driven here."""

    def __init__(
        self, settings: Settings, exchange: Exchange, telemetry: Telemetry, clock: Clock
    ) -> None:
        self._settings = settings
        self._exchange = exchange
        self._telemetry = telemetry
        self._clock = clock
        self._catalogue = Catalogue(settings)
        self._log = KafkaLog(settings)
        self._results: LineResults | None = None
        self._following: asyncio.Task[None] | None = None
        self._starting = asyncio.Lock()

    async def publish(
        self, request_id: str, value: bytes, headers: HeaderList, cause: Context | None
    ) -> None:
        """Publish a line's request, whose trace begins here and links to its batch's."""
        if not self._telemetry.is_on:
            return await self._exchange.publish(request_id, value, headers)
        topic = self._catalogue.requests
        publication = Publication(self._telemetry, topic, self._clock, request_id, None, cause)
        await self._exchange.publish(request_id, value, [*headers, *publication.headers])
        publication.end()
        return None

    async def cancel(self, request_id: str) -> None:
        """Cancel it."""
        await self._exchange.cancel(request_id, "its batch was cancelled or has expired")

    async def ends(self) -> Mapping[int, int]:
        """Return where each partition of the results ends."""
        with _unavailable():
            bounds = await self._log.bounds(await self._partitions(self._catalogue.results))
        return {partition.number: end for partition, (_, end) in bounds.items()}

    @contextlib.asynccontextmanager
    async def following(self, prefix: str, take: Take) -> AsyncIterator[None]:
        """Have results taken whose ids begin so."""
        with (await self._follower()).taking(prefix, take):
            yield

    async def _follower(self) -> LineResults:
        async with self._starting:
            if self._following is not None and self._following.done():
                await self.stop()
            if self._results is None:
                results = LineResults(self._settings)
                with _unavailable():
                    await results.start()
                self._results = results
                self._following = asyncio.create_task(_follow(results))
            return self._results

    def positions(self) -> Mapping[int, int]:
        """Return the offsets below which all results that are followed were taken.

        Raises:
            UnavailableError: nothing is followed any more.
        """
        if self._results is None or self._following is None or self._following.done():
            raise UnavailableError("the results are not followed any more")
        return self._results.positions()

    async def catch_up(self, positions: Mapping[int, int], prefix: str, take: TakeAwaited) -> None:
        """Have results taken from these offsets to where the results end now."""
        topic = self._catalogue.results
        with _unavailable():
            bounds = await self._log.bounds(await self._partitions(topic))
            starts = {p: max(first, positions.get(p.number, 0)) for p, (first, _) in bounds.items()}
            ends = {p: end for p, (_, end) in bounds.items()}
            async for records in self._log.read(starts, ends):
                for record in records:
                    request_id = (record.key or b"").decode("utf-8", "replace")
                    if request_id.startswith(prefix) and record.value is not None:
                        await take(request_id, record.value)

    async def published(self, ids: Collection[str], since: float) -> set[str]:
        """Return which of these requests the ingest topic has."""
        topic = self._catalogue.requests
        with _unavailable():
            count = len(await self._partitions(topic))
            homes = {Partition(topic, partition_of(each.encode(), count)) for each in ids}
            bounds = await self._log.bounds(homes)
            wanted = {TopicPartition(*p): int(max(0.0, since - CLOCKS_S) * 1000) for p in homes}
            async with reader(self._settings, asks=[topic]) as asked:
                found = await asked.offsets_for_times(wanted)
            starts = {
                p: end if (at := found.get(TopicPartition(*p))) is None else at.offset
                for p, (_, end) in bounds.items()
            }
            there: set[str] = set()
            async for records in self._log.read(starts, {p: end for p, (_, end) in bounds.items()}):
                keys = {(record.key or b"").decode("utf-8", "replace") for record in records}
                there |= keys.intersection(ids)
        return there

    async def stop(self) -> None:
        """Close the follower, if it runs."""
        following, self._following = self._following, None
        results, self._results = self._results, None
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
        if results is not None:
            await results.stop()

    async def _partitions(self, topic: str) -> list[Partition]:
        counts = await partition_counts(self._settings, [topic])
        return [Partition(topic, n) for n in range(counts[topic])]


async def _follow(results: LineResults) -> None:
    while True:
        await results.step(timeout_s=0.5)


@contextlib.contextmanager
def _unavailable() -> Iterator[None]:
    try:
        yield
    except (KafkaError, AdminError, LogError, OSError) as error:
        raise UnavailableError(f"Kafka does not answer: {error!r}") from error
