"""Codec: bytes to records and back.

Records from outside are untrusted: size, nesting and duplicate keys are checked before a value is
used.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping
from functools import cache
from typing import Any, TypeVar

import msgspec
import orjson
from pydantic import TypeAdapter, ValidationError

from topics.wire.errors import BadRecordError

T = TypeVar("T")

# orjson reads 1,024 levels but writes only 254, and what is read here is written again later.
JSON_DEPTH_MAX = 254
# Of a header, which only Shunter writes.
SHOWN_CHARACTERS_MAX = 40
# orjson writes long text in a tenth of msgspec's time, but takes 250 bytes for each value of a list
# before it writes the first. So it writes what is long and has few values for its length; of more,
# to count them takes longer than is gained.
LONG_BYTES = 16 * 1024
BYTES_PER_VALUE_MIN = 1024
# How pydantic names a field that a record has not.
_UNKNOWN_FIELD = frozenset({"extra_forbidden", "unexpected_keyword_argument"})
_WRITER = msgspec.json.Encoder()


def encode(record: object) -> bytes:
    """Return ``record`` (a dataclass, dict or list) as UTF-8 JSON."""
    return orjson.dumps(record)


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def decode(kind: type[T], value: bytes) -> T:
    """Return ``value`` as a validated ``kind``.

    Raises:
        BadRecordError: not JSON, or not a ``kind``.
    """
    try:
        record: T = _adapter(kind).validate_python(orjson.loads(value))  # type: ignore[arg-type]
    except orjson.JSONDecodeError as error:
        raise BadRecordError("decode", "not_json", f"not JSON: {error}") from error
    except ValidationError as error:
        raise BadRecordError("validate", "invalid_record", describe(error, kind)) from error
    return record


def describe(error: ValidationError, kind: Any = None) -> str:
    """Return the first problems of a validation as ``field: what is wrong (its type)``.

    Payloads may be confidential, and this ends up in evidence, logs and headers. So it has no
    value, and no name but those of the fields of ``kind``, if it is given.
    """
    schema = {} if kind is None else _schema(kind)
    names = _names_in(schema)
    parts = []
    for problem in error.errors(include_url=False)[:5]:
        place, told = problem["loc"], problem["msg"]
        if problem["type"] in _UNKNOWN_FIELD:
            place = place[:-1]
            told = f"it has a field that is none of {', '.join(_fields_at(schema, place))}"
        elif problem["type"] != "missing":
            told += f" (got {kind_of(problem['input'])})"
        field = ".".join(
            str(part) if isinstance(part, int) or part in names else "?" for part in place
        )
        parts.append(f"{field or 'record'}: {told}")
    return "; ".join(parts)


def kind_of(value: object) -> str:
    """Return the kind of a value of a payload, for a message: never the value."""
    return f"a text of {len(value)}" if isinstance(value, str) else type(value).__name__


@cache
def _schema(kind: Any) -> dict[str, Any]:
    return _adapter(kind).json_schema()


def _names_in(schema: Mapping[str, Any]) -> set[str]:
    """Return the names of all fields, at any depth."""
    kinds = [schema, *schema.get("$defs", {}).values()]
    return {name for each in kinds for name in each.get("properties", ())}


def _fields_at(schema: Mapping[str, Any], place: tuple[int | str, ...]) -> list[str]:
    """Return the names of the fields of the object at a place."""
    found: Mapping[str, Any] = schema
    for part in place:
        found = found.get("properties", {}).get(part, {})
        found = schema.get("$defs", {}).get(found.get("$ref", "").rpartition("/")[2], found)
    return sorted(found.get("properties", ()))


def cut(text: str) -> str:
    """Return text cut short enough for a message."""
    return text if len(text) <= SHOWN_CHARACTERS_MAX else f"{text[: SHOWN_CHARACTERS_MAX - 3]}..."


def decode_json_object(value: bytes) -> dict[str, Any]:
    """Return untrusted bytes as a JSON object.

    Raises:
        BadRecordError: not UTF-8 JSON, not an object, or nested too deep.
    """
    parsed = _parsed_object(value)
    if _may_be_deep(value):
        _check_depth(parsed)
    return parsed


def decode_unique_json_object(value: bytes, names: Collection[str] = frozenset()) -> dict[str, Any]:
    """Return untrusted bytes as a JSON object that has no duplicate key at any depth.

    ``names`` are those that an error may tell.

    Decoding and encoding removes duplicate keys. So bytes that this round trip reproduces, as those
    of most clients, need no further check: 1 us for 1 KB and 20 us for 400 KB of text, instead of
    4 and 150 (`python -m benchmarks.budget`).

    Raises:
        BadRecordError: as ``decode_json_object``, or a key is duplicate.
    """
    parsed = decode_json_object(value)
    few = len(value) // BYTES_PER_VALUE_MIN
    is_long_text = len(value) >= LONG_BYTES and _has_few_values(parsed, few)
    written = orjson.dumps(parsed) if is_long_text else _WRITER.encode(parsed)
    if written != value:
        _check_unique_keys(value, names)
    return parsed


def _has_few_values(parsed: dict[str, Any], values_max: int) -> bool:
    left: list[Any] = [parsed]
    for _ in range(values_max):
        if not left:
            return True
        each = left.pop()
        if type(each) is dict:
            left += each.values()
        elif type(each) is list:
            left += each
        if len(left) > values_max:
            return False
    return not left


def _parsed_object(value: bytes) -> dict[str, Any]:
    try:
        parsed = orjson.loads(value)
    except orjson.JSONDecodeError as error:
        raise BadRecordError("decode", "not_json", f"the value is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        kind = type(parsed).__name__
        raise BadRecordError(
            "decode", "not_an_object", f"the value is a JSON {kind}, not an object"
        )
    return parsed


def _may_be_deep(value: bytes) -> bool:
    """Return True if there are enough brackets for too deep a nesting.

    Finding them one by one takes 30 us for 400 KB of text; counting them takes 220.
    """
    left = JSON_DEPTH_MAX
    for bracket in (b"[", b"{"):
        at = value.find(bracket)
        while at >= 0:
            left -= 1
            if left < 0:
                return True
            at = value.find(bracket, at + 1)
    return False


def _check_depth(parsed: dict[str, Any]) -> None:
    try:
        orjson.dumps(parsed)
    except orjson.JSONEncodeError as error:
        raise BadRecordError(
            "decode", "too_deep", f"the value nests deeper than {JSON_DEPTH_MAX} levels"
        ) from error


def _check_unique_keys(value: bytes, names: Collection[str]) -> None:
    """Refuse a JSON object that has a duplicate key, with the slower parser."""

    def pairs_to_dict(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        by_name = dict(pairs)
        if len(by_name) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            twice = next(name for name, count in counts.items() if count > 1)
            told = f"the field {twice!r} stands twice" if twice in names else "a field stands twice"
            raise BadRecordError("decode", "duplicate_field", told)
        return by_name

    json.loads(value, object_pairs_hook=pairs_to_dict)
