"""The formats of Shunter's trail, for the second verifier: standards, exports and archives.

Written from docs/evidence.md and RFCs 6962, 8032 and 8785; shares no code with Shunter.
"""

import base64
import hashlib
import json
import re
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


def number(x):
    """A double as ECMAScript writes it (RFC 8785, 3.2.2.3)."""
    if x == 0:
        return "0"
    mantissa, _, exponent = f"{abs(x)!r}".partition("e")
    whole, _, part = mantissa.partition(".")
    part = "" if part == "0" else part
    digits = (whole + part).lstrip("0")
    point = len(whole) + int(exponent or 0) - (len(whole + part) - len(digits))
    digits = digits.rstrip("0")
    k, n = len(digits), point
    if k <= n <= 21:
        text = digits + "0" * (n - k)
    elif 0 < n <= 21:
        text = digits[:n] + "." + digits[n:]
    elif -6 < n <= 0:
        text = "0." + "0" * -n + digits
    else:
        e = f"e{'+' if n > 0 else '-'}{abs(n - 1)}"
        text = digits[0] + ("." + digits[1:] if k > 1 else "") + e
    return ("-" if x < 0 else "") + text


def jcs(v):
    """Canonical JSON (RFC 8785)."""
    if isinstance(v, dict):
        names = sorted(v, key=lambda name: name.encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join(f"{jcs(name)}:{jcs(v[name])}" for name in names) + "}"
    if isinstance(v, list):
        return "[" + ",".join(map(jcs, v)) + "]"
    if isinstance(v, bool) or v is None:
        return {True: "true", False: "false", None: "null"}[v]
    if isinstance(v, int | float):
        return number(float(v)) if abs(v) >= 2**53 or isinstance(v, float) else str(v)
    return json.dumps(v, ensure_ascii=False)


def canonical(v):
    """Canonical JSON in bytes. Raises ValueError of what has none, however it is nested."""
    try:
        return jcs(v).encode()
    except (OverflowError, RecursionError) as error:
        raise ValueError(f"no canonical JSON: {error}") from error


def is_number(v):
    return isinstance(v, int | float) and not isinstance(v, bool)


def sha256(data):
    return hashlib.sha256(data).digest()


def tree(hashes):
    """The Merkle tree hash of RFC 6962 over leaf hashes, by its recursive definition."""
    if len(hashes) == 1:
        return hashes[0]
    k = 1 << (len(hashes) - 1).bit_length() - 1
    return sha256(b"\x01" + tree(hashes[:k]) + tree(hashes[k:]))


def raw_of(text):
    """The bytes of base64 that is spelled as an encoder spells it."""
    raw = base64.b64decode(text, validate=True)
    if base64.b64encode(raw).decode() != text:
        raise ValueError("another spelling of base64")
    return raw


def signed(key, purpose, statement, signature):
    try:
        message = f"shunter/{purpose}\0".encode() + canonical(statement)
        key.verify(raw_of(signature), message)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def key_of(text, name):
    """The public key in base64, if it has this name."""
    try:
        raw = raw_of(text)
        return Ed25519PublicKey.from_public_bytes(raw) if sha256(raw).hex()[:32] == name else None
    except (ValueError, TypeError):
        return None


def export_lines(directory, kind):
    """The lines of a file of an export. Raises ValueError of what is none."""
    lines, file = [], f"{kind}.jsonl"
    for number, text in enumerate(Path(directory, file).read_text().splitlines(), start=1):
        try:
            line = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{file}, line {number}: {error}") from error
        if not is_line(line):
            raise ValueError(f"{file}, line {number}: it is no line of an export")
        lines.append(line)
    return lines


def is_line(line):
    """Whether parsed JSON tells where a record stands, and since when."""
    kinds = {"partition": int, "offset": int, "at": int | float, "key": str | None}
    return isinstance(line, dict) and all(
        name in line and isinstance(line[name], kind) for name, kind in kinds.items()
    )


# Of files that are no Parquet, or have other columns or types.
UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError, NotImplementedError)
NAME = re.compile(r"date=(\d{4}-\d\d-\d\d)/hour=(\d\d)/(\d+)-(\d{20})-(\d{20})\.parquet$")
STANDING = ("partition", "offset", "timestamp_ms", "key", "value", "raw")
COLUMNS = {
    "keys": ["name"],
    "roots": ["chain", "sequence", "at", "writer", "signing_key", "count"],
    "evidence": [
        *("request_id", "step", "at", "writer", "tenant", "task", "model", "attempt"),
        *("policy_version", "fleet_version", "reason", "pool", "device", "model_variant"),
        *("precision", "region", "path", "batch_id", "input_tokens", "output_tokens"),
        *("promised_cost_usd", "promised_finish_s", "cost_usd", "ttft_s", "finish_s"),
    ],
}


