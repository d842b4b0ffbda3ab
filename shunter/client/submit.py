"""Publishing requests, and following them to their ends."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from shunter.client.answers import Printer
from shunter.client.kafka import Tail
from shunter.client.result_files import ResultFiles
from shunter.client.spans import SubmitSpans
from shunter.console import UserError
from streams.engine.log import Record
from streams.kafka.idempotent_producer import close_producer
from topics import BadRecordError, Catalogue, Evidence, Result, Settings, decode
from topics.records import headers as h
from topics.registry import INGEST_BYTES_MAX

# Limits of unacknowledged requests, and of the time for an acknowledgement: an idempotent producer
# itself would retry for ever.
IN_FLIGHT_MAX = 1000
ACKNOWLEDGED_S_MAX = 60.0
CLOSE_S_MAX = 5.0
BATCH_BYTES_MAX = 256 * 1024
LINGER_MS = 5
POLL_S = 0.25
# The last piece of an answer is in one transaction with its result, and on another partition: it
# may be read so much later.
LAST_PIECES_S = 5.0
_DEAD = "The request became a dead letter."
_DUPLICATE = "A request of this id came before, and is the one that is served."


@dataclass(slots=True)
class SubmitTally:
    """The outcomes of submitted requests. ``statuses`` counts results by status."""

    submitted: int = 0
    ids: frozenset[str] = frozenset()
    waiting: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    dead_letters: dict[str, str] = field(default_factory=dict)
    duplicates: set[str] = field(default_factory=set)
    """Requests that are not served, since their id came before."""
    streamed: set[str] = field(default_factory=set)
    """Requests whose answers are wanted in pieces."""
    in_pieces: set[str] = field(default_factory=set)
    """Those of them that have been answered, so that their pieces have an end."""

    @property
    def done(self) -> int:
        """The number of ended requests."""
        return self.submitted - len(self.waiting)

    def unserved(self) -> dict[str, tuple[str, str]]:
        """Return a code and a message by request that gets no result."""
        found = {name: (reason, _DEAD) for name, reason in self.dead_letters.items()}
        return found | dict.fromkeys(self.duplicates, ("duplicate", _DUPLICATE))


async def publish(
    settings: Settings,
    requests: Iterable[tuple[int, str, bytes]],
    published: Callable[[int], object],
    spans: SubmitSpans,
    sessions: Mapping[int, str] = MappingProxyType({}),
) -> None:
    """Publish requests, given as (line number, id, value).

    Each is keyed by its session, so that those of one go to one router and to workers that have
    what it left in their caches; else by its id.

    Args:
        settings: where to.
        requests: in the order of their lines.
        published: receives the number newly acknowledged.
        spans: begins the trace of each request, where the environment wants traces.
        sessions: by line number, of those that have one.

    Raises:
        UserError: Kafka refuses a request, or does not acknowledge; those before it are published.
    """
    topic = Catalogue(settings).requests
    async with producer_of(settings) as producer:
        batch: list[tuple[int, asyncio.Future[object]]] = []
        for number, name, value in requests:
            try:
                async with asyncio.timeout(ACKNOWLEDGED_S_MAX):
                    headers = spans.begin(name)
                    key = sessions.get(number, name).encode()
                    future = await producer.send(topic, value, key=key, headers=headers)
            except (KafkaError, TimeoutError) as error:
                await _acknowledged(batch)
                raise _refusal(number, error) from error
            batch.append((number, future))
            if len(batch) == IN_FLIGHT_MAX:
                await _acknowledged(batch)
                spans.end()
                published(len(batch))
                batch = []
        await _acknowledged(batch)
        spans.end()
        published(len(batch))


@contextlib.asynccontextmanager
async def producer_of(settings: Settings) -> AsyncIterator[AIOKafkaProducer]:
    """Provide a producer for clients' records."""
    producer = AIOKafkaProducer(
        **settings.kafka_options(),
        acks="all",
        enable_idempotence=True,
        max_request_size=INGEST_BYTES_MAX,
        max_batch_size=BATCH_BYTES_MAX,
        linger_ms=LINGER_MS,
    )
    try:
        await producer.start()
        yield producer
    finally:
        # If Kafka has gone, queued records are not waited for.
        await close_producer(producer, CLOSE_S_MAX)


