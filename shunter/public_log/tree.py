"""The tree of a log: appended to by one process, which signs no two of its heads that differ.

Each append is decided before it is made. An intent, a file that only one process can create, says
which records of Kafka follow which entries, and what the root is then. Tiles are written after it
and hold what it says, whoever writes them and however often; a head is signed when they are there.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from shunter.public_log.store import LogReader, LogStore, LogStoreError
from topics import BadRecordError, decode, encode
from topics.public_log.notes import Checkpoint, NoteError
from topics.public_log.tiles import (
    EMPTY_ROOT,
    TILE_WIDTH,
    TiledTree,
    bundle_of,
    entries_of,
    hashes_of,
    tile_path,
    tile_width,
)
from topics.signing.merkle import DIGEST_BYTES, leaf_hash, tree_hash

JOURNAL = "journal"
# Enough to see what happened; a process that was asleep for longer finds newer ones.
INTENTS_KEPT = 16


class LogForkError(Exception):
    """To go on could sign a second tree; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class OffsetSpan:
    """Records of a partition of the roots topic, from ``first`` up to ``following``, excluded."""

    partition: int
    first: int
    following: int


@dataclass(frozen=True, slots=True)
class Intent:
    """Entries that the log is to append. ``root`` is in hexadecimal, of all ``size`` entries.

    ``spans`` are what follows the entry ``start - 1``, in this order; ``offsets`` are, by
    partition, the first offset that is not in the log.
    """

    sequence: int
    origin: str
    start: int
    size: int
    root: str
    spans: Sequence[OffsetSpan]
    offsets: Sequence[tuple[int, int]]


