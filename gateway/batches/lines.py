"""The input of a batch: its lines checked, found again by number, and made requests."""

import hashlib
import os
from array import array
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gateway.api.translation import Wanted, wanted
from gateway.batches.record import LineError
from gateway.exchange.request_ids import owned_id
from gateway.http.errors import ApiError
from topics import BadRecordError
from topics.records.batch_line import body_tier, wishes_of_line
from topics.wire.codec import decode_unique_json_object

LINES_MAX = 50_000
ERRORS_MAX = 100
# Lines between two turns of the other work of a process; each takes some 0.1 ms.
LINES_A_TURN = 10
_BOM = b"\xef\xbb\xbf"
_FIELDS = frozenset({"custom_id", "method", "url", "body", "shunter", "metadata"})
_CUSTOM_ID_CHARACTERS_MAX = 512


class LineProblem(Exception):  # noqa: N818 - it is data of the batch, not of the program
    """A line that can't be run: code, message, and the field at fault."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param


@dataclass(frozen=True, slots=True)
class BatchLine:
    """A line as the client wrote it, and what is asked for in it."""

    custom_id: str
    wanted: Wanted


@dataclass(slots=True)
class CheckedInput:
    """An input file that was checked: where its lines are, or what is wrong with it."""

    offsets: "array[int]" = field(default_factory=lambda: array("Q"))
    errors: list[LineError] = field(default_factory=list)
    model: str | None = None
    """The model of all lines; None where they name several."""
    tasks: Counter[str] = field(default_factory=Counter)
    """Of the lines that name their class, how many are of each."""


class Input:
    """Reads an input file, a line at a time, however long it is.

    Args:
        opened: descriptor of the file, which is closed with this.
        endpoint: that all lines must name.
        tenant: whose batch it is.
        line_bytes_max: longest line.
        default_model: of lines that name none; None: each must.
    """

    def __init__(
        self,
        opened: int,
        endpoint: str,
        tenant: str,
        line_bytes_max: int,
        default_model: str | None = None,
    ) -> None:
        self._endpoint = endpoint
        self._tenant = tenant
        self._line_bytes_max = line_bytes_max
        self._default_model = default_model
        self._descriptor = opened
        self.offsets = array("Q")

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)

    def check(self, now: float) -> Iterator[CheckedInput]:
        """Check all lines; yields what is known now and then, and at the end."""
        found, seen, models = CheckedInput(), set[bytes](), set[str]()
        for number, offset, data in self._lines():
            if len(found.offsets) == LINES_MAX:
                message = f"the file has more than {LINES_MAX:,} lines; split it"
                found.errors = [LineError("too_many_tasks", message)]
                break
            try:
                line = self.parse(data, now)
                _check_new(line.custom_id, seen)
                models.add(line.wanted.model)
                if (task := line.wanted.fields.get("task")) is not None:
                    found.tasks[task] += 1
            except LineProblem as problem:
                found.errors.append(LineError(problem.code, problem.message, number, problem.param))
            found.offsets.append(offset)
            if len(found.errors) == ERRORS_MAX:
                break
            if len(found.offsets) % LINES_A_TURN == 0:
                yield found
        if not found.offsets and not found.errors:
            found.errors.append(LineError("empty_file", "the file has no lines"))
        found.model = next(iter(models)) if len(models) == 1 else None
        yield found

    def index(self) -> None:
        """Find the lines of a file that was checked before."""
        self.offsets = array("Q", (offset for _, offset, _ in self._lines()))

    def line(self, n: int, now: float) -> BatchLine:
        """Return a line by its number, from 0; the file must be indexed.

        Raises:
            LineProblem: it has become unfit since it was checked.
        """
        start, is_last = self.offsets[n], n + 1 == len(self.offsets)
        size = self._line_bytes_max + 2 if is_last else self.offsets[n + 1] - start
        data = os.pread(self._descriptor, size, start)
        return self.parse(data.partition(b"\n")[0], now)

    def parse(self, data: bytes, now: float) -> BatchLine:
        """Return what a line asks for; ``now`` is epoch seconds.

        Raises:
            LineProblem: it can't be run.
        """
        if len(data) > self._line_bytes_max:
            message = (
                f"the line has more than {self._line_bytes_max:,} bytes (SHUNTER_REQUEST_BYTES_MAX)"
            )
            raise LineProblem("request_too_large", message)
        try:
            fields = decode_unique_json_object(data.rstrip(b"\r"))
        except BadRecordError as error:
            raise LineProblem("invalid_json_line", f"the line: {error.message}") from error
        custom_id = self._checked(fields)
        try:
            asked = self._asked(fields, now)
        except ApiError as error:
            raise LineProblem(error.code or "invalid_value", error.message, error.param) from error
        except BadRecordError as error:
            code = "unknown_parameter" if "not a field" in error.message else "invalid_value"
            raise LineProblem(code, error.message) from error
        if asked.is_streamed:
            message = "an answer in a batch is not streamed; leave stream out"
            raise LineProblem("invalid_value", message, "body.stream")
        return BatchLine(custom_id, asked)

    def _checked(self, fields: dict[str, Any]) -> str:
        for name in ("custom_id", "method", "url", "body"):
            if fields.get(name) is None:
                raise LineProblem("missing_required_parameter", f"the line has no {name}", name)
        for name in fields:
            if name not in _FIELDS:
                message = f"{name:.60} is not a field of a line"
                raise LineProblem("unknown_parameter", message, name[:60])
        custom_id = fields["custom_id"]
        if not isinstance(custom_id, str) or not 1 <= len(custom_id) <= _CUSTOM_ID_CHARACTERS_MAX:
            message = f"custom_id must be a string of 1 to {_CUSTOM_ID_CHARACTERS_MAX} characters"
            raise LineProblem("invalid_value", message, "custom_id")
        if fields["method"] != "POST":
            raise LineProblem("invalid_method", "method must be POST", "method")
        if fields["url"] != self._endpoint:
            message = f"url must be that of the batch, {self._endpoint}"
            raise LineProblem("url_mismatch", message, "url")
        if not isinstance(fields["body"], dict):
            raise LineProblem("invalid_type", "body must be an object", "body")
        return custom_id

    def _asked(self, fields: dict[str, Any], now: float) -> Wanted:
        body: dict[str, Any] = fields["body"]
        # A body's own `shunter` says the same as one beside it.
        beside = fields.get("shunter") if "shunter" in fields else body.get("shunter")
        wishes = wishes_of_line(fields | {"shunter": beside})
        if wishes.pop("tenant", self._tenant) != self._tenant:
            raise LineProblem("invalid_value", "the tenant is that of the API key", "tenant")
        tier = wishes.pop("service_tier", None) or body_tier(body) or "batch"
        if "completion_window" in wishes:
            wishes["deadline"] = wishes.pop("completion_window")
        asked = wanted(
            self._endpoint,
            body | {"shunter": wishes},
            {},
            self._tenant,
            now,
            batch=True,
            default_model=self._default_model,
        )
        asked.fields["service_tier"] = tier
        return asked

    def _lines(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield number, from 1, offset and bytes of each line that isn't blank.

        Of one that is too long no more is kept than shows that.
        """
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            number, offset = 0, 0
            while data := file.readline(self._line_bytes_max + 2):
                number += 1
                size = len(data)
                kept = data
                while not data.endswith(b"\n") and (data := file.readline(65536)):
                    size += len(data)
                start, line = offset, kept.removesuffix(b"\n")
                if number == 1 and line.startswith(_BOM):
                    start, line = len(_BOM), line[len(_BOM) :]
                if line.strip():
                    yield number, start, line
                offset += size


def _check_new(custom_id: str, seen: set[bytes]) -> None:
    digest = hashlib.blake2b(custom_id.encode(), digest_size=16).digest()
    if digest in seen:
        message = f"the custom_id {custom_id!r:.100} stands on an earlier line"
        raise LineProblem("duplicate_custom_id", message, "custom_id")
    seen.add(digest)


def line_request_id(tenant: str, batch_id: str, n: int, run: int) -> str:
    """Return the id of a line's request, the same whoever publishes it."""
    again = f".{run}" if run else ""
    return owned_id(tenant, f"{batch_prefix(batch_id)}{n}{again}")


def batch_prefix(batch_id: str) -> str:
    """Return what the ids of a batch's lines begin with, behind their tenant's part."""
    return f"b{batch_id.removeprefix('batch_')}-"


def run_of_id(request_id: str) -> tuple[int, int]:
    """Return line, from 0, and run of an id by ``line_request_id``."""
    n, _, run = request_id.rpartition("-")[2].partition(".")
    return int(n), int(run or 0)
