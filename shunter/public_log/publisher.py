"""The log at work: roots from Kafka into the tree, its head to the witnesses and the public."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from shunter.public_log.store import LogStore, LogStoreError
from shunter.public_log.tree import Intent, LogForkError, LogTree, OffsetSpan, read_entries
from shunter.public_log.witnesses import Witnesses
from streams.engine.clock import Clock
from streams.engine.log import Log, Partition, Record
from topics import BadRecordError, Catalogue
from topics.public_log.entries import entry_of, parse_entry
from topics.public_log.notes import (
    NoteError,
    NoteKey,
    is_signed_by,
    parse_checkpoint,
    parse_note,
)
from topics.public_log.tiles import TILE_WIDTH

logger = logging.getLogger(__name__)

CHECKPOINT = "checkpoint"
# Most entries of one append, which bounds memory, and what is read again after a crash.
APPENDED_MAX = 4096
# So often a head that stays the same is cosigned anew: the time says how fresh it is.
REFRESH_S = 600.0


@dataclass(slots=True)
class LogState:
    """The state of the log, for metrics. Times are epoch seconds.

    ``waiting_since`` is that of the oldest root that isn't in a published checkpoint.
    """

    size: int = 0
    published: int = 0
    published_at: float | None = None
    waiting_since: float | None = None

    def lag_s(self, now: float) -> float:
        """Return for how long the oldest root that isn't in a published checkpoint has waited."""
        return 0.0 if self.waiting_since is None else max(0.0, now - self.waiting_since)

    def append(self, size: int, at: float) -> None:
        """Count an append, whose oldest root was committed at this time."""
        self.size = size
        self.waiting_since = at if self.waiting_since is None else min(at, self.waiting_since)

    def publish(self, now: float) -> None:
        """Count a checkpoint of all that is appended."""
        self.published, self.published_at, self.waiting_since = self.size, now, None


