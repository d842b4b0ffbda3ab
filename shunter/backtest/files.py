"""The backtest's files: the trace that comes in, the assignments that go out."""

import csv
import gzip
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import IO, TextIO, cast

from policies import Fleet, Policy
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.workload import Arrival, TraceError, parse_arrivals, profiles_of
from shunter.console import UserError, named, read_input
from shunter.render.spreadsheet import cell

PACKAGED = "workload-open-small.csv.gz"
GZIP_MAGIC = b"\x1f\x8b"
ROWS_MAX = 2_000_000

COLUMNS = (
    "row",
    "pool",
    "device",
    "variant",
    "precision",
    "path",
    "dispatched_s",
    "started_s",
    "first_token_s",
    "finished_s",
    "cost_usd",
    "status",
)


def read_trace(path: Path | None) -> list[Arrival]:
    """Return the requests of a CSV file, gzipped or not.

    None is the packaged one, - standard input.

    Raises:
        UserError: naming the file, and the row and column where there is one.
    """
    name = _named(path)
    try:
        with _open(path) as text:
            rows: Iterator[Mapping[str, str | None]] = csv.DictReader(text)
            arrivals = parse_arrivals(islice(rows, ROWS_MAX + 1), name)
    except TraceError as error:
        raise UserError(str(error)) from error
    except (OSError, EOFError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{name}: can't be read: {error}") from error
    if len(arrivals) > ROWS_MAX:
        raise UserError(f"{name}: more than {ROWS_MAX:,} rows; split the file")
    return arrivals


def read_known(path: Path | None, fleet: Fleet, policy: Policy) -> list[Arrival]:
    """Return the requests of a file, which all are of classes that the policy has.

    Raises:
        UserError: as of `read_trace`, and naming the first row that the policy rejects.
    """
    arrivals, kinds = read_trace(path), dict[tuple[str, str, str], Arrival]()
    for each in arrivals:
        kinds.setdefault((each.task, each.model, each.tenant), each)
    try:
        profiles_of(kinds.values(), fleet, policy)
    except TraceError as error:
        raise UserError(f"{_named(path)}: {error}") from error
    return arrivals


def _named(path: Path | None) -> str:
    return named(path) if path else f"packaged {PACKAGED}"


@contextmanager
def _open(path: Path | None) -> Iterator[TextIO]:
    name = PACKAGED if path is None else path.name
    given = (
        (resources.files("shunter.data") / name).read_bytes() if path is None else read_input(path)
    )
    source: IO[bytes] = io.BytesIO(given)
    if name.endswith(".gz") or given.startswith(GZIP_MAGIC):
        source = cast("IO[bytes]", gzip.GzipFile(fileobj=source))
    # Spreadsheets begin a file with a byte order mark.
    with io.TextIOWrapper(source, encoding="utf-8-sig", newline="") as text:
        yield text


def write_assignments(
    path: Path, outcomes: Iterable[ReplayOutcome], *, with_cached: bool = False
) -> None:
    """Write a row for each request's assignment. Fields that do not apply stay empty.

    ``with_cached`` adds the column ``cached_tokens``.

    Raises:
        UserError: the file can't be written.
    """
    if with_cached:
        rows = ((*_row(each), each.cached_tokens) for each in outcomes)
        write_rows(path, (*COLUMNS, "cached_tokens"), rows)
    else:
        write_rows(path, COLUMNS, map(_row, outcomes))


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a CSV file of these columns.

    Raises:
        UserError: the file can't be written.
    """
    try:
        with path.open("w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text)
            writer.writerow(columns)
            writer.writerows(map(cell, row) for row in rows)
    except OSError as error:
        raise UserError(f"{path}: can't be written: {error.strerror}") from error


def _row(outcome: ReplayOutcome) -> tuple[object, ...]:
    # Without output (an embedding) the first result is the last.
    first_s = outcome.finished_s if outcome.output_tokens == 0 else outcome.first_token_s
    return (
        outcome.row,
        outcome.pool,
        outcome.device,
        outcome.variant,
        outcome.precision,
        outcome.path,
        outcome.dispatched_s,
        outcome.started_s,
        first_s,
        outcome.finished_s,
        outcome.cost_usd,
        outcome.status,
    )
