"""Columns of an archive, held against the raw record that they were made of.

Queries read the columns, signatures are over the raw record: each column is made again and
compared, and so is what the name of a file says.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from shunter.archive.layout import ArchiveError, ArchiveFile
from shunter.archive.rows import SCHEMAS, table_of, value_of
from shunter.audit.findings import Findings
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


def checked_batches(
    file: ArchiveFile, table: pa.Table, findings: Findings
) -> Iterator[dict[str, Any]]:
    """Yield the rows of a file that ``check_file`` has checked, each compared with its record."""
    schema = SCHEMAS[file.kind]
    home = Partition(file.kind, file.partition)
    standing = ["partition", "offset", "timestamp_ms", "key", "value", "raw"]
    for start in range(0, table.num_rows, BATCH_ROWS):
        batch = table.slice(start, BATCH_ROWS)
        rows = batch.select(standing).to_pylist()
        records = [
            Record(home, row["offset"], row["key"], value_of(row), [], row["timestamp_ms"])
            for row in rows
        ]
        again = table_of(file.kind, records)
        for name in schema.names:
            told, made = batch.column(name), again.column(name)
            if not told.equals(made):
                _tell(file, rows, name, (told.to_pylist(), made.to_pylist()), findings)
        yield from rows


def _tell(
    file: ArchiveFile,
    rows: list[dict[str, Any]],
    name: str,
    columns: tuple[list[Any], list[Any]],
    findings: Findings,
) -> None:
    for row, told, made in zip(rows, *columns, strict=True):
        if told != made:
            where = f"{file.kind}/{file.partition}@{row['offset']}"
            said = f"column {name} has {told!r:.60}, its record {made!r:.60}"
            findings.add("false_column", where, said)


def _check_time(file: ArchiveFile, timestamp_ms: int, findings: Findings) -> None:
    try:
        at = datetime.fromtimestamp(timestamp_ms / 1000, UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise ArchiveError(f"{file.path}: timestamp_ms {timestamp_ms}: {error}") from error
    if (f"{at:%Y-%m-%d}", f"{at:%H}") != (file.date, file.hour):
        told = f"its folder is not that of its first record, {at:%Y-%m-%d %H} UTC"
        findings.add("false_column", file.path, told)
