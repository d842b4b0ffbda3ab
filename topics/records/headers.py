"""Headers: carry what Shunter adds to a record, so that the payload stays untouched."""

import dataclasses
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Any, TypeVar

import msgspec

from topics.records.placement import Batch, Envelope, Placement
from topics.records.profile import Profile
from topics.wire.codec import cut, decode
from topics.wire.errors import BadRecordError

Headers = Sequence[tuple[str, bytes | None]]
T = TypeVar("T")

PREFIX = "shunter-"
PROFILE = "shunter-profile"
PLACEMENT = "shunter-placement"
PROMISED = "shunter-promised"
HELD_PROMISE = "shunter-held-promise"
HELD_AT = "shunter-held-at"
ORIGIN = "shunter-origin"
"""Of a request that was passed on to the accounts of its tenant, where and when it came."""
SETTLED = "shunter-settled"
KEY = "shunter-key"
KEY_PROOF = "shunter-key-proof"
RELEASED_AT = "shunter-released-at"
GROUP = "shunter-group"
REASON = "shunter-reason"
ANSWER = "shunter-answer"
"""Of a second run, what is compared of the first answer."""
LEFT_OUT = "shunter-left-out"
CRITICAL = "shunter-critical"
# A second run is for one variant alone, which versions before it would not know.
QUALITY_FIELD = b"profile.quality"
# Nor that nobody may pay more than was quoted.
QUOTE_FIELD = b"profile.quote"
# Nor that a limit of emissions holds.
GCO2_FIELD = b"profile.max_gco2"
# Nor that energy is counted, where it is kept for the request.
ENERGY_FIELD = b"profile.counts_energy"
# Nor that each of several answers counts against a limit.
ANSWERS_FIELD = b"profile.answers"
_ALONE = frozenset({QUOTE_FIELD, GCO2_FIELD, ENERGY_FIELD, ANSWERS_FIELD})
_KNOWN_FIELDS = _ALONE | {QUALITY_FIELD}
BATCH_ID = "shunter-batch-id"
BATCH_INDEX = "shunter-batch-index"
BATCH_SIZE = "shunter-batch-size"
BATCH_TRACEPARENT = "shunter-batch-traceparent"
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
CE_SPECVERSION = "ce_specversion"
CE_ID = "ce_id"

# What each stage reads of each request.
_DECODERS: dict[Any, msgspec.json.Decoder[Any]] = {
    kind: msgspec.json.Decoder(kind) for kind in (Profile, Placement, Envelope)
}
_ENCODE = msgspec.json.Encoder().encode


def _told(kind: type[T]) -> Callable[[T], bytes]:
    """Return what writes a record without the members that have their default values.

    A profile has 30 members, of which most requests have 18: 640 bytes are 400, in no more time.
    """
    members = dataclasses.fields(kind)  # type: ignore[arg-type]
    missing = dataclasses.MISSING
    columns: list[Any] = [
        (each.name, Any)
        if each.default is missing and each.default_factory is missing
        else (each.name, Any, msgspec.field(default=each.default))
        if each.default_factory is missing
        else (each.name, Any, msgspec.field(default_factory=each.default_factory))
        for each in members
    ]
    row = msgspec.defstruct(kind.__name__, columns, omit_defaults=True, gc=False)
    values = attrgetter(*(each.name for each in members))

    def written(record: T) -> bytes:
        return _ENCODE(row(*values(record)))

    return written


_OF_PROFILE, _OF_PLACEMENT, _OF_ENVELOPE = _told(Profile), _told(Placement), _told(Envelope)
# What is larger is no number to whoever reads it from JSON.
_INTEGER_MAX = 2**53
_CONNECT = "__connect.errors."
_TRACEPARENT = re.compile(
    rb"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}"
)


def find(headers: Headers, name: str) -> bytes | None:
    """Return the last value of a header, or None; a null value counts as missing."""
    for key, value in reversed(headers):
        if key == name:
            return value
    return None


def client_headers(
    headers: Headers, *, is_traced: bool | None = None
) -> list[tuple[str, bytes | None]]:
    """Return a record's headers without those that only Shunter may write.

    A client that could set ``shunter-placement`` could place its own request, so headers of the
    ingest topic with our prefix are dropped. A ``tracestate`` without a valid ``traceparent`` is
    dropped too: it belongs to another trace than the one that begins here. A caller that has read
    the ``traceparent`` passes its validity as ``is_traced``, and it is not read again.
    """
    own = [header for header in headers if not header[0].startswith(PREFIX)]
    if find(own, TRACESTATE) is None:
        return own
    if is_traced is None:
        is_traced = traceparent(own) is not None
    return own if is_traced else [header for header in own if header[0] != TRACESTATE]


def check_critical(headers: Headers) -> None:
    """Refuse a record with a field of a newer version that every reader must know.

    Unknown fields are ignored. If that would break a constraint or repeat an effect, the version
    that adds the field names it in this header. Of this version that are ``profile.quality``,
    ``profile.quote``, ``profile.max_gco2``, ``profile.counts_energy`` and ``profile.answers`` (of
    one with a limit on cost or emissions), of which a later one stands for those before it too.

    Raises:
        BadRecordError: the record has such a field.
    """
    named = find(headers, CRITICAL)
    if named is not None and named not in _KNOWN_FIELDS:
        raise BadRecordError(
            "validate",
            "newer_version",
            f"it has {cut(repr(named.decode('utf-8', 'replace')))}, which only a newer version of"
            " Shunter understands; let one read it",
        )


