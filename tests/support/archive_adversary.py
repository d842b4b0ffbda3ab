"""Forgeries of an archive made at random: of its values, rows, columns, files and their names."""

import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from adversary import Forgery
from audit_cases import Archived, Trail

from shunter.archive.rows import SCHEMAS


class ArchiveForger:
    """An archive of the trail, copied and changed for each seed."""

    def __init__(self, whole: Path) -> None:
        self.whole = whole

    @classmethod
    async def make(cls, directory: Path, trail: Trail) -> "ArchiveForger":
        """Archive a trail, in files of three records."""
        await Archived(directory, trail).fill()
        return cls(directory)

    def forge(self, to: Path, seed: int) -> Forgery:
        """Write a changed copy."""
        rng = random.Random(seed)
        shutil.copytree(self.whole, to)
        path = rng.choice(sorted(to.rglob("*.parquet")))
        ways = [_cell, _cell, _cell, _row, _row, _column, _file_gone, _renamed, _added, _bytes]
        way: Callable[..., Forgery] = rng.choice([*ways, _contents])
        found = way(path, rng)
        return Forgery(f"{path.relative_to(to)}: {found.told}", found.boundary)


def _kind(path: Path) -> Any:
    return path.parts[-4]


def _rewrite(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> None:
    pq.write_table(pa.Table.from_pylist(rows, schema or SCHEMAS[_kind(path)]), path)


def _cell(path: Path, rng: random.Random) -> Forgery:
    """One value of one row."""
    rows = pq.ParquetFile(path).read().to_pylist()
    at, name = rng.randrange(len(rows)), rng.choice(SCHEMAS[_kind(path)].names)
    old, kind = rows[at][name], SCHEMAS[_kind(path)].field(name).type
    if pa.types.is_string(kind):
        new: Any = "x" if old is None else rng.choice([None, old + "x", "x" + old[1:], ""])
    elif pa.types.is_binary(kind):
        new = b"x" if old is None else rng.choice([None, old + b"x"])
    else:
        new = 7 if old is None else old + rng.choice([1, -1, 1000, 10_000_000])
    if new == old:
        new = "y"
    rows[at][name] = new
    _rewrite(path, rows)
    boundary = None
    if name == "offset" or (
        name == "timestamp_ms" and (_kind(path) != "roots" or abs(new - old) <= 300_000)
    ):
        boundary = "offsets and Kafka's times are not signed"
    if name == "raw" and old is None and rows[at]["value"] is not None:
        boundary = None
    return Forgery(f"{name} of row {at}: {old!r:.40} to {new!r:.40}", boundary)


def _row(path: Path, rng: random.Random) -> Forgery:
    """A row dropped, put in twice, or with the record of another."""
    rows = pq.ParquetFile(path).read().to_pylist()
    at, how = rng.randrange(len(rows)), rng.choice(["dropped", "again", "exchanged"])
    if how == "dropped":
        gone = rows.pop(at)
        _rewrite(path, rows)
        # A file that was cut at its end keeps its name: that shows.
        is_inner = any(r["offset"] < gone["offset"] for r in rows) and any(
            r["offset"] > gone["offset"] for r in rows
        )
        is_heartbeat = (gone["key"] or b"").startswith(b"heads/") and is_inner
        return Forgery(f"row {at} {how}", "a heartbeat" if is_heartbeat else None)
    if how == "again":
        rows.append(rows[at] | {"offset": rows[at]["offset"] + rng.choice([0, 1])})
    else:
        other = rng.randrange(len(rows))
        if other == at:
            return _file_gone(path, rng)
        standing = ("offset", "timestamp_ms")
        one, two = rows[at], rows[other]
        rows[at] = two | {name: one[name] for name in standing}
        rows[other] = one | {name: two[name] for name in standing}
    _rewrite(path, rows)
    is_keys = _kind(path) == "keys" and how == "exchanged"
    boundary = "the order of the keys topic says nothing" if is_keys else None
    return Forgery(f"row {at} {how}", boundary)


def _column(path: Path, rng: random.Random) -> Forgery:
    """A column that is missing, new, or of another type."""
    table = pq.ParquetFile(path).read()
    name = rng.choice(table.column_names)
    at, how = table.column_names.index(name), rng.choice(["gone", "new", "retyped"])
    if how == "gone":
        table = table.drop_columns([name])
    elif how == "new":
        table = table.append_column("amount_usd", pa.array([1.0] * table.num_rows))
    else:
        table = table.set_column(at, name, pa.array(["1"] * table.num_rows))
        if pa.types.is_string(SCHEMAS[_kind(path)].field(name).type):
            return _file_gone(path, rng)
    pq.write_table(table, path)
    return Forgery(f"column {name} {how}")


def _file_gone(path: Path, rng: random.Random) -> Forgery:
    rows = pq.ParquetFile(path).read().to_pylist()
    path.unlink()
    only = all((row["key"] or b"").startswith(b"heads/") for row in rows)
    return Forgery("deleted", "heartbeats alone" if only else None)


def _renamed(path: Path, rng: random.Random) -> Forgery:
    """Other offsets, another partition or another hour in the name."""
    partition, first, end = path.stem.split("-")
    how = rng.choice(["partition", "first", "end", "hour"])
    if how == "partition":
        partition = str(int(partition) + 1)
    elif how == "first":
        first = f"{int(first) + 7:020d}"
    elif how == "end":
        end = f"{int(end) + 7:020d}"
    folder = path.parent.with_name("hour=23") if how == "hour" else path.parent
    folder.mkdir(exist_ok=True)
    path.rename(folder / f"{partition}-{first}-{end}.parquet")
    return Forgery(f"renamed: {how}")


def _added(path: Path, rng: random.Random) -> Forgery:
    """A copy beside what there is, as queries find it, under the name of no archiver."""
    folder = path.parents[rng.randrange(3)] / rng.choice(["", "more"])
    folder.mkdir(exist_ok=True)
    name = rng.choice(["more.parquet", f".{path.name}", f"{path.name}.parquet", "0-1-2.parquet"])
    shutil.copyfile(path, folder / name)
    return Forgery(f"copied to {folder.name}/{name}")


def _bytes(path: Path, rng: random.Random) -> Forgery:
    """A byte of the file, or its end."""
    raw = bytearray(path.read_bytes())
    before = pq.ParquetFile(path).read().to_pylist()
    if rng.random() < 0.3:
        del raw[rng.randrange(len(raw)) :]
    else:
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    path.write_bytes(raw)
    try:
        is_same = pq.ParquetFile(path).read().to_pylist() == before
    except (OSError, ValueError, pa.ArrowException):
        is_same = False
    return Forgery("bytes", "bytes in which no value stands" if is_same else None)


def _contents(path: Path, rng: random.Random) -> Forgery:
    """The contents of another file, of the same kind or another."""
    others = [each for each in sorted(path.parents[3].rglob("*.parquet")) if each != path]
    other = rng.choice(others)
    shutil.copyfile(other, path)
    return Forgery(f"contents of {other.name}")