async def _acknowledged(batch: list[tuple[int, asyncio.Future[object]]]) -> None:
    async def each() -> None:
        for number, future in batch:
            try:
                await future
            except KafkaError as error:
                raise _refusal(number, error) from error

    try:
        await asyncio.wait_for(each(), ACKNOWLEDGED_S_MAX)
    except TimeoutError as error:
        raise _refusal(batch[0][0], error) from error


def _refusal(number: int, error: Exception) -> UserError:
    why = (
        f"no acknowledgement within {ACKNOWLEDGED_S_MAX:g} s"
        if isinstance(error, TimeoutError)
        else str(error)
    )
    return UserError(f"line {number} could not be published: {why}; the lines before it are")


async def follow(
    tail: Tail,
    tally: SubmitTally,
    catalogue: Catalogue,
    *,
    timeout_s: float | None,
    output: ResultFiles,
    changed: Callable[[], object],
    printer: Printer | None = None,
) -> None:
    """Read until each request of the tally has an end, or until the timeout.

    An end is a result, a dead letter, or the evidence that it is a duplicate; where a printer gets
    answers, their last pieces too.

    Args:
        tail: of results, dead letters and evidence, entered before the requests were published.
        tally: brought up to date as ends appear.
        catalogue: the names of the topics.
        timeout_s: longest wait; None is unlimited.
        output: gets the results.
        changed: called after each poll that found something.
        printer: gets the pieces of answers, where the tail reads those too.

    Raises:
        BadRecordError: the result of one of the requests can't be read.
    """
    loop = asyncio.get_running_loop()

    async def read(lacks: Callable[[], object], end: float) -> None:
        while lacks() and (left_s := end - loop.time()) > 0:
            records = await tail.poll(min(POLL_S, left_s))
            for record in records:
                if record.partition.topic == catalogue.dead_letters:
                    _count_dead_letter(record, tally)
                elif record.partition.topic == catalogue.streams:
                    if printer is not None and _name(record) in tally.ids:
                        printer.take(record)
                elif record.partition.topic == catalogue.evidence:
                    _count_duplicate(record, tally)
                else:
                    _count_result(record, tally, output)
            if records:
                changed()

    end = float("inf") if timeout_s is None else loop.time() + timeout_s
    await read(lambda: tally.waiting, end)
    if printer is not None:
        ended = printer.ended
        await read(lambda: tally.in_pieces - ended, min(end, loop.time() + LAST_PIECES_S))


def _count_result(record: Record, tally: SubmitTally, output: ResultFiles) -> None:
    name = _name(record)
    is_awaited = any(name in n for n in (tally.waiting, tally.dead_letters, tally.duplicates))
    if record.value is None or not is_awaited:
        return
    try:
        result = decode(Result, record.value)
    except BadRecordError as error:
        topic, partition = record.partition
        where = f"{topic}/{partition}@{record.offset}"
        raise BadRecordError(error.stage, error.reason, f"{where}: {error.message}") from error
    tally.waiting.discard(name)
    # A request that a lane refused has both, and the first of a duplicate's id may still run; a
    # result says more.
    tally.dead_letters.pop(name, None)
    tally.duplicates.discard(name)
    tally.statuses[result.status] += 1
    if name in tally.streamed and result.status == "completed":
        tally.in_pieces.add(name)
    output.add(result, record.value)


def _count_dead_letter(record: Record, tally: SubmitTally) -> None:
    name = _name(record)
    if name in tally.waiting:
        tally.waiting.discard(name)
        reason = h.find(record.headers, h.REASON) or b"no reason given"
        tally.dead_letters[name] = reason.decode("utf-8", "replace")


def _count_duplicate(record: Record, tally: SubmitTally) -> None:
    # Evidence is plenty: most of it is skipped without decoding.
    name = _name(record)
    if name not in tally.waiting or b'"duplicate"' not in (record.value or b""):
        return
    if decode(Evidence, record.value or b"").step == "duplicate":
        tally.waiting.discard(name)
        tally.duplicates.add(name)


def _name(record: Record) -> str:
    return (record.key or b"").decode("utf-8", "replace")