def carried(headers: Headers) -> dict[str, bytes]:
    """Return the headers that go with a request wherever it goes, once they are ours."""
    answer, named = find(headers, ANSWER), find(headers, CRITICAL)
    known = {CRITICAL: named} if named is not None and named in _ALONE else {}
    if answer is None:
        return known
    return {ANSWER: answer, CRITICAL: QUALITY_FIELD} | known


def held_promise(headers: Headers) -> dict[str, bytes]:
    """Return what a held request was promised, as the header that goes with it from then on."""
    promised = find(headers, PROMISED)
    return {} if promised is None else {HELD_PROMISE: promised}


def replaced(headers: Headers, new: Mapping[str, bytes]) -> list[tuple[str, bytes | None]]:
    """Return the headers with those in ``new`` replaced, never appended twice."""
    return [header for header in headers if header[0] not in new] + list(new.items())


def encoded(
    *,
    profile: Profile | None = None,
    placement: Placement | None = None,
    promised: Envelope | None = None,
    batch: Batch | None = None,
) -> dict[str, bytes]:
    """Return Shunter's knowledge of a request as headers."""
    headers = {}
    if profile is not None:
        headers[PROFILE] = _OF_PROFILE(profile)
    if placement is not None:
        headers[PLACEMENT] = _OF_PLACEMENT(placement)
    if promised is not None:
        headers[PROMISED] = _OF_ENVELOPE(promised)
    if batch is not None:
        headers[BATCH_ID] = batch.id.encode()
        headers[BATCH_INDEX] = str(batch.index).encode()
        headers[BATCH_SIZE] = str(batch.size).encode()
    return headers


def read_time(headers: Headers, name: str) -> float | None:
    """Return a header of epoch seconds; None where it is missing.

    Raises:
        BadRecordError: it is no finite number.
    """
    value = find(headers, name)
    if value is None:
        return None
    try:
        time = float(value)
    except ValueError:
        time = math.nan
    if not math.isfinite(time):
        raise BadRecordError("decode", "bad_header", f"header {name}: it is no time")
    return time


def read(headers: Headers, name: str, kind: type[T]) -> T:
    """Return a JSON header as a ``kind``.

    Raises:
        BadRecordError: the header is missing or invalid.
    """
    value = find(headers, name)
    if value is None:
        raise BadRecordError("decode", "missing_header", f"the header {name} is missing")
    try:
        return decoded(kind, value)
    except BadRecordError as error:
        raise BadRecordError(
            error.stage, "bad_header", f"header {name}: {error.message}"
        ) from error


def decoded(kind: type[T], value: bytes) -> T:
    """Return the value of a header as a ``kind``.

    A profile takes 2 us instead of 6; a takeover reads all of a hold of half a million.

    Raises:
        BadRecordError: it is invalid.
    """
    decoder = _DECODERS.get(kind)
    if decoder is not None:
        try:
            found: T = decoder.decode(value)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            # The other decoder accepts more, and its errors say what is wrong.
            pass
        else:
            return found
    return decode(kind, value)


def read_profile(headers: Headers) -> Profile:
    """Return the profile of a request as ``read`` does.

    Raises:
        BadRecordError: the header is missing or invalid, or the record is of a newer version.
    """
    check_critical(headers)
    return read(headers, PROFILE, Profile)


def read_batch(headers: Headers) -> Batch | None:
    """Return the batch of a record, or None."""
    batch_id = find(headers, BATCH_ID)
    if batch_id is None:
        return None
    try:
        index, size = (int(find(headers, name) or b"") for name in (BATCH_INDEX, BATCH_SIZE))
        batch = Batch(id=batch_id.decode(), index=index, size=size)
    except ValueError as error:
        raise BadRecordError("decode", "bad_header", "batch headers: no batch and place") from error
    if not 0 <= index < size < _INTEGER_MAX:
        raise BadRecordError("decode", "bad_header", "batch headers: no place in a batch")
    return batch


def traceparent(headers: Headers, name: str = TRACEPARENT) -> bytes | None:
    """Return the trace context of a record, or None if it is missing or malformed."""
    value = find(headers, name)
    return value if value is not None and _TRACEPARENT.fullmatch(value) else None


def trace_id(headers: Headers) -> str | None:
    """Return the 32 hex digits of the record's trace, or None."""
    value = traceparent(headers)
    return None if value is None else value[3:35].decode()


def cloud_event_id(headers: Headers) -> str | None:
    """Return the id of a CloudEvent in Kafka binary mode, or None if it isn't one."""
    if not headers or find(headers, CE_SPECVERSION) is None:
        return None
    value = find(headers, CE_ID)
    return None if value is None else value.decode("utf-8", "replace")


def dead_letter(
    headers: Headers,
    *,
    topic: str,
    partition: int,
    offset: int,
    error: Exception,
    stage: str,
    reason: str,
) -> list[tuple[str, bytes | None]]:
    """Return a record's own headers with Kafka Connect's error headers and ours added."""
    message = getattr(error, "message", None) or str(error)
    added: Iterable[tuple[str, str]] = (
        (f"{_CONNECT}topic", topic),
        (f"{_CONNECT}partition", str(partition)),
        (f"{_CONNECT}offset", str(offset)),
        (f"{_CONNECT}stage", stage),
        (f"{_CONNECT}exception.class.name", type(error).__name__),
        (f"{_CONNECT}exception.message", message),
        (REASON, reason),
    )
    return replaced(headers, {name: value.encode() for name, value in added})