class PublicLog:
    """Appends the committed roots of an installation, each once, and publishes checkpoints."""

    def __init__(
        self,
        log: Log,
        catalogue: Catalogue,
        store: LogStore,
        key: NoteKey,
        witnesses: Witnesses,
        clock: Clock,
    ) -> None:
        self._log = log
        self._topic = catalogue.evidence_roots
        self._partitions = catalogue.partitions
        self._store = store
        self._key = key
        self._witnesses = witnesses
        self._clock = clock
        self._tree: LogTree | None = None
        self.state = LogState()

    @property
    def witnesses(self) -> Witnesses:
        """Those that it asks."""
        return self._witnesses

    async def round(self) -> int:
        """Append all roots committed so far, and publish; return how many were appended.

        Raises:
            LogForkError: to go on could sign a second tree.
            LogStoreError: the store can't be read or written; another round may.
            LogError: a transaction stays open; another round may find it closed.
        """
        try:
            if self._tree is None:
                self._tree = await self._opened()
            count = await self._append_news(self._tree)
            await self._publish(self._tree)
        except LogStoreError:
            # What was written is known again when it is read.
            self._tree = None
            raise
        return count

    async def _opened(self) -> LogTree:
        tree = LogTree(self._store, self._key.name)
        await asyncio.to_thread(tree.open)
        if tree.undone is not None:
            entries = await self._records_of(tree.undone)
            await asyncio.to_thread(tree.append, tree.undone.spans, entries)
        await asyncio.to_thread(self._check_published, tree)
        if self._witnesses.policy.witnesses and tree.head.size:
            # Whoever has seen a longer tree says so, before anything is appended to this one.
            await self._cosigned(tree)
        return tree

    def _check_published(self, tree: LogTree) -> None:
        """Hold what is published against the tree, and begin the figures with it."""
        self.state = LogState(size=tree.head.size)
        published = self._store.read(CHECKPOINT)
        if published is not None:
            try:
                note = parse_note(published)
                checkpoint = parse_checkpoint(note.text)
                holds = is_signed_by(note, self._key.verifier)
                holds = holds and checkpoint.size <= tree.head.size
                holds = holds and tree.tree().root(checkpoint.size) == checkpoint.root
            except NoteError as error:
                raise LogForkError(f"{self._store.url}/{CHECKPOINT}: {error}") from error
            if not holds:
                raise LogForkError(
                    f"{self._store.url}: the checkpoint is not of these files, or not of this key"
                )
            self.state.published = checkpoint.size
        if self.state.published < tree.head.size:
            self.state.waiting_since = self._time_of(tree, self.state.published)

    def _time_of(self, tree: LogTree, index: int) -> float:
        try:
            bundle = read_entries(self._store, tree.head.size, index // TILE_WIDTH)
            return parse_entry(bundle[index % TILE_WIDTH]).statement.at
        except (NoteError, BadRecordError):
            return self._clock.now()

    async def _records_of(self, intent: Intent) -> Sequence[bytes]:
        """Return the entries that an intent has decided on, from Kafka again."""
        entries = []
        for span in intent.spans:
            partition = Partition(self._topic, span.partition)
            ends = {partition: span.following}
            async for records in self._log.read({partition: span.first}, ends):
                found = (entry_of(r.value) for r in records if r.offset < span.following)
                entries += [entry for entry in found if entry is not None]
        return entries

    async def _append_news(self, tree: LogTree) -> int:
        partitions = [Partition(self._topic, n) for n in range(self._partitions)]
        bounds = await self._log.bounds(partitions)
        count, batch = 0, _Appended()
        for partition, (first, end) in sorted(bounds.items()):
            start = tree.offsets.get(partition.number, 0)
            self._check_bounds(partition, start, first, end)
            start = max(start, first)
            if start >= end:
                continue
            batch.begin(partition, start)
            async for records in self._log.read({partition: start}, {partition: end}):
                for record in records:
                    batch.take(record)
                    if len(batch.entries) >= APPENDED_MAX:
                        count += await self._append(tree, batch)
                        batch = _Appended()
                        batch.begin(partition, record.offset + 1)
            batch.end(end)
        return count + await self._append(tree, batch)

    def _check_bounds(self, partition: Partition, start: int, first: int, end: int) -> None:
        if end < start:
            raise LogForkError(
                f"{partition} ends at offset {end}, and the log has its records up to {start}: the"
                " topic was made again, or has lost its end; begin another log under another name"
            )
        if 0 < start < first:
            logger.error(
                "%s: offsets %d to %d were deleted before they were logged", partition, start, first
            )

    async def _append(self, tree: LogTree, batch: "_Appended") -> int:
        if not batch.entries:
            return 0
        head = await asyncio.to_thread(tree.append, batch.spans, batch.entries)
        self.state.append(head.size, batch.oldest_at)
        return len(batch.entries)

    async def _publish(self, tree: LogTree) -> None:
        head, state, now = tree.head, self.state, self._clock.now()
        is_new = head.size > state.published
        is_old = state.published_at is None or now - state.published_at >= REFRESH_S
        if not head.size or not (is_new or is_old):
            return
        note = await self._cosigned(tree)
        if note is not None:
            await asyncio.to_thread(self._replace_checkpoint, note, head.size)
            state.publish(self._clock.now())

    def _replace_checkpoint(self, note: bytes, size: int) -> None:
        before = self._store.read(CHECKPOINT)
        if before is not None and parse_checkpoint(parse_note(before).text).size > size:
            raise LogForkError(f"{self._store.url}: another process has published a longer log")
        self._store.write(CHECKPOINT, note)

    async def _cosigned(self, tree: LogTree) -> bytes | None:
        """Return the head with the cosignatures of a quorum; None where there is none now."""
        text = tree.head.text
        signed = f"{text}\n{self._key.sign(text)}"
        lines = await self._witnesses.cosign(tree.tree(), signed.encode(), text)
        if not self._witnesses.policy.is_met(lines):
            return None
        return (signed + "".join(lines[name] for name in sorted(lines))).encode()


@dataclass(slots=True)
class _Appended:
    """Entries to append, and the records they are of."""

    entries: list[bytes] = field(default_factory=list)
    spans: list[OffsetSpan] = field(default_factory=list)
    oldest_at: float = float("inf")
    _at: tuple[int, int] | None = None
    _next: int = 0

    def begin(self, partition: Partition, first: int) -> None:
        """Begin a span."""
        self._at, self._next = (partition.number, first), first

    def take(self, record: Record) -> None:
        """Take a record of it; what is no root is passed over."""
        self._next = record.offset + 1
        entry = entry_of(record.value)
        if entry is None:
            logger.error("%s@%d is no root", record.partition, record.offset)
            return
        self.entries.append(entry)
        self.oldest_at = min(self.oldest_at, record.timestamp_ms / 1000)
        if self._at is not None:
            self.spans = [s for s in self.spans if s.partition != self._at[0]]
            self.spans.append(OffsetSpan(*self._at, self._next))

    def end(self, following: int) -> None:
        """End the span: what is behind its last record was read, and holds none."""
        if self._at is not None and self.spans and self.spans[-1].partition == self._at[0]:
            self.spans[-1] = OffsetSpan(*self._at, max(following, self._next))
        self._at = None
