"""Canonical JSON (RFC 8785): one sequence of bytes for one value, whoever writes it.

Evidence is hashed and signed as the bytes that it is written in, so these must be canonical. The
reference implementation takes 0.4 ms for a decision of nine candidates, more than the decision
itself; msgspec sorts the names in 13 us, and differs from the RFC in three forms of numbers only,
which are mended here. What looks like anything else goes to the reference implementation
(one core, ``python benchmarks/evidence_cost.py``).
"""

import json
import re
from typing import Any

import msgspec
import rfc8785

_ENCODER = msgspec.json.Encoder(order="sorted")
# RFC 8785 writes numbers as ECMAScript does: 1, 0.000001 and 1e+21 where msgspec has 1.0, 1e-6
# and 1e21. A number is a member's value where `:` and a name's closing quote stand before it, and
# a closing quote follows a letter here: an opening one never does, and one inside a string has a
# backslash before it. The look-behind wants a fixed width, so there is one for each.
_WHOLE = re.compile(
    rb"\.0(?=[,}])(?:"
    + b"|".join(b'(?<=\\w":' + b"\\d" * digits + b"\\.0)" for digits in range(1, 16))
    + rb")"
)
_SMALL = re.compile(rb'(?<=\w":)(-?)(\d)(?:\.(\d+))?e-6(?=[,}])')
# What is left of numbers, and strings that look like one. Each begins with a literal, which makes
# the three searches four times as fast as one.
_ODD = tuple(
    re.compile(form + rb"(?:[,}\]]|\Z)") for form in (rb"\.0", rb"e(?:-6|\d{1,3})", rb"-0")
)
# Names are sorted by UTF-16 there and by UTF-8 here, which differ from U+E000 on.
_FAR = re.compile(rb"[\xee-\xf4]")
# Whole numbers of a length that a double may not hold, and strings that look like one.
_LONG = re.compile(rb"(?:[:,\[]|\A)-?\d{16}")
# The largest integer that each reader of JSON can hold.
_INTEGER_MAX = 2**53 - 1


def canonical(record: object) -> bytes:
    """Return a record of ours (a dataclass, dict or list) as canonical JSON.

    Its integers are below 2**53; for others there is ``canonical_json``.

    Raises:
        ValueError: a number is infinite, or a string is no Unicode.
    """
    try:
        raw = _WHOLE.sub(b"", _ENCODER.encode(record))
    except UnicodeEncodeError as error:
        raise ValueError(f"no Unicode: {error.reason}") from error
    if _is_odd(raw):
        raw = _SMALL.sub(_plain, raw)
        if _is_odd(raw):
            return _reference(json.loads(raw))
    if not raw.isascii() and _FAR.search(raw):
        return _reference(json.loads(raw))
    return raw


def canonical_json(value: Any) -> bytes:
    """Return parsed JSON of any origin as canonical JSON.

    Integers beyond 2**53 become the nearest double, as RFC 8785 has it.

    Raises:
        ValueError: there is no such form: a number is out of range, a string is no Unicode, or it
            is nested too deep.
    """
    try:
        raw = canonical(value)
        return _reference(value) if _LONG.search(raw) else raw
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def is_canonical(raw: bytes) -> bool:
    """Tell whether these bytes are the canonical form of the JSON that they are."""
    try:
        return _reference(json.loads(raw)) == raw
    except (ValueError, RecursionError):
        return False


def _is_odd(raw: bytes) -> bool:
    return any(form.search(raw) for form in _ODD)


def _plain(match: "re.Match[bytes]") -> bytes:
    sign, first, rest = match.groups(default=b"")
    return sign + b"0.00000" + first + rest


def _reference(value: Any) -> bytes:
    try:
        return rfc8785.dumps(_doubles(value))
    except (rfc8785.CanonicalizationError, OverflowError, UnicodeEncodeError) as error:
        raise ValueError(f"no canonical JSON: {error}") from error


def _doubles(value: Any) -> Any:
    """Return the value with integers that no double holds replaced by the nearest."""
    if isinstance(value, dict):
        return {name: _doubles(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_doubles(each) for each in value]
    if isinstance(value, int) and abs(value) > _INTEGER_MAX:
        return float(value)
    return value
