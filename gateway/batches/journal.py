"""The journal of a batch: what may have been published, what was, and how far results are read."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from topics import durable_files

Run = tuple[int, int]
"""A line, counted from 0, and its run: 0, and one more each time that it is published anew."""


@dataclass(slots=True)
class JournalContents:
    """The contents of the journal."""

    next_line: int = 0
    """Lines from here on were never published; those before it were, or are uncertain."""
    runs: dict[int, int] = field(default_factory=dict)
    """The current run of each line that has had more than one."""
    uncertain: set[Run] = field(default_factory=set)
    """Current runs of which the log alone can tell whether it has them."""
    uncertain_since: float | None = None
    """Epoch seconds before which none of them was published."""
    again: set[int] = field(default_factory=set)
    """Lines whose current run was turned away, and that are to have another."""
    positions: dict[int, int] = field(default_factory=dict)
    """By partition of the results, the offset below which all were written down."""

    def take(self, entry: dict[str, Any]) -> None:
        """Take in an entry, the next of the log."""
        if "intend" in entry:
            if not self.uncertain:
                self.uncertain_since = entry["at"]
            for n, run in entry["intend"]:
                self.uncertain.add((n, run))
                self.next_line = max(self.next_line, n + 1)
                self.again.discard(n)
                if run:
                    self.runs[n] = run
        elif "published" in entry:
            self.uncertain -= {(n, run) for n, run in entry["published"]}
        else:
            self.positions = dict(entry["read"])
            self.again = set(entry["again"])


def intended(runs: Iterable[Run], now: float) -> dict[str, Any]:
    """Return the entry for what is about to be published; ``now`` is epoch seconds."""
    return {"intend": list(runs), "at": now}


def was_published(runs: Iterable[Run]) -> dict[str, Any]:
    """Return the entry for what Kafka has."""
    return {"published": list(runs)}


def was_read(positions: Mapping[int, int], again: Iterable[int]) -> dict[str, Any]:
    """Return the entry for how far results are read, and for lines that need another run."""
    return {"read": [[n, offset] for n, offset in positions.items()], "again": list(again)}


class Journal:
    """Appends to the journal; an entry is on the disk before what it announces is done."""

    def __init__(self, path: Path) -> None:
        self.state = JournalContents()
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        whole = whole_lines(self._descriptor)
        os.ftruncate(self._descriptor, whole)
        for line in os.pread(self._descriptor, whole, 0).splitlines():
            self.state.take(orjson.loads(line))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def intend(self, runs: Iterable[Run], now: float) -> None:
        """Note what is about to be published; ``now`` is epoch seconds."""
        self._write(intended(runs, now))

    def published(self, runs: Iterable[Run]) -> None:
        """Note what of the uncertain the log has."""
        self._write(was_published(runs))

    def read_to(self, positions: Mapping[int, int], again: Iterable[int]) -> None:
        """Note how far results are read, and which lines need another run for what was read.

        What stands below must have been written down, and synced.
        """
        self._write(was_read(positions, again))

    def _write(self, entry: dict[str, Any]) -> None:
        durable_files.append(self._descriptor, orjson.dumps(entry) + b"\n")
        durable_files.sync(self._descriptor)
        self.state.take(entry)


def whole_lines(descriptor: int) -> int:
    """Return how many bytes of a file are whole lines: what was cut off by a death is none."""
    end = os.fstat(descriptor).st_size
    while end:
        start = max(0, end - 65536)
        at = os.pread(descriptor, end - start, start).rfind(b"\n")
        if at >= 0:
            return start + at + 1
        end = start
    return 0
