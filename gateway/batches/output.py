"""Output lines of a batch: written as they end, made files at the end."""

import os
from pathlib import Path
from typing import Any

import orjson

from gateway.batches.journal import whole_lines
from gateway.batches.record import BatchCounts
from topics import durable_files
from topics.openai_api.batch_output import EXPIRED, MESSAGES

OUTPUT, ERRORS = "output", "errors"
# A line begins with its id.
_ID_BYTES_MAX = 200


class Output:
    """The two files that a batch's lines go to, each line into one of them, once.

    What stands there is what is done: a new owner reads it back, without what a death has cut off.
    """

    def __init__(self, folder: Path, total: int) -> None:
        self.counts = BatchCounts(total=total)
        self.expired = 0
        self._done = bytearray(total)
        self._copied = bytearray(total)
        self.done_count = 0
        self._paths = {name: folder / name for name in (OUTPUT, ERRORS)}
        self._descriptors: dict[str, int] = {}
        self._sizes: dict[str, int] = {}
        for name, path in self._paths.items():
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND)
            self._descriptors[name] = descriptor
            self._sizes[name] = whole_lines(descriptor)
            os.ftruncate(descriptor, self._sizes[name])
            with path.open("rb") as lines:
                for line in lines:
                    self._count(orjson.loads(line), is_error=name == ERRORS)

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._descriptors.values():
            os.close(descriptor)

    def is_done(self, n: int) -> bool:
        """Return whether a line, counted from 0, is in one of the files."""
        return bool(self._done[n])

    def add(self, n: int, line: dict[str, Any], *, is_error: bool) -> None:
        """Write down a line's end, unless one is there.

        Raises:
            OSError: the disk does not take it; nothing of it stays.
        """
        if self._done[n]:
            return
        name = ERRORS if is_error else OUTPUT
        data = orjson.dumps(line) + b"\n"
        try:
            durable_files.append(self._descriptors[name], data)
        except OSError:
            os.ftruncate(self._descriptors[name], self._sizes[name])
            raise
        self._sizes[name] += len(data)
        self._count(line, is_error=is_error)

    def sync(self) -> None:
        """Wait until the disk has all lines."""
        for descriptor in self._descriptors.values():
            durable_files.sync(descriptor)

    def has_lines(self, name: str) -> bool:
        """Return whether any line is in one of the files."""
        return self._sizes[name] > 0

    def copy(self, name: str, target: Path) -> int:
        """Write one of the files, whole and synced, to a path; return its bytes.

        A line that two owners have written, which only a file system without locks lets happen, is
        taken once.
        """
        with self._paths[name].open("rb") as source, target.open("xb") as file:
            for line in source:
                n = line_number(line[:_ID_BYTES_MAX].split(b'"', 4)[3].decode())
                if not self._copied[n]:
                    self._copied[n] = 1
                    file.write(line)
            file.flush()
            durable_files.sync(file.fileno())
            return file.tell()

    def _count(self, line: dict[str, Any], *, is_error: bool) -> None:
        n = line_number(line["id"])
        if self._done[n]:
            return
        self._done[n] = 1
        self.done_count += 1
        counts = self.counts
        if is_error:
            counts.failed += 1
        else:
            counts.completed += 1
        error = line["error"]
        self.expired += error is not None and error["code"] == EXPIRED
        told = line.get("shunter") or {}
        usage, cost = told.get("usage") or {}, told.get("cost") or {}
        counts.input_tokens += usage.get("input_tokens", 0)
        counts.cached_tokens += usage.get("cached_tokens", 0)
        counts.output_tokens += usage.get("output_tokens", 0)
        counts.cost_usd += cost.get("usd", 0.0)


def line_id(prefix: str, n: int) -> str:
    """Return the id of an output line, which tells its number."""
    return f"batch_req_{prefix}{n}"


def line_number(told: str) -> int:
    """Return the number, from 0, that a line's id tells."""
    return int(told.rpartition("-")[2])


def unanswered(prefix: str, n: int, custom_id: str, code: str) -> dict[str, Any]:
    """Return the line of a request that never ended: expired, or cancelled."""
    return {
        "id": line_id(prefix, n),
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": MESSAGES[code]},
    }
