"""Spans as OTLP bytes: an encoder for the fields of Shunter's spans, and no more.

Attributes are encoded where they are made (``streams/tracing/span_attributes.py``), since most of
them recur, and go into a span as they are. With the messages of the protocol's own library, against
which ``tests/unit/streams/test_otlp_encoding.py`` checks this, a span takes several times as long.

The encoder never fails on the values of a request or a model server: a number out of range is
clamped, a lone surrogate replaced.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from struct import Struct

from opentelemetry.util.types import AttributeValue

NS_PER_S = 1_000_000_000
# The number of encodings kept of each kind.
KEPT_MAX = 4096

# Field numbers and wire types of opentelemetry/proto: where attributes stand in what has some.
OF_RESOURCE = b"\x0a"
OF_SPAN = b"\x4a"
OF_EVENT = b"\x1a"
OF_LINK = b"\x22"

_INT_MAX = (1 << 63) - 1
# Flags of a span and of a link: has-is-remote without is-remote, as the parent is local.
_SPAN_FLAGS = b"\x85\x01\x00\x01\x00\x00"
_LINK_FLAGS = b"\x35\x00\x01\x00\x00"
_ERROR = 2

_last = [bytes([n]) for n in range(128)]
_more = [bytes([n | 128]) for n in range(128)]
_fixed64 = Struct("<Q").pack
real = Struct("<d").pack


def span(
    trace_id: int,
    span_id: int,
    parent_id: int,
    name: str,
    kind: int,
    times: tuple[float, float],
    attributes: bytes,
    events: Iterable[bytes] = (),
    links: Iterable[bytes] = (),
    error: str | None = None,
) -> bytes:
    """Return a span as a field of the spans of a scope.

    Args:
        trace_id: 128 bits.
        span_id: 64 bits.
        parent_id: 64 bits; 0 for none.
        name: of the span.
        kind: as OpenTelemetry's ``SpanKind`` numbers it, from 0 on.
        times: start and end, in epoch seconds.
        attributes: ``OF_SPAN``, as ``attributes_of`` returns them.
        events: as ``events`` yields them.
        links: as ``link`` returns each.
        error: the failure; None if there was none.
    """
    start_s, end_s = times
    body = b"".join(
        chain(
            (
                b"\x0a\x10",
                trace_id.to_bytes(16, "big"),
                b"\x12\x08",
                span_id.to_bytes(8, "big"),
                b"\x22\x08" + parent_id.to_bytes(8, "big") if parent_id else b"",
                _name(b"\x2a", name),
                b"\x30",
                _last[kind + 1],
                b"\x39",
                _fixed64(_ns(start_s)),
                b"\x41",
                _fixed64(_ns(max(start_s, end_s))),
                attributes,
            ),
            events,
            links,
            (_status(error), _SPAN_FLAGS),
        )
    )
    return _field(b"\x12", body)


def events(name: str, at: float, each: Iterable[bytes]) -> Iterator[bytes]:
    """Yield events of one name, at a time in epoch seconds, from the attributes of each."""
    head = b"\x09" + _fixed64(_ns(at)) + _name(b"\x12", name)
    room = len(head)
    for attributes in each:
        yield b"".join((b"\x5a", _varint(room + len(attributes)), head, attributes))


def link(trace_id: int, span_id: int, attributes: bytes) -> bytes:
    """Return a link to a span of another trace; its attributes are ``OF_LINK``."""
    ids = b"\x0a\x10" + trace_id.to_bytes(16, "big") + b"\x12\x08" + span_id.to_bytes(8, "big")
    return _field(b"\x6a", ids + attributes + _LINK_FLAGS)


def request(resource: Mapping[str, AttributeValue], spans: Sequence[bytes]) -> bytes:
    """Return a request to a collector: spans of one process, which share resource and scope."""
    scope = _field(b"\x0a", _text(b"\x0a", "shunter"))
    in_scope = len(scope) + sum(map(len, spans))
    head = _field(b"\x0a", attributes_of(OF_RESOURCE, resource)) + b"\x12" + _varint(in_scope)
    whole = _varint(len(head) + in_scope)
    # The spans are most of a megabyte: they are copied once.
    return b"".join((b"\x0a", whole, head, scope, *spans))


def attributes_of(where: bytes, attributes: Mapping[str, AttributeValue]) -> bytes:
    """Return attributes of a resource, a span, an event or a link, concatenated.

    They are text, numbers, booleans, or sequences of these.
    """
    return b"".join([attribute(where, name, value) for name, value in attributes.items()])


def attribute(where: bytes, name: str, value: AttributeValue) -> bytes:
    """Return one attribute."""
    if isinstance(value, float):
        return number_of(where, name) + real(value)
    return _field(where, _name(b"\x0a", name) + _field(b"\x12", _value(value)))


@lru_cache(KEPT_MAX)
def number_of(where: bytes, name: str) -> bytes:
    """Return an attribute up to its number, which ``real`` encodes."""
    return _field(where, _name(b"\x0a", name) + _field(b"\x12", _value(0.0)))[:-8]


def _value(value: object) -> bytes:
    if isinstance(value, str):
        return _text(b"\x0a", value)
    if isinstance(value, bool):
        return b"\x10\x01" if value else b"\x10\x00"
    if isinstance(value, int):
        # Two's complement, as the protocol has it.
        return b"\x18" + _varint(max(-_INT_MAX, min(value, _INT_MAX)) & 0xFFFF_FFFF_FFFF_FFFF)
    if isinstance(value, float):
        return b"\x21" + real(value)
    if isinstance(value, Sequence):
        return _field(b"\x2a", b"".join(_field(b"\x0a", _value(each)) for each in value))
    # A bug of ours. It shows as a name without a value, and ends no router.
    return b""


def _status(error: str | None) -> bytes:
    if error is None:
        return b"\x7a\x00"
    message = _text(b"\x12", error) if error else b""
    return _field(b"\x7a", message + b"\x18" + _last[_ERROR])


@lru_cache(KEPT_MAX)
def _name(tag: bytes, name: str) -> bytes:
    return _text(tag, name)


def _text(tag: bytes, text: str) -> bytes:
    return _field(tag, text.encode("utf-8", "replace"))


def _field(tag: bytes, body: bytes) -> bytes:
    return tag + _varint(len(body)) + body


def _varint(number: int) -> bytes:
    if number < 128:
        return _last[number]
    if number < 16384:
        return _more[number & 127] + _last[number >> 7]
    return _more[number & 127] + _varint(number >> 7)


def _ns(at: float) -> int:
    """Return a time in nanoseconds; an invalid one, or one before the epoch, is the epoch."""
    return int(at * NS_PER_S) if 0.0 < at < _INT_MAX / NS_PER_S else 0
