"""Records as rows: the columns for queries, and the record as it was written."""

from collections.abc import Sequence
from typing import Any

import msgspec
import pyarrow as pa

from shunter.logs.reading import Kind
from streams.engine.log import Record
from topics.records.decision_reading import with_names

_STANDING = [
    ("partition", pa.int32()),
    ("offset", pa.int64()),
    ("timestamp_ms", pa.int64()),
    ("key", pa.binary()),
    # Text for plain tools; bytes that are not UTF-8 are no evidence, and go to `raw` instead.
    ("value", pa.string()),
    ("raw", pa.binary()),
]
_EVIDENCE = [
    ("request_id", pa.string()),
    ("step", pa.string()),
    ("at", pa.float64()),
    ("writer", pa.string()),
    ("tenant", pa.string()),
    ("task", pa.string()),
    ("model", pa.string()),
    ("attempt", pa.int32()),
    ("policy_version", pa.string()),
    ("fleet_version", pa.string()),
    ("reason", pa.string()),
    ("pool", pa.string()),
    ("device", pa.string()),
    ("model_variant", pa.string()),
    ("precision", pa.string()),
    ("region", pa.string()),
    ("path", pa.string()),
    ("batch_id", pa.string()),
    ("input_tokens", pa.int64()),
    ("output_tokens", pa.int64()),
    ("promised_cost_usd", pa.float64()),
    ("promised_finish_s", pa.float64()),
    ("cost_usd", pa.float64()),
    ("ttft_s", pa.float64()),
    ("finish_s", pa.float64()),
]
_ROOTS = [
    ("chain", pa.string()),
    ("sequence", pa.int64()),
    ("at", pa.float64()),
    ("writer", pa.string()),
    ("signing_key", pa.string()),
    ("count", pa.int64()),
]
SCHEMAS: dict[Kind, pa.Schema] = {
    "evidence": pa.schema([*_EVIDENCE, *_STANDING]),
    "roots": pa.schema([*_ROOTS, *_STANDING]),
    "keys": pa.schema([("name", pa.string()), *_STANDING]),
}
# The member of evidence that holds each nested column.
_WITHIN = {
    "placement": {
        name: name
        for name in ("pool", "device", "model_variant", "precision", "region", "path", "batch_id")
    },
    "usage": {"input_tokens": "input_tokens", "output_tokens": "output_tokens"},
    "promised": {"promised_cost_usd": "cost_usd", "promised_finish_s": "finish_s"},
    "got": {"cost_usd": "cost_usd", "ttft_s": "ttft_s", "finish_s": "finish_s"},
}
_TYPES: dict[Any, type | tuple[type, ...]] = {
    pa.string(): str,
    pa.float64(): (int, float),
    pa.int32(): int,
    pa.int64(): int,
}


def table_of(kind: Kind, records: Sequence[Record]) -> pa.Table:
    """Return records of one topic as a table; an unreadable one has only the raw columns."""
    schema = SCHEMAS[kind]
    rows = [_columns(kind, record, schema) | _standing(record) for record in records]
    return pa.Table.from_pylist(rows, schema)


def _standing(record: Record) -> dict[str, Any]:
    try:
        value, raw = (None if record.value is None else record.value.decode()), None
    except UnicodeDecodeError:
        value, raw = None, record.value
    return {
        "partition": record.partition.number,
        "offset": record.offset,
        "timestamp_ms": record.timestamp_ms,
        "key": record.key,
        "value": value,
        "raw": raw,
    }


def _columns(kind: Kind, record: Record, schema: pa.Schema) -> dict[str, Any]:
    if kind == "keys":
        return {"name": (record.key or b"").decode("utf-8", "replace")}
    try:
        value = msgspec.json.decode(record.value or b"")
    except (msgspec.MsgspecError, RecursionError):
        return {}
    if not isinstance(value, dict):
        return {}
    if kind == "roots":
        value = value.get("statement")
        found = dict(value) if isinstance(value, dict) else {}
        found["signing_key"] = found.pop("key", None)
    else:
        try:
            value = with_names(value)
        except ValueError:
            return {}
        # What a first attempt leaves out.
        found = {"attempt": 1} | value
        for member, columns in _WITHIN.items():
            inner = value.get(member)
            if isinstance(inner, dict):
                found |= {column: inner.get(name) for column, name in columns.items()}
    own = {f.name: f.type for f in schema} if found else {}
    standing = {name for name, _ in _STANDING}
    return {
        name: found.get(name)
        for name, kind_of in own.items()
        if name not in standing and isinstance(found.get(name), _TYPES[kind_of])
    }
