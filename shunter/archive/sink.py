"""Write the topics to an archive, each record once, in an order that can always be verified.

Each round reads keys, then roots, then evidence, and writes them in reverse order. Whenever the
archive is read, or the archiver dies, each head in it has its root there, and each root its
records. Evidence whose root was not read waits for the next round, but for what transactions side
by side have put before evidence that waits for nothing.
"""

import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from shunter.archive.layout import KINDS, Archive, ArchiveError, ArchiveFile
from shunter.archive.rows import table_of
from shunter.logs.reading import Kind, settled_bounds
from streams.engine.clock import Clock
from streams.engine.log import Log, Partition, Record
from topics import BadRecordError, Catalogue, Root, decode
from topics.signing.merkle import leaf_hash
from topics.signing.signed_root import leaves_of

logger = logging.getLogger(__name__)

_HOUR_MS = 3_600_000


@dataclass(frozen=True, slots=True)
class Keeping:
    """The retention times. A hold is a first and a last day, ISO dates, that are always kept."""

    days: int | None = None
    holds: Sequence[tuple[str, str]] = ()

    def is_over(self, day: str, now: float) -> bool:
        """Return whether a day's files may be deleted."""
        if self.days is None or any(first <= day <= last for first, last in self.holds):
            return False
        oldest = datetime.fromtimestamp(now, UTC).date() - timedelta(days=self.days)
        return day < oldest.isoformat()


def parse_holds(text: str) -> list[tuple[str, str]]:
    """Return the holds of a setting: ``first..last``, separated by commas.

    Raises:
        ArchiveError: one is invalid; nothing may be deleted then.
    """
    holds = []
    for part in filter(None, (each.strip() for each in text.split(","))):
        first, _, last = part.partition("..")
        try:
            days = [date.fromisoformat(day).isoformat() for day in (first, last)]
        except ValueError as error:
            told = f"SHUNTER_ARCHIVE_HOLDS: {part!r:.60} is not like 2026-01-01..2026-03-31"
            raise ArchiveError(told) from error
        holds.append((days[0], days[1]))
    return holds


class Archiver:
    """Brings an archive up to date, round by round."""

    def __init__(
        self, log: Log, catalogue: Catalogue, archive: Archive, clock: Clock, *, rows_max: int
    ) -> None:
        self._log = log
        self._archive = archive
        self._clock = clock
        self._rows_max = rows_max
        self._topics: dict[Kind, tuple[str, int]] = {
            "evidence": (catalogue.evidence, catalogue.partitions),
            "roots": (catalogue.evidence_roots, catalogue.partitions),
            "keys": (catalogue.evidence_keys, 1),
        }
        # The files are read once: nobody else writes them.
        self._next = {kind: archive.next_offsets(kind) for kind in KINDS}

    async def round(self) -> int:
        """Archive all records committed so far; return their number.

        Raises:
            LogError: a transaction stays open.
            ArchiveError: the files were not written by one archiver.
        """
        bounds = await settled_bounds(self._log, *self._topics["evidence"])
        keys = [record async for record in self._news("keys")]
        roots = [record async for record in self._news("roots")]
        count = len(keys) + len(roots)
        pending: list[Record] = []
        rooted = {leaf for record in roots for leaf in _leaves(record)}
        unsure: list[Record] = []
        async for record in self._news("evidence"):
            if unsure and unsure[0].partition != record.partition:
                unsure = []
            # What came after the roots were read waits for the round that reads its root.
            is_late = record.offset >= bounds[record.partition][1]
            unsure.append(record)
            if is_late and leaf_hash(record.value or b"") not in rooted:
                continue
            for each in unsure:
                count += 1
                if pending and self._is_full(pending, each):
                    self._write("evidence", pending)
                    pending = []
                pending.append(each)
            unsure = []
        self._write("evidence", pending)
        self._write_all("roots", roots)
        self._write_all("keys", keys)
        return count

    def clean(self, keeping: Keeping) -> list[ArchiveFile]:
        """Delete files past their retention, but no keys. Return the deleted ones."""
        now = self._clock.now()
        evidence = self._deletable("evidence")
        gone = [file for file in evidence if keeping.is_over(file.date, now)]
        kept = [file.date for file in self._archive.files("evidence") if file not in gone]
        if kept:
            # A root comes after its records, by a transaction, which may be past midnight.
            oldest = (date.fromisoformat(min(kept)) - timedelta(days=1)).isoformat()
            roots = self._deletable("roots")
            gone += [f for f in roots if f.date < oldest and keeping.is_over(f.date, now)]
        for file in gone:
            self._archive.delete(file)
        return gone

    def _deletable(self, kind: Kind) -> list[ArchiveFile]:
        """Return all files but the newest of each partition, whose name says where to continue."""
        files = self._archive.files(kind)
        newest = {file.partition: file for file in files}.values()
        return [file for file in files if file not in newest]

    async def _news(self, kind: Kind) -> AsyncIterator[Record]:
        """Yield records in no file yet, partition by partition in the order of offsets."""
        topic, count = self._topics[kind]
        bounds = await self._log.bounds([Partition(topic, n) for n in range(count)])
        for partition, (first, end) in sorted(bounds.items()):
            start = max(first, self._next[kind].get(partition.number, 0))
            if start >= end:
                continue
            async for records in self._log.read({partition: start}, {partition: end}):
                for record in records:
                    yield record

    def _is_full(self, pending: Sequence[Record], record: Record) -> bool:
        """Return whether a record begins another file; a late one of an earlier hour does not."""
        return (
            pending[0].partition != record.partition
            or len(pending) >= self._rows_max
            or record.timestamp_ms // _HOUR_MS > pending[0].timestamp_ms // _HOUR_MS
        )

    def _write_all(self, kind: Kind, records: Sequence[Record]) -> None:
        pending: list[Record] = []
        for record in records:
            if pending and self._is_full(pending, record):
                self._write(kind, pending)
                pending = []
            pending.append(record)
        self._write(kind, pending)

    def _write(self, kind: Kind, records: Sequence[Record]) -> None:
        if not records:
            return
        number, offsets = records[0].partition.number, (records[0].offset, records[-1].offset + 1)
        at = records[0].timestamp_ms / 1000
        file = self._archive.write(kind, number, offsets, at, table_of(kind, records))
        self._next[kind][number] = offsets[1]
        logger.info("archived %d records as %s", len(records), file.path)


def _leaves(record: Record) -> list[bytes]:
    """Return the leaf hashes of a record of the roots topic; none of one that is no root."""
    try:
        return leaves_of(decode(Root, record.value or b""))
    except (BadRecordError, ValueError):
        return []
