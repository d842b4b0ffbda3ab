"""The parts of a request: one digest over all of it, of which each part can be shown alone.

A part is a member of the request as the client sent it; of ``constraints``, ``slo`` and ``hints``
each member is one. Its leaf is a hash, blinded by what is made of all parts, so that the leaves of
the others tell nothing of them to somebody who doesn't have the request. The digest is keyed
(``topics.signing.salts``); parts and leaves need no key, so that a client makes them from its own
copy. The format is in docs/evidence.md.
"""

import base64
from collections.abc import Mapping, Sequence
from hashlib import sha256, shake_256
from typing import Any, NamedTuple

import orjson

from topics.signing.salts import Key, mac
from topics.wire.canonical_json import canonical_json

# Whole groups of base64, and more than the half of an HMAC that RFC 2104 asks for.
DIGEST_BYTES = 18
BLIND_BYTES = 16
# Whole numbers below it are written with all their digits.
_WHOLE_MAX = 2.0**53
_STRINGS = frozenset({str})
# Their members are what a client may want to show one by one.
OPENED = frozenset({"constraints", "slo", "hints"})


class Part(NamedTuple):
    """A member of a request, and what blinds it. ``pointer`` is a JSON pointer (RFC 6901)."""

    pointer: str
    value: Any
    blind: bytes
    leaf: bytes


def parts_of(request: Mapping[str, Any]) -> list[Part]:
    """Return the parts of a request, parsed JSON, in the order of their pointers.

    Raises:
        ValueError: a value has no canonical form.
    """
    values = _values(request)
    pointers = sorted(values)
    hashes = [part_hash(pointer, values[pointer]) for pointer in pointers]
    blinds = _blinds(hashes)
    return [
        Part(pointer, values[pointer], blind, leaf_of(blind, hashed))
        for pointer, blind, hashed in zip(pointers, blinds, hashes, strict=True)
    ]


def part_hash(pointer: str, value: Any) -> bytes:
    """Return the hash of a part before it is blinded.

    Raises:
        ValueError: it has no canonical form.
    """
    return sha256(_text(pointer, value)).digest()


def leaf_of(blind: bytes, hashed: bytes) -> bytes:
    """Return the leaf of a part."""
    return sha256(blind + hashed).digest()


def whole_digest(key: Key, leaves: Sequence[bytes]) -> str:
    """Return the keyed digest over the leaves of a request, in base64."""
    return base64.b64encode(mac(key, b"".join(leaves))[:DIGEST_BYTES]).decode()


def request_digests(key: Key, request: Mapping[str, Any]) -> tuple[str, str] | None:
    """Return the digest of a request's body, in hexadecimal, and that of all of it, in base64.

    None if the request has no canonical form. The same as of ``parts_of``, in a third of the time:
    the body is written once for both, and no part is kept (`python benchmarks/evidence.py write`).
    """
    values = _values(request)
    try:
        body = canonical_json(values.pop("/body", None))
        texts = [(pointer, _text(pointer, value)) for pointer, value in values.items()]
    except (ValueError, RecursionError):
        return None
    texts.append(("/body", b'["/body",' + body + b"]"))
    texts.sort()
    hashes = [sha256(text).digest() for _, text in texts]
    blinds = _blinds(hashes)
    leaves = [sha256(b + h).digest() for b, h in zip(blinds, hashes, strict=True)]
    return mac(key, body).hex(), whole_digest(key, leaves)


def _values(request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the value of each part by its pointer."""
    values: dict[str, Any] = {}
    for name, value in request.items():
        if name in OPENED and type(value) is dict and value:
            for inner, each in value.items():
                pointer = inner if inner.isidentifier() else _escaped(inner)
                values[f"/{name}/{pointer}"] = each
        else:
            values["/" + (name if name.isidentifier() else _escaped(name))] = value
    return values


def _text(pointer: str, value: Any) -> bytes:
    """Return a part as canonical JSON; most are strings, lists of some, or whole numbers."""
    kind = type(value)
    if kind is float and -_WHOLE_MAX < value < _WHOLE_MAX and value == (whole := int(value)):
        return orjson.dumps([pointer, whole])
    if kind is str or (kind is list and _STRINGS.issuperset(map(type, value))):
        try:
            return orjson.dumps([pointer, value])
        except orjson.JSONEncodeError:
            pass
    return canonical_json([pointer, value])


def _blinds(hashes: Sequence[bytes]) -> list[bytes]:
    """Return what blinds each part: a stream that only who has all parts can make."""
    drawn = shake_256(b"".join(hashes)).digest(BLIND_BYTES * len(hashes))
    return [drawn[at : at + BLIND_BYTES] for at in range(0, len(drawn), BLIND_BYTES)]


def _escaped(name: str) -> str:
    return name.replace("~", "~0").replace("/", "~1")
