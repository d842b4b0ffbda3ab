"""Progress read back: the predecessor's real position."""

import logging
from collections.abc import Collection
from typing import NamedTuple

from streams.engine.log import Log, LogError, Partition
from streams.engine.newest_value import newest
from topics import BadRecordError, ChainHead, Progress, decode_progress, progress_key
from topics.records import headers as h

logger = logging.getLogger(__name__)


class Unreadable(NamedTuple):
    """A newest progress record that is unreadable: its position and the reason."""

    home: Partition
    offset: int
    message: str


class Stored(NamedTuple):
    """A group's progress on the progress topic; a partition in neither field has none."""

    known: dict[Partition, Progress]
    unreadable: dict[Partition, Unreadable]


class UnreadableProgressError(LogError):
    """Nothing shows how far a partition is done."""


async def read_progress(
    log: Log, topic: str, group: str, partitions: Collection[Partition]
) -> Stored:
    """Return the newest progress of a group on each partition.

    Only the newest counts: records that an older one lists as open may be done since.
    """
    homes = {partition: Partition(topic, partition.number) for partition in partitions}
    bounds = await log.bounds(set(homes.values()))
    keys = {
        progress_key(group, partition.topic, partition.number): partition
        for partition in partitions
    }
    stored = Stored({}, {})
    records = await newest(log, {key: homes[p] for key, p in keys.items()}, bounds)
    for key, record in records.items():
        if record.value is None and record.unreadable is None:
            continue
        try:
            record.check_readable()
            h.check_critical(record.headers)
            stored.known[keys[key]] = decode_progress(record.value or b"")
        except BadRecordError as error:
            unreadable = Unreadable(record.partition, record.offset, error.message)
            stored.unreadable[keys[key]] = unreadable
    return stored


def writer_id(group: str, partition: Partition) -> str:
    """Return the transactional id of the writer of a group's partition.

    It is also the name of its evidence chain.
    """
    return f"{group}-{partition.topic}-{partition.number}"


async def stand_in(
    log: Log, group: str, partition: Partition, unreadable: Unreadable, head: ChainHead | None
) -> Progress:
    """Return a substitute for unreadable progress, if nothing can be done twice.

    The group's offset alone doesn't show which records above it are finished, and a broker's death
    may have lost the last one. Neither matters if there are no records from there on.

    Raises:
        UnreadableProgressError: something does.
    """
    home, offset, message = unreadable
    committed = await log.committed(partition)
    if committed is not None and await _is_done(log, partition, committed):
        logger.warning(
            "the progress of %s on %s, record %d of %s, can't be read: %s; nothing stands at or"
            " beyond the group's offset %d, which counts in its place",
            *(group, partition, offset, home, message, committed),
        )
        return Progress(committed, head=head)
    raise UnreadableProgressError(
        f"the progress of {group} on {partition}, record {offset} of {home}, can't be read:"
        f" {message}; whatever stands from the group's offset"
        f" {'(none)' if committed is None else committed} on may be done already. Start the version"
        f" that wrote it, or see what is done and run `shunter topics recover {group}"
        f" {partition.topic} {partition.number} --at OFFSET`"
    )


async def _is_done(log: Log, partition: Partition, offset: int) -> bool:
    first, end = (await log.bounds([partition]))[partition]
    start = max(first, offset)
    if start >= end:
        return True
    async for records in log.read({partition: start}, {partition: end}):
        if records:
            return False
    return True
