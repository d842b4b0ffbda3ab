"""Canonical JSON (RFC 8785): one sequence of bytes for each value.

Evidence is hashed and signed as the bytes that are written, so these must be canonical. The
reference implementation takes 0.4 ms for a decision of nine candidates with all its names, more
than the decision itself; rows need no mending (`topics.records.evidence_bytes`). msgspec sorts the
names in 13 us but writes some numbers differently, corrected here: 1.0, 1e-6, 1e16 and 1e21 are 1,
0.000001, 10000000000000000 and 1e+21 in ECMAScript. Names whose order differs in UTF-16 go to the
reference (`python benchmarks/evidence.py write`).
"""

import json
import re
from typing import Any

import msgspec
import orjson
import rfc8785

_ENCODER = msgspec.json.Encoder(order="sorted")
# Of a record of ours most odd numbers are whole, and members of an object: `:` and a name's closing
# quote stand before them, and a letter before that, as it never does before an opening quote; one
# inside a string has a backslash before it. The look-behind wants a fixed width, so there is one
# for each.
_WHOLE = re.compile(
    rb"\.0(?=[,}])(?:"
    + b"|".join(b'(?<=\\w":' + b"\\d" * digits + b"\\.0)" for digits in range(1, 16))
    + rb")"
)
# So is one with this exponent, as the cost of a small request has. Mended where the digits are
# found, an execution with two of them takes 14 us in place of 45 (docs/decisions/0027).
_SMALL = b"e-6"
_SMALL_MEMBER = re.compile(rb':(?<=\w":)(\d)(?:\.(\d+))?e-6(?=[,}])')
# Longer than the digits of a double, so that a text full of what is looked for takes no longer.
_DIGITS_MAX = 24
# What is left of odd numbers, and strings that look like one; minus zero is -0.0 here. Each begins
# with a literal, which makes two searches faster than one.
_ODD_WHOLE = re.compile(rb"\.0(?:[,}\]]|\Z)")
_ODD_EXPONENT = re.compile(rb"e(?:-6|\d{1,3})(?:[,}\]]|\Z)")
# Whole numbers of a length that a double may not hold, and strings that look like one.
_LONG = tuple(re.compile(before + rb"-?\d{16}") for before in (rb":", rb",", rb"\[", rb"\A"))
_STRINGS = re.compile(rb'("[^"\\]*(?:\\.[^"\\]*)*")')
_ODD_NUMBER = re.compile(
    rb"(?<![\d.])(-?)(?:(\d+)\.0(?!\d)|(\d)(?:\.(\d+))?e(-?\d+)|(\d{16,})(?![.\d])|0(?![.\d]))"
)
# Names are sorted by UTF-16 there and by UTF-8 here, which differ from U+E000 on.
_FAR = re.compile(rb"[\xee-\xf4]")
# The largest integer that each reader of JSON can hold.
_INTEGER_MAX = 2**53 - 1
# Of these msgspec and orjson write the digits as ECMAScript does.
_PLAIN_MIN, _PLAIN_MAX = 1e-5, 1e16
# Values among which odd ones are looked for one by one; of more, among their bytes. A chat of 1,000
# turns has 3,000. It also bounds what orjson takes before it writes a list, 250 bytes a value.
_LOOKED_AT_MAX = 4000
# From this exponent on ECMAScript writes one.
_EXPONENT_MIN = 21


def canonical(record: object) -> bytes:
    """Return a record of ours (a dataclass, dict or list) as canonical JSON.

    Its integers must be below 2**53; use ``canonical_json`` for others.

    Raises:
        ValueError: a string is not valid Unicode.
    """
    raw = _WHOLE.sub(b"", _by_msgspec(record))
    has_exponent = _ODD_EXPONENT.search(raw)
    if has_exponent:
        raw = _without_small(raw)
        has_exponent = _ODD_EXPONENT.search(raw)
    if has_exponent or _ODD_WHOLE.search(raw):
        raw = _mended(raw)
    return raw if raw.isascii() or not _has_far_name(raw) else _reference(json.loads(raw))


