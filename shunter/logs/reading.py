"""Complete reads of topics, shared by audit and archive."""

from collections.abc import AsyncIterator
from typing import Literal, NamedTuple

from streams.engine.log import Log, Partition, Record

Kind = Literal["evidence", "roots", "keys"]


class TrailRow(NamedTuple):
    """A record of the trail. ``at`` is Kafka's time of it, epoch seconds."""

    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    at: float
    where: str


async def read_all(log: Log, topic: str, partitions: int) -> AsyncIterator[Record]:
    """Yield every committed record of a topic, partition by partition in the order of offsets.

    Raises:
        LogError: a transaction stays open.
    """
    bounds = await log.bounds([Partition(topic, n) for n in range(partitions)])
    for partition, (first, end) in sorted(bounds.items()):
        if end > first:
            async for records in log.read({partition: first}, {partition: end}):
                for record in records:
                    yield record


async def settled_bounds(log: Log, topic: str, partitions: int) -> dict[Partition, tuple[int, int]]:
    """Return the bounds of a topic, once no transaction is open below its ends.

    Transactions with records below them are then committed as a whole, on any topic.

    Raises:
        LogError: a transaction stays open.
    """
    bounds = await log.bounds([Partition(topic, n) for n in range(partitions)])
    last = {p: end - 1 for p, (first, end) in bounds.items() if end > first}
    # A committed reader reaches the last record when all before it have ended.
    async for _ in log.read(last, {p: bounds[p][1] for p in last}):
        pass
    return dict(bounds)


def row_of(record: Record) -> TrailRow:
    """Convert a record of a topic to one of the trail."""
    at = record.timestamp_ms / 1000
    number = record.partition.number
    return TrailRow(number, record.offset, record.key, record.value, at, place_of(record))


def place_of(record: Record) -> str:
    """Return a record's position."""
    return f"{record.partition.topic}/{record.partition.number}@{record.offset}"
