"""Files of results that `shunter submit` writes: as published, or as Batch output lines."""

import tempfile
from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import BinaryIO

from topics import Result
from topics.openai_api.batch_output import error_line, line_of_result


class ResultFormat(StrEnum):
    """The format that a result is written in."""

    NATIVE = "native"
    OPENAI_BATCH = "openai-batch"


class ResultFiles:
    """Writes results as they end, or in a given order.

    Args:
        output: gets the results; None writes none.
        errors: gets those without an answer; None leaves them in ``output``.
        as_batch: writes lines of an OpenAI Batch output file, in place of results.
        order: ids in the order to keep; None is that of arrival. What comes before its turn waits
            in a temporary file.
    """

    def __init__(
        self,
        output: BinaryIO | None,
        errors: BinaryIO | None = None,
        *,
        as_batch: bool = False,
        order: Sequence[str] | None = None,
    ) -> None:
        self._output = output
        self._errors = errors
        self._as_batch = as_batch
        self._order = order
        self._next = 0
        self._waiting: dict[str, tuple[int, int, bool]] = {}
        self._spool = None if order is None else tempfile.TemporaryFile()  # noqa: SIM115

    def add(self, result: Result, value: bytes) -> None:
        """Write a result; ``value`` is its record's."""
        if self._as_batch:
            line, is_error = line_of_result(result)
        else:
            line, is_error = value, result.status != "completed"
        self._add(result.id, line, is_error=is_error)

    def finish(self, unserved: Mapping[str, tuple[str, str]]) -> None:
        """Write what waits for its turn still, and a line for each request that gets no result.

        Args:
            unserved: code and message by id.
        """
        if self._as_batch:
            for name, (code, message) in unserved.items():
                self._add(name, error_line(name, name, code, message), is_error=True)
        for name in self._order or ():
            self._write_waiting(name)
        if self._spool is not None:
            self._spool.close()

    def _add(self, name: str, line: bytes, *, is_error: bool) -> None:
        if self._order is None or self._spool is None:
            self._write(line, is_error=is_error)
            return
        start = self._spool.seek(0, 2)
        self._spool.write(line)
        self._waiting[name] = (start, len(line), is_error)
        while self._next < len(self._order) and self._write_waiting(self._order[self._next]):
            self._next += 1

    def _write_waiting(self, name: str) -> bool:
        found = self._waiting.pop(name, None)
        if found is None or self._spool is None:
            return False
        start, length, is_error = found
        self._spool.seek(start)
        self._write(self._spool.read(length), is_error=is_error)
        return True

    def _write(self, line: bytes, *, is_error: bool) -> None:
        file = self._errors if is_error and self._errors is not None else self._output
        if file is not None:
            file.write(line + b"\n")
