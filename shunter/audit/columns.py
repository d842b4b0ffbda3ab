"""Columns of an archive, held against the raw record that they were made of.

Queries read the columns, signatures are over the raw record: each column is made again and
compared, and so is what the name of a file says.
"""

import itertools
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from shunter.archive.layout import ArchiveError, ArchiveFile
from shunter.archive.rows import SCHEMAS, table_of
from shunter.audit.archived_steps import ArchivedStep, differs, read_step
from shunter.audit.findings import Findings
from shunter.logs.reading import TrailRow
from streams.engine.log import Partition, Record

BATCH_ROWS = 10_000


def check_file(file: ArchiveFile, table: pa.Table, findings: Findings) -> None:
    """Check that a file has the columns of its kind, and is what its name says.

    Raises:
        ArchiveError: a column is missing, or of another type.
    """
    schema, found = SCHEMAS[file.kind], table.schema
    for field in schema:
        if field.name not in found.names:
            raise ArchiveError(f"{file.path}: it has no column {field.name}")
        if found.field(field.name).type != field.type:
            told = f"column {field.name} is {found.field(field.name).type}, not {field.type}"
            raise ArchiveError(f"{file.path}: {told}")
    for name in ("partition", "offset", "timestamp_ms"):
        if table.column(name).null_count:
            raise ArchiveError(f"{file.path}: column {name} has a row without a value")
    for name in sorted(set(found.names) - set(schema.names)):
        findings.add("false_column", file.path, f"column {name} is made of no record")
    offsets = table.column("offset").to_pylist()
    if not offsets or (offsets[0], offsets[-1] + 1) != (file.first_offset, file.next_offset):
        told = f"{offsets[0]} to {offsets[-1]}" if offsets else "none"
        findings.add("false_column", file.path, f"its name tells other offsets than it has: {told}")
    if len(set(offsets)) < len(offsets):
        findings.add("false_column", file.path, "an offset stands there twice")
    if offsets:
        _check_time(file, table.column("timestamp_ms")[0].as_py(), findings)


def checked_rows(
    file: ArchiveFile, table: pa.Table, findings: Findings
) -> Iterator[tuple[TrailRow, ArchivedStep | None]]:
    """Yield the rows of a file that ``check_file`` has checked, each compared with its record.

    Of evidence each comes with its step, if it was read on the way.
    """
    for start in range(0, table.num_rows, BATCH_ROWS):
        batch = table.slice(start, BATCH_ROWS)
        rows = rows_of(file, batch)
        steps: list[ArchivedStep] | None = None
        if file.kind == "evidence" and not batch.column("raw").drop_null():
            read = [read_step(row.value) for row in rows]
            steps = [step for step in read if step is not None]
            if len(steps) < len(read) or _is_elsewhere(file, batch) or differs(batch, steps):
                steps = None
        if steps is None:
            _compare(file, batch, rows, findings)
        yield from zip(rows, steps or itertools.repeat(None, len(rows)), strict=True)


def rows_of(file: ArchiveFile, table: pa.Table) -> list[TrailRow]:
    """Return the records of a part of a file.

    The name of a file says which partition it holds; so does each row, which is checked.
    """
    number, kind = file.partition, file.kind
    offsets, times, keys = (
        table.column(name).to_pylist() for name in ("offset", "timestamp_ms", "key")
    )
    values = table.column("value").cast(pa.binary()).to_pylist()
    if table.column("value").null_count:
        raws = table.column("raw").to_pylist()
        values = [raw if each is None else each for each, raw in zip(values, raws, strict=True)]
    return [
        TrailRow(number, offset, key, value, at_ms / 1000, f"{kind}/{number}@{offset}")
        for offset, key, value, at_ms in zip(offsets, keys, values, times, strict=True)
    ]


def _is_elsewhere(file: ArchiveFile, batch: pa.Table) -> bool:
    """Return whether a row names another partition than its file."""
    found = pc.unique(batch.column("partition")).to_pylist()
    return bool(found != [file.partition])


def _compare(
    file: ArchiveFile, batch: pa.Table, rows: Sequence[TrailRow], findings: Findings
) -> None:
    """Make the columns again of the records, as the archiver does, and tell what differs."""
    home = Partition(file.kind, file.partition)
    times = batch.column("timestamp_ms").to_pylist()
    records = [
        Record(home, row.offset, row.key, row.value, [], at_ms)
        for row, at_ms in zip(rows, times, strict=True)
    ]
    again = table_of(file.kind, records)
    for name in SCHEMAS[file.kind].names:
        told, made = batch.column(name), again.column(name)
        if not told.equals(made):
            _tell(rows, name, (told.to_pylist(), made.to_pylist()), findings)


def _tell(
    rows: Sequence[TrailRow],
    name: str,
    columns: tuple[list[Any], list[Any]],
    findings: Findings,
) -> None:
    for row, told, made in zip(rows, *columns, strict=True):
        if told != made:
            said = f"column {name} has {told!r:.60}, its record {made!r:.60}"
            findings.add("false_column", row.where, said)


def _check_time(file: ArchiveFile, timestamp_ms: int, findings: Findings) -> None:
    try:
        at = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ArchiveError(f"{file.path}: timestamp_ms {timestamp_ms}: {error}") from error
    if (f"{at:%Y-%m-%d}", f"{at:%H}") != (file.date, file.hour):
        told = f"its folder is not that of its first record, {at:%Y-%m-%d %H} UTC"
        findings.add("false_column", file.path, told)
