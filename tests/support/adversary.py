"""Forgeries made at random: whatever can be done to a record, a topic or a file of the trail.

Not a list of known ways: a seed chooses where, and what is done there. ``Forgery.boundary`` says
why one can't be caught, where the model of docs/evidence.md has it so; all others must be.
"""

import base64
import json
import random
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from audit_cases import Archived, Office, Trail, make_trail
from stream_cases import START, make_key

from shunter.archive.rows import SCHEMAS
from streams.engine.log import Record
from topics import KeyEntry, Root, decode, encode
from topics.signing.introductions import introduce
from topics.signing.signed_root import sign

INSTALLATION, STRANGER = make_key(90), make_key(91)
TRUST = INSTALLATION.id
KINDS = ("evidence", "roots", "keys")


@dataclass
class Forgery:
    """What was done, in words; ``boundary`` is why it need not be caught."""

    told: str
    boundary: str | None = None


async def introduced_trail() -> Trail:
    """Return the trail of two keys that the installation key has introduced."""
    trail = await make_trail()
    for number in (1, 2):
        introduction = introduce(INSTALLATION, make_key(number).id, "router/*", 0.0)
        _publish(trail, KeyEntry(introduction=introduction))
    return trail


async def strange_trail() -> Trail:
    """Return what another installation has signed, on chains of the same name."""
    office = Office()
    await office.run(5, start=100, key=STRANGER)
    office.tell_heads()
    trail = office.trail()
    _publish(trail, KeyEntry(introduction=introduce(make_key(92), STRANGER.id, "*", 0.0)))
    return trail


def _publish(trail: Trail, entry: KeyEntry) -> None:
    name = (entry.name or "").encode()
    trail.keys.append(trail.keys[0]._replace(key=name, value=encode(entry)))


def forge(trail: Trail, strange: Trail, seed: int) -> Forgery:
    """Change a trail in place."""
    rng = random.Random(seed)
    way: Callable[..., Forgery] = rng.choice(
        [_field, _field, _field, _byte, _key, _drop, _cut, _cut, _repeat, _swap, _resign, _strange]
    )
    return way(trail, rng, strange)


