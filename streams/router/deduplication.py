"""Deduplication: the request ids of each ingest partition, restored and written down."""

import contextlib
from collections.abc import Callable, Collection, Mapping
from functools import partial

from streams.engine.log import Log, Outgoing, Partition, Record
from streams.engine.retries import until_passed
from streams.engine.stage import Effect
from streams.router.id_window import BLOCKS, RecentIds
from topics import BadRecordError, Progress, SeenIds, decode, encode, peek_id
from topics.records import headers as h

# A block may take: its record, the marker of the transaction, and both again, aborted.
OFFSETS_PER_BLOCK = 4


class Duplicates:
    """The request ids of our partitions.

    Args:
        topic: for blocks of seen ids, co-partitioned with the ingest topic.
        records_max: how many offsets before a request another of its id makes it a duplicate; 0 for
            none.
        is_request: returns whether a record is a request at all.
    """

    def __init__(self, topic: str, records_max: int, is_request: Callable[[Record], bool]) -> None:
        self._topic = topic
        self._records_max = records_max
        self._is_request = is_request
        self._recent: dict[Partition, RecentIds] = {}
        self._log: Log | None = None

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        """Read the last ids before ``progress``."""
        if not self._records_max:
            return
        self._log = log
        recent = self._recent[partition] = RecentIds(self._records_max)
        if progress is None:
            return
        home = Partition(self._topic, partition.number)
        bounds = await log.bounds([partition, home])
        first, end = bounds[partition]
        start = max(first, progress.next_offset - self._records_max)
        stop = min(end, progress.next_offset)
        written = await _written(log, home, bounds[home])
        blocks = _chain(written, start, progress.next_offset, recent.block_records)
        begins = blocks[0].first_offset if blocks else start
        ends = blocks[-1].next_offset if blocks else start
        recent.begin_at(progress.next_offset)
        await self._read_back(recent, log, partition, (start, begins))
        for block in blocks:
            _, found = written[block.next_offset]
            sightings = [each for each in found if each[0] >= start]
            recent.recall(sightings, is_checked=block.is_checked)
        await self._read_back(recent, log, partition, (ends, stop))

    def forget(self, partition: Partition) -> None:
        """Drop the ids of a partition that is another's."""
        self._recent.pop(partition, None)

    def known(self, partition: Partition) -> int:
        """Return the number of known ids of a partition."""
        recent = self._recent.get(partition)
        return 0 if recent is None else len(recent)

    async def check_first(self, partition: Partition, request_ids: Collection[str]) -> None:
        """Validate past records that would make requests of these ids duplicates."""
        recent = self._recent.get(partition)
        log = self._log
        if recent is None or log is None:
            return
        wanted = {
            request_id: offset
            for request_id in request_ids
            if (offset := recent.unchecked(request_id)) is not None
        }
        if not wanted:
            return
        found = await until_passed(
            log, f"reading {partition} again", lambda: log.fetch(partition, wanted.values())
        )
        for request_id, offset in wanted.items():
            # One deleted by retention meanwhile doesn't count: rather twice than not at all.
            fit = offset in found and self._is_request(found[offset])
            recent.check(request_id, is_request=fit)

    def first(self, record: Record, request_id: str) -> int | None:
        """Note a request, and return the offset of the first of its id, None if new."""
        recent = self._recent.get(record.partition)
        return None if recent is None else recent.seen(request_id, record.offset)

    def finished(self, partition: Partition, next_offset: int) -> list[Effect]:
        """Return the records to commit with progress to this offset: the finished blocks of ids."""
        recent = self._recent.get(partition)
        if recent is None:
            return []
        return [
            Effect(None, [self._outgoing(partition, block, recent.block_records)])
            for block in recent.finished(next_offset)
        ]

    def done(self, partition: Partition) -> None:
        """Keep the noted ids for good."""
        recent = self._recent.get(partition)
        if recent is not None:
            recent.keep()

    def _outgoing(self, partition: Partition, block: SeenIds, block_records: int) -> Outgoing:
        # As many keys as blocks reach into a window at a time, so that each is overwritten.
        slot = block.first_offset // block_records % (self._records_max // block_records + 2)
        key = f"{partition.number}/{slot}".encode()
        return Outgoing(self._topic, key, encode(block), partition=partition.number)

    async def _read_back(
        self, recent: RecentIds, log: Log, partition: Partition, span: tuple[int, int]
    ) -> None:
        start, stop = span
        if start >= stop:
            return
        async for records in log.read({partition: start}, {partition: stop}):
            for record in records:
                found = peek_id(record.value, h.cloud_event_id(record.headers))
                if found is not None:
                    recent.read_back(found, record.offset, partial(self._is_request, record))


async def _written(
    log: Log, home: Partition, bounds: tuple[int, int]
) -> dict[int, tuple[SeenIds, list[tuple[int, bytes]]]]:
    """Return the newest written blocks with their contents, by the end of each."""
    first, end = bounds
    found: dict[int, tuple[SeenIds, list[tuple[int, bytes]]]] = {}
    start = max(first, end - OFFSETS_PER_BLOCK * (BLOCKS + 2))
    async for records in log.read({home: start}, {home: end}):
        for record in records:
            # In place of an unreadable block, the requests themselves are read.
            with contextlib.suppress(BadRecordError):
                block = decode(SeenIds, record.value or b"")
                found[block.next_offset] = block, block.sightings()
    return found


def _chain(
    written: Mapping[int, tuple[SeenIds, object]],
    start: int,
    next_offset: int,
    block_records: int,
) -> list[SeenIds]:
    """Return the contiguous blocks that end with the last whole one."""
    chain: list[SeenIds] = []
    position = next_offset // block_records * block_records
    while position > start and position in written:
        block, _ = written[position]
        chain.append(block)
        position = block.first_offset
    return chain[::-1]
