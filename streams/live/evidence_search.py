"""Search for the evidence of one request, in bounded time, without blocking the process."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.engine.clock import Clock
from streams.engine.log import LogError
from streams.kafka.reader import close_consumer, consumer_options
from streams.kafka.writer import partition_of
from topics import BadRecordError, Catalogue, Evidence, Settings, decode

# The newest first, then four times as many, and so on: most searches are for recent requests.
FIRST_RECORDS = 5_000
GROWTH = 4
RECORDS_MAX = 100_000
SEARCH_S_MAX = 10.0
# Searched in about a millisecond.
POLL_RECORDS_MAX = 200
POLL_S = 0.5


@dataclass(slots=True)
class Search:
    """The records found, in no order, and the range searched.

    ``records`` of the request's partition were read, back to ``back_to`` in epoch seconds;
    ``is_whole`` is true if those are all there are, or all of the request's.
    """

    evidence: list[Evidence] = field(default_factory=list)
    records: int = 0
    back_to: float | None = None
    is_whole: bool = False


async def find_evidence(settings: Settings, clock: Clock, request_id: str) -> Search:
    """Search for a request's evidence in its partition, backwards from the newest record.

    Ends at the request's first step, at the partition's beginning, after ``RECORDS_MAX`` records or
    ``SEARCH_S_MAX`` seconds.

    Raises:
        LogError: the topic can't be seen.
        KafkaError: Kafka can't be read.
    """
    topic = Catalogue(settings).evidence
    until = clock.now() + SEARCH_S_MAX
    consumer = AIOKafkaConsumer(topic, **consumer_options(settings))
    try:
        await consumer.start()
        partitions = consumer.partitions_for_topic(topic)
        if not partitions:
            raise LogError(f"{topic} can't be seen")
        key = request_id.encode()
        home = TopicPartition(topic, partition_of(key, len(partitions)))
        first = (await consumer.beginning_offsets([home]))[home]
        end = (await consumer.end_offsets([home]))[home]
        return await _search(consumer, home, (first, end), key, clock, until)
    finally:
        await close_consumer(consumer)


async def _search(
    consumer: AIOKafkaConsumer,
    home: TopicPartition,
    bounds: tuple[int, int],
    key: bytes,
    clock: Clock,
    until: float,
) -> Search:
    first, upper = bounds
    consumer.pause(*(consumer.assignment() - {home}))
    found, size = Search(), FIRST_RECORDS
    while upper > first and found.records < RECORDS_MAX and clock.now() < until:
        lower = max(first, upper - min(size, RECORDS_MAX - found.records))
        oldest: float | None = None
        async for record in _between(consumer, home, lower, upper, clock, until):
            found.records += 1
            oldest = oldest or record.timestamp / 1000
            if record.key == key:
                _add(found, record.value)
        found.back_to = oldest or found.back_to
        if any(_is_first(step) for step in found.evidence):
            found.is_whole = True
            return found
        upper, size = lower, size * GROWTH
    found.is_whole = upper <= first and clock.now() < until
    return found


async def _between(
    consumer: AIOKafkaConsumer,
    home: TopicPartition,
    lower: int,
    upper: int,
    clock: Clock,
    until: float,
) -> AsyncIterator[Any]:
    consumer.seek(home, lower)
    while await consumer.position(home) < upper and clock.now() < until:
        polled = await consumer.getmany(
            home, timeout_ms=int(POLL_S * 1000), max_records=POLL_RECORDS_MAX
        )
        for record in polled.get(home, ()):
            if record.offset < upper:
                yield record
        # Buffered records are returned without waiting for anything.
        await asyncio.sleep(0)


def _is_first(step: Evidence) -> bool:
    """Return whether a step is a request's first one: no second one of its id, and no quote."""
    is_ingested = step.source.topic.endswith(".requests") and step.attempt == 1
    return is_ingested and step.step not in {"duplicate", "quoted"}


def _add(found: Search, value: bytes | None) -> None:
    try:
        found.evidence.append(decode(Evidence, value or b""))
    except BadRecordError:
        # Others report that; the story goes without it.
        return