def _field(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    value = json.loads(record.value or b"")
    told = _change(value, rng)
    return _put(trail, kind, at, json.dumps(value, separators=(",", ":")).encode(), told)


def _byte(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    raw = bytearray(record.value or b"")
    where = rng.randrange(len(raw))
    raw[where] ^= 1 << rng.randrange(8)
    return _put(trail, kind, at, bytes(raw), f"byte {where}")


def _put(trail: Trail, kind: str, at: int, value: bytes, told: str) -> Forgery:
    records = getattr(trail, kind)
    before, records[at] = records[at], records[at]._replace(value=value)
    is_same = kind == "keys" and _meaning(before.value) == _meaning(value)
    boundary = "a member of the keys topic that nobody reads, or that says nothing"
    return Forgery(f"{kind}[{at}]: {told}", boundary if is_same else None)


def _meaning(value: bytes | None) -> Any:
    """What is read of an entry of the keys topic."""
    try:
        told = json.loads(value or b"")
    except ValueError:
        return value
    if not isinstance(told, dict):
        return value
    read = {"published", "revocation", "heads", "introduction"}
    entry = {name: each for name, each in told.items() if name in read and each is not None}
    return {
        name: {k: v for k, v in each.items() if v is not None} if isinstance(each, dict) else each
        for name, each in entry.items()
    }


def _key(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    getattr(trail, kind)[at] = record._replace(key=(record.key or b"") + b"x")
    return Forgery(f"{kind}[{at}]: another key")


def _drop(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    del getattr(trail, kind)[at]
    return Forgery(f"{kind}[{at}] dropped", _is_heartbeat(record))


def _is_heartbeat(record: Record) -> str | None:
    is_one = (record.key or b"").startswith(b"heads/")
    return "a heartbeat: the head that the auditor has kept stands for it" if is_one else None


def _cut(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    """Roots from the front, the middle or the end, with all that they are over."""
    count = len(trail.roots)
    first = rng.choice([0, rng.randrange(count)])
    last = rng.randint(first + 1, count)
    gone = trail.roots[first:last]
    leaves = {leaf for r in gone for leaf in _leaves(decode(Root, r.value or b""))}
    del trail.roots[first:last]
    trail.evidence = [r for r in trail.evidence if _leaf(r) not in leaves]
    return Forgery(f"transactions {first} to {last} of {count} cut out")


def _repeat(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    to = rng.randint(0, len(getattr(trail, kind)))
    getattr(trail, kind).insert(to, record)
    boundary = "the keys topic says the same once or twice" if kind == "keys" else None
    return Forgery(f"{kind}[{at}] again at {to}", boundary)


def _swap(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    kind, at, record = _pick(trail, rng)
    records = getattr(trail, kind)
    beside = [i for i, r in enumerate(records) if r.partition == record.partition and i != at]
    if not beside:
        return _drop(trail, rng, _strange)
    other = rng.choice(beside)
    # Each place has its time, which the broker gave it.
    times = records[at].timestamp_ms, records[other].timestamp_ms
    records[at], records[other] = (
        records[other]._replace(timestamp_ms=times[0]),
        records[at]._replace(timestamp_ms=times[1]),
    )
    boundary = "the order of the keys topic says nothing" if kind == "keys" else None
    return Forgery(f"{kind}[{at}] and [{other}] swapped", boundary)


def _resign(trail: Trail, rng: random.Random, _strange: Trail) -> Forgery:
    """A root signed by a stranger, whose key may be published under the writer's name."""
    at = rng.randrange(len(trail.roots))
    root = decode(Root, trail.roots[at].value or b"")
    statement = replace(root.statement, key=STRANGER.id) if rng.random() < 0.8 else root.statement
    if rng.random() < 0.5:
        _publish(trail, KeyEntry(published=STRANGER.publish(statement.writer, START)))
    if rng.random() < 0.3:
        by = rng.choice([STRANGER, make_key(1)])
        _publish(trail, KeyEntry(introduction=introduce(by, STRANGER.id, "*", 0.0)))
    signature = sign(STRANGER.private, "root", statement)
    forged = replace(root, statement=statement, signature=signature)
    trail.roots[at] = trail.roots[at]._replace(value=encode(forged))
    return Forgery(f"roots[{at}] signed by a stranger")


def _strange(trail: Trail, rng: random.Random, strange: Trail) -> Forgery:
    """Records of another installation: evidence alone, with its roots, or with its keys too."""
    kinds = KINDS[: rng.randint(1, 3)]
    for kind in kinds:
        records = getattr(strange, kind)
        picked = records if len(kinds) > 1 else [rng.choice(records)]
        for record in picked:
            getattr(trail, kind).insert(rng.randint(0, len(getattr(trail, kind))), record)
    return Forgery(f"{', '.join(kinds)} of another installation")


def _pick(trail: Trail, rng: random.Random) -> tuple[str, int, Record]:
    kind = rng.choice(KINDS)
    at = rng.randrange(len(getattr(trail, kind)))
    return kind, at, getattr(trail, kind)[at]


def _change(value: Any, rng: random.Random) -> str:
    """Change something anywhere in parsed JSON, and say what."""
    places = list(_places(value, ()))
    path = rng.choice(places)
    holder = value
    for step in path[:-1]:
        holder = holder[step]
    last, how = path[-1], rng.choice(["alter", "alter", "alter", "drop", "add"])
    if how == "add" and isinstance(holder, dict):
        holder["unheard_of"] = 1
    elif how == "drop":
        del holder[last]
    else:
        holder[last] = _other(holder[last], rng)
    return f"{how} at {'.'.join(map(str, path))}"


def _places(value: Any, path: tuple[Any, ...]) -> Any:
    pairs = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for name, each in pairs:
        yield (*path, name)
        yield from _places(each, (*path, name))


def _other(value: Any, rng: random.Random) -> Any:
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + rng.choice([1, -1, 0.5, 1000])
    if isinstance(value, str) and value:
        at = rng.randrange(len(value))
        return value[:at] + rng.choice([c for c in "0a/=Z" if c != value[at]]) + value[at + 1 :]
    return rng.choice(["x", 1, {"x": 1}, [1]]) if value is None else None


def _leaves(root: Root) -> list[bytes]:
    raw = base64.b64decode(root.leaves)
    return [raw[at : at + 32] for at in range(0, len(raw), 32)]


def _leaf(record: Record) -> bytes:
    from topics.signing.merkle import leaf_hash

    return leaf_hash(record.value or b"")


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
        way: Callable[..., Forgery] = rng.choice(
            [_cell, _cell, _cell, _row, _row, _column, _file_gone, _renamed, _bytes, _contents]
        )
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
