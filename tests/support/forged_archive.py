"""The forgeries of an archive that were once unseen, and others by hand, on real files."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from forged_topics import IN_2096_MS

from shunter.archive.rows import SCHEMAS

Rows = list[dict[str, Any]]
# Takes a copy of the archive, and the archive of another installation.
ArchiveWay = Callable[[Path, Path], None]


def files(archive: Path, kind: str = "evidence") -> list[Path]:
    """Files of a kind in the order of partitions and offsets."""
    return sorted((archive / kind).rglob("*.parquet"), key=lambda path: path.name)


def rewrite(path: Path, change: Callable[[Rows], Rows], to: Path | None = None) -> None:
    """Write the rows of a file anew, perhaps under another name."""
    kind: Any = path.parts[-4]
    rows = change(pq.ParquetFile(path).read().to_pylist())
    path.unlink()
    to = to or path
    to.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, SCHEMAS[kind]), to)


def _in(archive: Path, column: str) -> tuple[Path, int]:
    """A file, and the place of a row in it that has a column."""
    for path in files(archive):
        for at, row in enumerate(pq.ParquetFile(path).read().to_pylist()):
            if row[column] is not None:
                return path, at
    raise LookupError(column)


def _column(name: str, value: object, within: tuple[str, ...] = ()) -> ArchiveWay:
    """Another value of a column, and perhaps of the member of the value that it is made of."""

    def forge(archive: Path, _other: Path) -> None:
        path, at = _in(archive, name)

        def change(rows: Rows) -> Rows:
            rows[at][name] = value
            if within:
                told = json.loads(rows[at]["value"])
                holder = told
                for step in within[:-1]:
                    holder = holder[step]
                holder[within[-1]] = value
                rows[at]["value"] = json.dumps(told, separators=(",", ":"), sort_keys=True)
            return rows

        rewrite(path, change)

    return forge


def _appended(archive: Path, _other: Path) -> None:
    path = files(archive)[-1]
    partition, begin, end = path.stem.split("-")

    def append(rows: Rows) -> Rows:
        rows.sort(key=lambda row: row["offset"])
        last = rows[-1]
        told = json.loads(last["value"]) | {"request_id": "r-0"}
        forged = last | {
            "offset": last["offset"] + 1,
            "key": b"r-0",
            "request_id": "r-0",
            "value": json.dumps(told, separators=(",", ":"), sort_keys=True),
        }
        return [*rows, forged]

    rewrite(path, append, path.with_name(f"{partition}-{begin}-{int(end) + 1:020d}.parquet"))


def _half_with_a_time_of_2096(archive: Path, _other: Path) -> None:
    found = files(archive)
    for path in found[: len(found) // 2]:
        path.unlink()
    rest = found[len(found) // 2]
    later = archive / "evidence" / "date=2096-01-01" / "hour=00" / rest.name
    rewrite(rest, lambda rows: [row | {"timestamp_ms": IN_2096_MS} for row in rows], later)


def _covered(archive: Path, other: Path) -> None:
    """A record more, and a file beside the archive that says how far its roots reach."""
    _appended(archive, other)
    (archive / "covered.json").write_text(json.dumps({str(n): 0 for n in range(4)}))


def _row_gone(archive: Path, _other: Path) -> None:
    path = max(files(archive), key=lambda each: pq.ParquetFile(each).metadata.num_rows)
    rewrite(path, lambda rows: [row for at, row in enumerate(rows) if at != 1])


def _rows_swapped(archive: Path, _other: Path) -> None:
    """The record of each row but the first and last moves on by one."""
    path = max(files(archive), key=lambda each: pq.ParquetFile(each).metadata.num_rows)

    def change(rows: Rows) -> Rows:
        rows.sort(key=lambda row: row["offset"])
        moved = [*rows[1:], rows[0]]
        standing = ("offset", "timestamp_ms")
        return [
            new | {name: old[name] for name in standing}
            for old, new in zip(rows, moved, strict=True)
        ]

    rewrite(path, change)


def _row_twice(archive: Path, _other: Path) -> None:
    path = files(archive)[0]
    rewrite(path, lambda rows: [*rows, rows[0]])


def _file_gone(kind: str) -> ArchiveWay:
    """A file less; of the keys the first, since others may have nothing but heartbeats."""

    def forge(archive: Path, _other: Path) -> None:
        found = files(archive, kind)
        found[0 if kind == "keys" else len(found) // 2].unlink()

    return forge


def _front_gone(archive: Path, _other: Path) -> None:
    """The first file of each partition, of evidence and of roots."""
    for kind in ("evidence", "roots"):
        seen = set()
        for path in files(archive, kind):
            partition = path.stem.split("-")[0]
            if partition not in seen:
                seen.add(partition)
                path.unlink()


def _renamed(archive: Path, _other: Path) -> None:
    path = files(archive)[-1]
    partition, begin, end = path.stem.split("-")
    path.rename(path.with_name(f"{int(partition) + 40}-{begin}-{end}.parquet"))


def _stray(archive: Path, _other: Path) -> None:
    """The rows of a file once more, where only queries look."""
    path = files(archive)[0]
    path.with_name("more.parquet").write_bytes(path.read_bytes())


def _dropped_column(archive: Path, _other: Path) -> None:
    path = files(archive)[0]
    pq.write_table(pq.ParquetFile(path).read().drop_columns(["cost_usd"]), path)


def _added_column(archive: Path, _other: Path) -> None:
    path = files(archive)[0]
    table = pq.ParquetFile(path).read()
    pq.write_table(table.append_column("billed_usd", pa.array([1.0] * table.num_rows)), path)


def _bit(archive: Path, _other: Path) -> None:
    path = files(archive)[0]
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 3] ^= 1
    path.write_bytes(raw)


def _of_another(archive: Path, other: Path) -> None:
    """Evidence, roots and keys of another installation, on partitions that were free."""
    for kind in ("evidence", "roots", "keys"):
        for path in files(other, kind):
            partition, begin, end = path.stem.split("-")
            free = int(partition) + 40
            to = archive / path.relative_to(other).with_name(f"{free}-{begin}-{end}.parquet")
            to.parent.mkdir(parents=True, exist_ok=True)
            table = pq.ParquetFile(path).read()
            at = table.column_names.index("partition")
            homes = pa.array([free] * table.num_rows, pa.int32())
            pq.write_table(table.set_column(at, "partition", homes), to)


def archive_ways() -> Iterator[tuple[str, ArchiveWay]]:
    """Every forgery by its name."""
    for column, value in {
        "cost_usd": 0.0,
        "tenant": "somebody-else",
        "region": "eu-north",
        "pool": "elsewhere-eu",
        "request_id": "r-0",
    }.items():
        yield f"column {column}", _column(column, value)
    yield "column and record: cost_usd", _column("cost_usd", 0.0, ("got", "cost_usd"))
    yield "column and record: tenant", _column("tenant", "somebody-else", ("tenant",))
    yield "a record appended to the end of a partition", _appended
    yield "the same, with a covered.json", _covered
    yield "half of the files gone, one first offset and time of 2096", _half_with_a_time_of_2096
    yield "a row dropped", _row_gone
    yield "rows in another order", _rows_swapped
    yield "a row twice", _row_twice
    for kind in ("evidence", "roots", "keys"):
        yield f"a file of {kind} gone", _file_gone(kind)
    yield "the first file of each partition gone", _front_gone
    yield "a file renamed to another partition", _renamed
    yield "a file that no archiver has named", _stray
    yield "a column dropped", _dropped_column
    yield "a column added", _added_column
    yield "one bit of a file", _bit
    yield "files of another installation", _of_another
