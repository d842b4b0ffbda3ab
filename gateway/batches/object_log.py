"""The log of a batch in an object store: segments, each created where there was none.

A segment's number follows that of the last one. So who goes on with the batch and who has lost it
can't both write one: the second finds its number taken, and is no owner any more.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import orjson

from gateway.batches.journal import JournalContents, Run, intended, was_published, was_read
from gateway.batches.output import Ends
from gateway.batches.store import NotOwnerError
from topics.objects import Objects

# Of what was added; beyond it a segment is written, so that memory stays small.
SEGMENT_BYTES_MAX = 2 * 1024 * 1024
# Segments that are read at once.
READ_AT_ONCE = 8
# A batch is told every second at first, and later once in so much of its age, up to a minute: its
# segments are read again by a successor, and at its end.
TOLD_S_MIN, TOLD_S_MAX, TOLD_SHARE = 1.0, 60.0, 1 / 60
# A position that has changed alone is written down once in so many times.
POSITIONS_EVERY = 10
_JOURNAL, _OUTPUT, _ERROR = b"j", b"o", b"e"


class ObjectLog(Ends):
    """The log of a batch; one thread at a time uses it.

    Args:
        objects: the store.
        folder: path of the segments.
        total: lines of the batch.
    """

    def __init__(self, objects: Objects, folder: str, total: int) -> None:
        super().__init__(total)
        self.state = JournalContents()
        self._objects = objects
        self._folder = folder
        self._added: list[bytes] = []
        self._added_bytes = 0
        self._again: frozenset[int] = frozenset()
        self._left_out = 0
        self._has = {False: False, True: False}
        self._next = 0
        for kind, text in self._read():
            self._take(kind, text)

    @property
    def is_full(self) -> bool:
        """True if so much was added that it should be flushed."""
        return self._added_bytes >= SEGMENT_BYTES_MAX

    def add(self, n: int, line: dict[str, Any], *, is_error: bool) -> None:
        """Take in a line's end, unless there is one; ``flush`` keeps it."""
        if not self.is_done(n):
            self._add(_ERROR if is_error else _OUTPUT, orjson.dumps(line))

    def intend(self, runs: Iterable[Run], now: float) -> None:
        """Note what is about to be published."""
        self._add(_JOURNAL, orjson.dumps(intended(runs, now)))
        self.flush()

    def published(self, runs: Iterable[Run]) -> None:
        """Note what of that Kafka has; it is kept with what comes next."""
        self._add(_JOURNAL, orjson.dumps(was_published(runs)))

    def read_to(self, positions: Mapping[int, int], again: Iterable[int]) -> None:
        """Note how far results are read; of a batch that waits not each time."""
        waiting = frozenset(again)
        is_due = not self.state.positions or self._left_out >= POSITIONS_EVERY
        if not (self._added or waiting != self._again or is_due):
            self._left_out += 1
            return
        self._again, self._left_out = waiting, 0
        self._add(_JOURNAL, orjson.dumps(was_read(positions, waiting)))
        self.flush()

    def flush(self) -> None:
        """Write what was added as the next segment.

        Raises:
            NotOwnerError: another gateway has written that.
        """
        if not self._added:
            return
        # Unlike any other, so that one whose acknowledgement was lost is known again.
        data = b"".join((secrets.token_hex(8).encode(), b"\n", *self._added))
        path = f"{self._folder}/{self._next:08d}"
        if not self._objects.create(path, data) and self._objects.read(path) != data:
            raise NotOwnerError(f"{self._objects.url}/{path}: another gateway has gone on")
        self._next += 1
        self._added, self._added_bytes = [], 0

    def told_every_s(self, age_s: float) -> float:
        """Return the time between two records of how far the batch is."""
        return min(TOLD_S_MAX, max(TOLD_S_MIN, age_s * TOLD_SHARE))

    def has_lines(self, *, errors: bool) -> bool:
        """Return whether any line is of the output, or of the errors."""
        return self._has[errors]

    def copy(self, write: Callable[[bytes], None], *, errors: bool) -> None:
        """Write the output, or the errors, as it was flushed."""
        wanted = _ERROR if errors else _OUTPUT
        for kind, text in self._read():
            if kind == wanted:
                write(text + b"\n")

    def close(self) -> None:
        """Write no more."""
        self._added = []

    def _add(self, kind: bytes, text: bytes) -> None:
        self._added.append(kind + text + b"\n")
        self._added_bytes += len(text)
        self._take(kind, text)

    def _take(self, kind: bytes, text: bytes) -> None:
        entry = orjson.loads(text)
        if kind == _JOURNAL:
            self.state.take(entry)
            if "again" in entry:
                self._again = frozenset(entry["again"])
        else:
            self._has[kind == _ERROR] = True
            self.count(entry, is_error=kind == _ERROR)

    def _read(self) -> Iterator[tuple[bytes, bytes]]:
        """Yield kind and text of each entry; the number of the next segment is known then."""
        names = self._objects.names(self._folder)
        for start in range(0, len(names), READ_AT_ONCE):
            paths = [f"{self._folder}/{name}" for name in names[start : start + READ_AT_ONCE]]
            found = self._objects.read_all(paths)
            for path in paths:
                # One that is gone was deleted by whoever has ended the batch.
                if path not in found:
                    raise NotOwnerError(f"{self._objects.url}/{path}: the batch has ended")
                for line in found[path].splitlines()[1:]:
                    yield line[:1], line[1:]
        self._next = int(names[-1]) + 1 if names else 0