def canonical_json(value: Any) -> bytes:
    """Return parsed JSON of any origin as canonical JSON.

    Integers beyond 2**53 become the nearest double, as RFC 8785 has it.

    Raises:
        ValueError: a number is out of range, a string is not valid Unicode, or the value is
            nested too deep.
    """
    try:
        if _is_plain(value):
            return _by_orjson(value)
        raw = canonical(value)
        return _mended(raw) if any(form.search(raw) for form in _LONG) else raw
    except (RecursionError, OverflowError) as error:
        raise ValueError(f"no canonical JSON: {error}") from error


def _is_plain(value: Any) -> bool:
    """Return True if orjson writes parsed JSON in canonical form; False if in doubt.

    Checking the few values of a request's body takes 3 us; searching the bytes of one with 400 KB
    of text for odd numbers takes over 1,000. orjson then writes that text in 10 us, msgspec in 110
    (`python -m benchmarks.budget`).
    """
    left = [value]
    for _ in range(_LOOKED_AT_MAX):
        if not left:
            return True
        each = left.pop()
        kind = type(each)
        if kind is dict:
            if not all(map(str.isascii, each)):
                return False
            left += each.values()
        elif kind is list:
            left += each
        elif kind is float:
            if each.is_integer() or not _PLAIN_MIN <= abs(each) < _PLAIN_MAX:
                return False
        elif kind is int and not -_INTEGER_MAX <= each <= _INTEGER_MAX:
            return False
    return not left


def _by_msgspec(record: object) -> bytes:
    try:
        return _ENCODER.encode(record)
    except UnicodeEncodeError as error:
        raise ValueError(f"no Unicode: {error.reason}") from error


def _by_orjson(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:
        # Nested too deep for it, or no Unicode.
        return _by_msgspec(value)


def _without_small(raw: bytes) -> bytes:
    """Return JSON with members between 1e-6 and 1e-5 as ECMAScript writes them."""
    at, done, parts = raw.find(_SMALL), 0, []
    while at >= 0:
        end = at + len(_SMALL)
        start = raw.rfind(b":", max(done, at - _DIGITS_MAX), at)
        match = _SMALL_MEMBER.match(raw, start) if start >= 0 else None
        if match is not None and match.end() == end:
            parts += [raw[done : start + 1], b"0.00000", match[1], match[2] or b""]
            done = end
        at = raw.find(_SMALL, end)
    return b"".join([*parts, raw[done:]]) if parts else raw


def _has_far_name(raw: bytes) -> bool:
    if not _FAR.search(raw):
        return False
    parts = _STRINGS.split(raw)
    return any(
        parts[at + 1].startswith(b":") and _FAR.search(parts[at]) for at in range(1, len(parts), 2)
    )


def _mended(raw: bytes) -> bytes:
    """Return JSON with every number as ECMAScript writes it."""
    parts = _STRINGS.split(raw)
    for at in range(0, len(parts), 2):
        if len(parts[at]) > 1:
            parts[at] = _ODD_NUMBER.sub(_plain, parts[at])
    return b"".join(parts)


def _plain(match: "re.Match[bytes]") -> bytes:
    """Return a number of msgspec in ECMAScript's form; its digits are already the shortest."""
    sign, whole, first, rest, exponent, long = match.groups(default=b"")
    if long:
        return _double(match[0])
    if whole:
        return _double(match[0]) if len(whole) > 15 else sign * (whole != b"0") + whole
    if not first:
        return b"0"
    power = int(exponent)
    if power >= _EXPONENT_MIN:
        return match[0].replace(b"e", b"e+")
    if power >= 0:
        return sign + first + rest + b"0" * (power - len(rest))
    return sign + b"0.00000" + first + rest if power == -6 else match[0]


def _double(digits: bytes) -> bytes:
    digits = digits.removesuffix(b".0")
    number = int(digits)
    return digits if abs(number) <= _INTEGER_MAX else rfc8785.dumps(float(number))


def _reference(value: Any) -> bytes:
    try:
        return rfc8785.dumps(_doubles(value))
    except (rfc8785.CanonicalizationError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"no canonical JSON: {error}") from error


def _doubles(value: Any) -> Any:
    """Return the value with integers that no double holds replaced by the nearest double."""
    if isinstance(value, dict):
        return {name: _doubles(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_doubles(each) for each in value]
    if isinstance(value, int) and abs(value) > _INTEGER_MAX:
        return float(value)
    return value
