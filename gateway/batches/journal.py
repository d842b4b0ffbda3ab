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
class Journalled:
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


class Journal:
    """Appends to the journal; an entry is on the disk before what it announces is done."""

    def __init__(self, path: Path) -> None:
        self.state = Journalled()
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
        whole = whole_lines(self._descriptor)
        os.ftruncate(self._descriptor, whole)
        for line in os.pread(self._descriptor, whole, 0).splitlines():
            self._take(orjson.loads(line))

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def intend(self, runs: Iterable[Run], now: float) -> None:
        """Note what is about to be published; ``now`` is epoch seconds."""
        self._write({"intend": list(runs), "at": now})

    def published(self, runs: Iterable[Run]) -> None:
        """Note what of the uncertain the log has."""
        self._write({"published": list(runs)})

    def read_to(self, positions: Mapping[int, int], again: Iterable[int]) -> None:
        """Note how far results are read, and which lines need another run for what was read.

        What stands below must have been written down, and synced.
        """
        read = [[number, offset] for number, offset in positions.items()]
        self._write({"read": read, "again": list(again)})

    def _write(self, entry: dict[str, Any]) -> None:
        durable_files.append(self._descriptor, orjson.dumps(entry) + b"\n")
        durable_files.sync(self._descriptor)
        self._take(entry)

    def _take(self, entry: dict[str, Any]) -> None:
        state = self.state
        if "intend" in entry:
            if not state.uncertain:
                state.uncertain_since = entry["at"]
            for n, run in entry["intend"]:
                state.uncertain.add((n, run))
                state.next_line = max(state.next_line, n + 1)
                state.again.discard(n)
                if run:
                    state.runs[n] = run
        elif "published" in entry:
            state.uncertain -= {(n, run) for n, run in entry["published"]}
        else:
            state.positions = dict(entry["read"])
            state.again = set(entry["again"])


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