@dataclass(slots=True)
class _Edge:
    """The right edge of a tree: the hashes of the last tile at each level, and its last bundle."""

    levels: list[list[bytes]] = field(default_factory=list)
    bundle: list[bytes] = field(default_factory=list)
    full: dict[tuple[int | None, int], bytes] = field(default_factory=dict)
    """Tiles and, at the level None, bundles that have become full and are not written yet."""

    def root(self) -> bytes:
        found: bytes | None = None
        for hashes in self.levels:
            nodes = [*hashes, found] if found is not None else hashes
            found = tree_hash(nodes) if nodes else None
        return EMPTY_ROOT if found is None else found

    def append(self, entry: bytes, index: int) -> None:
        self.bundle.append(entry)
        if len(self.bundle) == TILE_WIDTH:
            self.full[None, index // TILE_WIDTH] = bundle_of(self.bundle)
            self.bundle = []
        node, level = leaf_hash(entry), 0
        while True:
            if level == len(self.levels):
                self.levels.append([])
            hashes = self.levels[level]
            hashes.append(node)
            if len(hashes) < TILE_WIDTH:
                return
            index //= TILE_WIDTH
            self.full[level, index] = b"".join(hashes)
            node, self.levels[level] = tree_hash(hashes), []
            level += 1

    def copy(self) -> "_Edge":
        return _Edge([list(hashes) for hashes in self.levels], list(self.bundle))


class LogTree:
    """The tree in a store. One process appends; ``open`` first."""

    def __init__(self, store: LogStore, origin: str) -> None:
        self._store = store
        self._origin = origin
        self._edge = _Edge()
        self._intent = Intent(-1, origin, 0, 0, EMPTY_ROOT.hex(), (), ())
        self._undone: Intent | None = None

    @property
    def head(self) -> Checkpoint:
        """The head of what is written: to be signed, or signed already."""
        return Checkpoint(self._origin, self._intent.size, bytes.fromhex(self._intent.root))

    @property
    def offsets(self) -> Mapping[int, int]:
        """By partition of the roots topic, the first offset that is not in the log."""
        return dict(self._intent.offsets)

    @property
    def undone(self) -> Intent | None:
        """The intent that a process before has left; ``append`` its records, before any other."""
        return self._undone

    def open(self) -> None:
        """Read where the log ends.

        Raises:
            LogForkError: the store does not hold what was signed, or is another log's.
            LogStoreError: the store can't be read.
        """
        self._store.claim()
        intents = [self._read_intent(n) for n in self._numbers()[-2:]]
        if not intents:
            if self._store.read("checkpoint") is not None:
                raise LogForkError(f"{self._store.url}: a checkpoint without a journal; restore it")
            return
        last = intents[-1]
        if self._has_tiles(last):
            self._intent = last
            return
        before = intents[0] if len(intents) == 2 else None
        if before is None and last.start == 0 and last.sequence == 0:
            self._undone = last
        elif before is not None and before.size == last.start and self._has_tiles(before):
            self._intent, self._undone = before, last
        else:
            raise LogForkError(
                f"{self._store.url}: its tiles are not those of the journal's {last.size} entries;"
                " restore the files: they were changed, or are an older copy"
            )

    def append(self, spans: Sequence[OffsetSpan], entries: Sequence[bytes]) -> Checkpoint:
        """Append entries, the roots of these records, and return the head to sign.

        Raises:
            LogForkError: another process has appended; or the undone intent has other records.
            LogStoreError: the store can't be written; open the log anew.
        """
        edge = self._edge.copy()
        for number, entry in enumerate(entries, self._intent.size):
            edge.append(entry, number)
        intent = Intent(
            self._intent.sequence + 1,
            self._origin,
            self._intent.size,
            self._intent.size + len(entries),
            edge.root().hex(),
            tuple(spans),
            sorted({**self.offsets, **{s.partition: s.following for s in spans}}.items()),
        )
        if self._undone is None:
            self._decide(intent)
        elif self._undone.root != intent.root or self._undone.size != intent.size:
            raise LogForkError(
                f"{self._store.url}: the records of {list(spans)} are not those that the journal"
                " decided on: Kafka has lost some, or is another; nothing is signed"
            )
        self._write_tiles(intent.size, edge)
        full, edge.full = edge.full, {}
        self._edge, self._intent, self._undone = edge, intent, None
        self._tidy(full)
        return self.head

    def tree(self) -> TiledTree:
        """Return the tree as it is written, for proofs."""
        return TiledTree(self._intent.size, self._read_tile)

    def _decide(self, intent: Intent) -> None:
        path = f"{JOURNAL}/{intent.sequence:020d}.json"
        if self._store.create(path, encode(intent)):
            # A process that slept may find its number free again, since old ones are deleted; then
            # a higher one stands there.
            if self._numbers()[-1] == intent.sequence:
                return
            self._store.delete(path)
        raise LogForkError(
            f"{self._store.url}: another process has appended meanwhile; one writes a log"
        )

    def _numbers(self) -> list[int]:
        names = [n for n in self._store.names(JOURNAL) if n.endswith(".json")]
        return [int(name.removesuffix(".json")) for name in names]

    def _read_intent(self, number: int) -> Intent:
        path = f"{JOURNAL}/{number:020d}.json"
        try:
            intent = decode(Intent, self._store.read(path) or b"")
        except BadRecordError as error:
            raise LogStoreError(f"{self._store.url}/{path}: {error.message}") from error
        if intent.origin != self._origin:
            raise LogForkError(
                f"{self._store.url} is the log {intent.origin!r:.80}, but the key is of"
                f" {self._origin!r:.80}"
            )
        return intent

    def _has_tiles(self, intent: Intent) -> bool:
        """Read the right edge at a size; return whether it leads to the intent's root."""
        edge, size = _Edge(), intent.size
        try:
            while size >> 8 * len(edge.levels):
                level = len(edge.levels)
                index, width = divmod(size >> 8 * level, TILE_WIDTH)
                edge.levels.append(hashes_of(self._read_tile(level, index, width)) if width else [])
            index, width = divmod(size, TILE_WIDTH)
            if width:
                bundle = self._store.read(tile_path(None, index, width)) or b""
                edge.bundle = list(entries_of(bundle, width))
        except NoteError:
            return False
        leaves = edge.levels[0] if edge.levels else []
        if edge.root().hex() != intent.root or [leaf_hash(e) for e in edge.bundle] != leaves:
            return False
        self._edge = edge
        return True

    def _write_tiles(self, size: int, edge: _Edge) -> None:
        for (level, index), data in edge.full.items():
            self._store.write(tile_path(level, index), data)
        for height, hashes in enumerate(edge.levels):
            if hashes:
                number = (size >> 8 * height) // TILE_WIDTH
                self._store.write(tile_path(height, number, len(hashes)), b"".join(hashes))
        if edge.bundle:
            path = tile_path(None, size // TILE_WIDTH, len(edge.bundle))
            self._store.write(path, bundle_of(edge.bundle))

    def _tidy(self, full: Iterable[tuple[int | None, int]]) -> None:
        """Delete old intents, and the partial tiles before those that have become full."""
        for number in self._numbers()[:-INTENTS_KEPT]:
            self._store.delete(f"{JOURNAL}/{number:020d}.json")
        for level, index in full:
            if index:
                folder = f"{tile_path(level, index - 1)}.p"
                for name in self._store.names(folder):
                    self._store.delete(f"{folder}/{name}")

    def _read_tile(self, level: int, index: int, width: int) -> bytes:
        return read_tile(self._store, level, index, width)


def read_tile(store: LogReader, level: int, index: int, width: int) -> bytes:
    """Return a tile, from the full one where a partial one is gone.

    Raises:
        NoteError: there is none.
        LogStoreError: the store can't be read.
    """
    found = store.read(tile_path(level, index, width))
    if found is None and width < TILE_WIDTH:
        found = store.read(tile_path(level, index))
    if found is None:
        raise NoteError(f"{store.url} has no {tile_path(level, index, width)}")
    return found[: width * DIGEST_BYTES]


def read_entries(store: LogReader, size: int, index: int) -> Sequence[bytes]:
    """Return the entries of a bundle, as far as a log of this size has it.

    Raises:
        NoteError: there is none, or it holds other entries.
        LogStoreError: the store can't be read.
    """
    width = tile_width(size, 0, index)
    path = tile_path(None, index, width)
    found, count = store.read(path), width
    if found is None and width < TILE_WIDTH:
        found, count = store.read(tile_path(None, index)), TILE_WIDTH
    if found is None:
        raise NoteError(f"{store.url} has no {path}")
    return list(entries_of(found, count))[:width]
