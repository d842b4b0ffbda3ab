"""The log of a batch in a directory: a journal, and two files of lines, all only appended to."""

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import orjson

from gateway.batches.journal import Journal, JournalContents, Run, whole_lines
from gateway.batches.output import Ends, line_number
from topics import durable_files

TOLD_S = 1.0
# A line begins with its id.
_ID_BYTES_MAX = 200


class DirectoryLog(Ends):
    """The log. What stands there is what is done, without what a death has cut off."""

    is_full = False

    def __init__(self, folder: Path, total: int) -> None:
        super().__init__(total)
        self._copied = bytearray(total)
        self._paths = {False: folder / "output", True: folder / "errors"}
        self._descriptors: dict[bool, int] = {}
        self._sizes: dict[bool, int] = {}
        for errors, path in self._paths.items():
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
            self._descriptors[errors] = descriptor
            self._sizes[errors] = whole_lines(descriptor)
            os.ftruncate(descriptor, self._sizes[errors])
            with path.open("rb") as lines:
                for line in lines:
                    self.count(orjson.loads(line), is_error=errors)
        self._journal = Journal(folder / "journal")

    @property
    def state(self) -> JournalContents:
        """The contents of the journal."""
        return self._journal.state

    def close(self) -> None:
        """Close the files."""
        self._journal.close()
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def add(self, n: int, line: dict[str, Any], *, is_error: bool) -> None:
        """Write down a line's end, unless one is there.

        Raises:
            OSError: the disk does not take it; nothing of it stays.
        """
        if self.is_done(n):
            return
        data = orjson.dumps(line) + b"\n"
        try:
            durable_files.append(self._descriptors[is_error], data)
        except OSError:
            os.ftruncate(self._descriptors[is_error], self._sizes[is_error])
            raise
        self._sizes[is_error] += len(data)
        self.count(line, is_error=is_error)

    def intend(self, runs: Iterable[Run], now: float) -> None:
        """Note what is about to be published."""
        self._journal.intend(runs, now)

    def published(self, runs: Iterable[Run]) -> None:
        """Note what of that Kafka has."""
        self._journal.published(runs)

    def read_to(self, positions: Mapping[int, int], again: Iterable[int]) -> None:
        """Note how far results are read, when the disk has what came of them."""
        self.flush()
        self._journal.read_to(positions, again)

    def flush(self) -> None:
        """Wait until the disk has all lines."""
        for descriptor in self._descriptors.values():
            durable_files.sync(descriptor)

    def told_every_s(self, age_s: float) -> float:
        """Return the time between two records of how far the batch is."""
        del age_s
        return TOLD_S

    def has_lines(self, *, errors: bool) -> bool:
        """Return whether any line is in one of the files."""
        return self._sizes[errors] > 0

    def copy(self, write: Callable[[bytes], None], *, errors: bool) -> None:
        """Write one of the files.

        A line that two owners have written, which only a file system without locks lets happen, is
        taken once.
        """
        with self._paths[errors].open("rb") as source:
            for line in source:
                n = line_number(line[:_ID_BYTES_MAX].split(b'"', 4)[3].decode())
                if not self._copied[n]:
                    self._copied[n] = 1
                    write(line)