def columns(kind, key, value):
    """Columns of a record as docs/evidence.md has them; other columns have null."""
    if kind == "keys":
        return {"name": key}
    if not isinstance(value, dict):
        return {}
    if kind == "roots":
        s = value["statement"]
        return {k: s[k] for k in COLUMNS[kind] if k in s} | {"signing_key": s["key"]}
    found = {"attempt": 1} | {k: value.get(k) for k in COLUMNS[kind][:11] if k in value}
    d = value.get("decision") or {}
    place, promised = value.get("placement"), value.get("promised")
    if d.get("promised"):
        row = d["candidates"][0]
        promised = {"cost_usd": row[3] / 1e9, "finish_s": row[5] / 1e6}
    if d.get("device") is not None:
        row = d["candidates"][0]
        pool, variant = d["pools"][row[0]], d["variants"][row[1]]
        place = {
            "pool": pool[0],
            "region": pool[1] if len(pool) > 1 else None,
            "model_variant": variant[0],
            "precision": variant[1],
            "path": ("direct", "batch", "hold")[row[2]],
            "device": d["device"],
            "batch_id": (value.get("batch") or {}).get("id"),
        }
    if place:
        found |= {k: place.get(k) for k in COLUMNS[kind][11:18]}
    for name, member in (("usage", value.get("usage")), ("got", value.get("got"))):
        if member:
            wanted = COLUMNS[kind][18:20] if name == "usage" else COLUMNS[kind][22:]
            found |= {k: member.get(k) for k in wanted}
    if promised:
        found |= {f"promised_{k}": promised.get(k) for k in ("cost_usd", "finish_s")}
    return found


def archive_reader(directory, problem):
    """Return what reads an archive's records, and tells of columns that are not theirs."""
    import pyarrow.parquet  # noqa: PLC0415  an export is read without it

    def read(kind):
        lines = []
        for path in sorted(Path(directory, kind).rglob("*.parquet")):
            where = path.relative_to(directory).as_posix()
            if not NAME.search(path.as_posix()):
                problem("stray_file", where, "no archiver names a file so")
                continue
            try:
                rows = pyarrow.parquet.ParquetFile(path).read().to_pylist()
                lines += file_lines(kind, path, where, rows, problem)
            except UNREADABLE as error:
                problem("unreadable", where, error)
        lines.sort(key=lambda line: (line["partition"], line["offset"]))
        places = [(line["partition"], line["offset"]) for line in lines]
        if len(set(places)) < len(places):
            problem("false_column", kind, "an offset stands there twice")
        return lines

    return read


def file_lines(kind, path, where, rows, problem):
    """The records of a file, which is held against its name and its records."""
    date, hour, partition, start, end = NAME.search(path.as_posix()).groups()
    rows.sort(key=lambda row: row["offset"])
    if not rows or (rows[0]["offset"], rows[-1]["offset"] + 1) != (int(start), int(end)):
        problem("false_column", where, "its name tells of other offsets")
    if rows:
        begun = datetime.fromtimestamp(rows[0]["timestamp_ms"] / 1000, UTC)
        if f"{begun:%Y-%m-%d %H}" != f"{date} {hour}":
            problem("false_column", where, "its folder tells of another hour")
    lines = [line_of(row) for row in rows]
    for row, line in zip(rows, lines, strict=True):
        if row["partition"] != int(partition):
            problem("false_column", where, f"offset {row['offset']}: partition")
        for name in differing(kind, row, line):
            problem("false_column", f"{where}@{row['offset']}", name)
    return lines


def differing(kind, row, line):
    """The columns of a row that its record doesn't have, or has otherwise."""
    try:
        made = columns(kind, line["key"], line.get("value"))
    except (KeyError, TypeError, IndexError, AttributeError):
        made = {}  # No evidence and no root, which is told of elsewhere.
    others = set(row) ^ {*COLUMNS[kind], *STANDING}
    if row.get("value") is not None and row.get("raw") is not None:
        others.add("raw")
    return sorted(others | {name for name in COLUMNS[kind] if row.get(name) != made.get(name)})


def line_of(row):
    key = None if row["key"] is None else row["key"].decode("utf-8", "backslashreplace")
    line = {"partition": row["partition"], "offset": row["offset"], "key": key}
    line["at"] = row["timestamp_ms"] / 1000
    if row["value"] is None and row["raw"] is not None:
        return line | {"raw": row["raw"]}
    if row["value"] is None:
        return line | {"value": None}  # A tombstone.
    try:
        return line | {"value": json.loads(row["value"])}
    except ValueError:
        return line | {"raw": row["value"]}
