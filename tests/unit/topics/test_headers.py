"""Headers: what Shunter adds to a record, what it believes, and what it drops."""

import json
import re
from collections.abc import Callable
from dataclasses import replace

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import PROPERTY, profile, profiles

from topics import BadRecordError, Batch, Envelope, Fallback, Placement, Profile, decode, encode
from topics.records import headers as h
from topics.records.headers import Headers
from topics.records.money import Account, Amounts, Reservation, Spent
from topics.records.quality import QualityCheck
from topics.records.quote_terms import Quoted

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01".encode()


def test_the_trace_context_is_read() -> None:
    headers = [("other", b"x"), ("traceparent", TRACEPARENT)]
    assert h.traceparent(headers) == TRACEPARENT
    assert h.trace_id(headers) == TRACE_ID


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"garbage",
        b"\xff\xfe",
        TRACEPARENT[:-1],
        TRACEPARENT + b"\n",
        TRACEPARENT + b"-extra",
        b" " + TRACEPARENT,
        TRACEPARENT.upper(),
        b"ff" + TRACEPARENT[2:],
        b"00-" + b"0" * 32 + TRACEPARENT[35:],
        TRACEPARENT[:36] + b"0" * 16 + b"-01",
        TRACEPARENT.replace(b"-", b"_"),
        TRACEPARENT.replace(b"a", b"g"),
    ],
)
def test_a_malformed_trace_context_counts_as_none(value: bytes) -> None:
    headers = [("traceparent", value)]
    assert h.traceparent(headers) is None
    assert h.trace_id(headers) is None


@settings(PROPERTY)
@given(value=st.binary(max_size=60) | st.from_regex(rb"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-.."))
def test_any_trace_context_is_one_or_none(value: bytes) -> None:
    found = h.trace_id([("traceparent", value)])
    if found is not None:
        assert len(found) == 32
        assert int(found, 16) > 0


def test_no_headers_no_trace() -> None:
    assert h.traceparent([]) is None
    assert h.trace_id([]) is None


def test_the_last_of_equal_headers_counts() -> None:
    assert h.find([("a", b"1"), ("b", b"2"), ("a", b"3")], "a") == b"3"
    assert h.find([("a", b"1")], "A") is None


def test_a_client_cannot_place_its_own_request() -> None:
    placement = h.encoded(placement=PLACEMENT)
    forged = [*placement.items(), ("shunter-attempt", b"9"), ("shunter-", b"")]
    own = [("traceparent", TRACEPARENT), ("x", b"1"), ("x", b"2"), ("my-shunter-x", b"3")]
    assert h.client_headers([*own[:2], *forged, *own[2:]]) == own


def test_the_state_of_a_trace_goes_on_only_with_its_context() -> None:
    state = [("tracestate", b"a=1"), ("x", b"1"), ("tracestate", b"b=2")]
    known = [("traceparent", TRACEPARENT), *state]
    assert h.client_headers(known) == known
    assert h.client_headers(state) == [("x", b"1")]
    malformed = [*state, ("traceparent", b"00-not-a-context-01")]
    assert h.client_headers(malformed) == [("x", b"1"), malformed[-1]]
    assert h.client_headers(known, is_traced=True) == known
    assert h.client_headers(malformed, is_traced=False) == [("x", b"1"), malformed[-1]]


NAMES = st.sampled_from(["traceparent", "shunter-profile", "a", "b", "c"])
HEADERS = st.lists(st.tuples(NAMES, st.binary(max_size=4)), max_size=8)


@settings(PROPERTY)
@given(headers=HEADERS, new=st.dictionaries(NAMES, st.binary(max_size=4)))
def test_replaced_headers_stand_once_and_the_others_stay(
    headers: list[tuple[str, bytes]], new: dict[str, bytes]
) -> None:
    found = h.replaced(headers, new)
    for name, value in new.items():
        assert [v for k, v in found if k == name] == [value]
    assert [each for each in found if each[0] not in new] == [
        each for each in headers if each[0] not in new
    ]
    assert h.replaced(found, new) == found


def test_a_cloud_event_is_known_by_its_version() -> None:
    event = [("ce_specversion", b"1.0"), ("ce_id", b"e1")]
    assert h.cloud_event_id(event) == "e1"
    assert h.cloud_event_id(event[1:]) is None
    assert h.cloud_event_id(event[:1]) is None
    assert h.cloud_event_id([event[0], ("ce_id", b"\xff")]) == "\N{REPLACEMENT CHARACTER}"


PLACEMENT = Placement("premium", "fast", "llama-fp8", "fp8", "eu-west", "direct")

texts = st.text(max_size=8)
names = st.lists(texts, max_size=3).map(tuple)
seconds = st.floats(0, 1e9)
maybe_seconds = st.none() | seconds
fallbacks = st.lists(st.builds(Fallback, texts, texts), max_size=2).map(tuple)
placements = st.builds(
    Placement,
    *[texts] * 5,
    path=st.sampled_from(["direct", "batch"]),
    batch_id=st.none() | texts,
    attempt=st.integers(1, 9),
    fallbacks=fallbacks,
)
envelopes = st.builds(Envelope, seconds, maybe_seconds, seconds, maybe_seconds, maybe_seconds)
batches = st.builds(Batch, texts.filter(bool), st.integers(0, 499), st.integers(500, 999))


@settings(PROPERTY)
@given(
    sent=profiles(),
    tried=fallbacks,
    placement=placements,
    promised=envelopes,
    batch=st.none() | batches,
)
def test_what_is_known_of_a_request_survives_the_way(
    sent: Profile,
    tried: tuple[Fallback, ...],
    placement: Placement,
    promised: Envelope,
    batch: Batch | None,
) -> None:
    sent = profile(**{n: getattr(sent, n) for n in Profile.__slots__} | {"fallbacks": tried})
    added = h.encoded(profile=sent, placement=placement, promised=promised, batch=batch)
    assert all(name.startswith(h.PREFIX) for name in added)
    headers = h.replaced([("shunter-profile", b"old"), ("x", b"1")], added)
    assert h.read(headers, h.PROFILE, Profile) == sent
    assert h.read(headers, h.PLACEMENT, Placement) == placement
    assert h.read(headers, h.PROMISED, Envelope) == promised
    assert h.read_batch(headers) == batch


VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
ACCOUNT = Account("tenants.acme", "acme", 60.0, 1)
ASKED = replace(
    profile(),
    output_tokens_high=1,
    certain_tokens=1,
    reserved=Reservation(1, (ACCOUNT,), Amounts(1)),
    spent=Spent(1),
    quote=Quoted("q", 1, 0.9),
    quality=QualityCheck("chat", "reference", "labels", 0.1, 1.0, 1.0),
)


@settings(PROPERTY)
@given(
    st.sampled_from([Placement, Envelope, Profile]),
    profiles(),
    st.dictionaries(st.sampled_from(["pool", "path", "attempt", "ttft_s", "at", "x"]), VALUES),
)
def test_what_one_decoder_reads_is_what_the_other_does(
    kind: type[object], asked: Profile, changes: dict[str, object]
) -> None:
    given = {
        Placement: Placement("p", "d", "v", "fp8", "r", "direct"),
        Envelope: Envelope(1e-6, None, 2.0),
        Profile: asked,
    }[kind]
    told = orjson.loads(encode(given)) | changes
    # Integers beyond 64 bits and floats that are no number are among them.
    value = json.dumps(told).encode()
    assert read_by(h.decoded, kind, value) == read_by(decode, kind, value)


def read_by(
    decoder: Callable[[type[object], bytes], object], kind: type[object], value: bytes
) -> object:
    """Return what a decoder reads, or what it says is wrong."""
    try:
        return decoder(kind, value)
    except BadRecordError as error:
        return error.message


INTEGER = re.compile(rb"(?<=[:\[,])-?\d+(?=[,}\]])")


@pytest.mark.parametrize("given", [PLACEMENT, ASKED])
@pytest.mark.parametrize(
    "integer", [2**64, -(2**63) - 1, 10**30, 10**400], ids=["2**64", "-2**63-1", "31", "401"]
)
def test_no_decoder_reads_an_integer_beyond_64_bits(given: object, integer: int) -> None:
    kind, value = type(given), encode(given)
    for found in INTEGER.finditer(value):
        changed = value[: found.start()] + str(integer).encode() + value[found.end() :]
        name = h.PLACEMENT if kind is Placement else h.PROFILE
        with pytest.raises(BadRecordError) as caught:
            h.read([(name, changed)], name, kind)
        assert caught.value.reason == "bad_header"
        message = read_by(decode, kind, changed)
        assert caught.value.message == f"header {name}: {message}"
    assert INTEGER.search(value)


def test_only_what_is_given_is_encoded() -> None:
    assert h.encoded() == {}
    assert set(h.encoded(placement=PLACEMENT)) == {"shunter-placement"}
    assert set(h.encoded(batch=Batch("b", 0, 2))) == {
        "shunter-batch-id",
        "shunter-batch-index",
        "shunter-batch-size",
    }


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing_header"),
        (b"", "bad_header"),
        (b"{", "bad_header"),
        (b"[]", "bad_header"),
        (b"{}", "bad_header"),
        (b'{"pool":1}', "bad_header"),
        (b"\xff", "bad_header"),
    ],
)
def test_a_header_that_is_not_what_it_should_be_is_named(value: bytes | None, reason: str) -> None:
    headers = [] if value is None else [(h.PLACEMENT, value)]
    with pytest.raises(BadRecordError) as caught:
        h.read(headers, h.PLACEMENT, Placement)
    assert caught.value.reason == reason
    assert h.PLACEMENT in caught.value.message


def batch_headers(*values: bytes | None) -> Headers:
    pairs = zip((h.BATCH_ID, h.BATCH_INDEX, h.BATCH_SIZE), values, strict=True)
    return [(name, value) for name, value in pairs if value is not None]


def test_no_batch_id_no_batch() -> None:
    assert h.read_batch(batch_headers(None, b"1", b"2")) is None


@pytest.mark.parametrize(
    "values",
    [
        (b"b", None, b"2"),
        (b"b", b"1", None),
        (b"b", b"x", b"2"),
        (b"\xff", b"1", b"2"),
        (b"b", b"1.5", b"2"),
        (b"b", b"-1", b"2"),
        (b"b", b"2", b"2"),
        (b"b", b"1", b"9" * 400),
        (b"b", b"9" * 400, b"9" * 401),
    ],
)
def test_bad_batch_headers_are_refused(values: tuple[bytes | None, ...]) -> None:
    with pytest.raises(BadRecordError) as caught:
        h.read_batch(batch_headers(*values))
    assert caught.value.reason == "bad_header"


def letter(headers: Headers, error: Exception) -> list[tuple[str, bytes | None]]:
    return h.dead_letter(
        headers,
        topic="inference.requests",
        partition=3,
        offset=99,
        error=error,
        stage="validate",
        reason="invalid_request",
    )


def test_a_dead_letter_tells_where_it_stood_and_why() -> None:
    own = [("traceparent", TRACEPARENT), ("x", b"1"), ("x", b"2"), ("shunter-mine", b"kept")]
    error = BadRecordError("validate", "invalid_request", "id: wrong Ü")
    found = letter(own, error)
    assert found[: len(own)] == own
    assert dict(found[len(own) :]) == {
        "__connect.errors.topic": b"inference.requests",
        "__connect.errors.partition": b"3",
        "__connect.errors.offset": b"99",
        "__connect.errors.stage": b"validate",
        "__connect.errors.exception.class.name": b"BadRecordError",
        "__connect.errors.exception.message": "id: wrong Ü".encode(),
        "shunter-reason": b"invalid_request",
    }
    assert letter(found, error) == found


@pytest.mark.parametrize(
    ("error", "name", "message"),
    [
        (ValueError("no such topic"), b"ValueError", b"no such topic"),
        (KeyError("x"), b"KeyError", b"'x'"),
    ],
)
def test_a_dead_letter_of_any_error(error: Exception, name: bytes, message: bytes) -> None:
    found = dict(letter([], error))
    assert found["__connect.errors.exception.class.name"] == name
    assert found["__connect.errors.exception.message"] == message


@pytest.mark.parametrize("read", [h.traceparent, h.trace_id, h.cloud_event_id, h.read_batch])
def test_headers_of_any_bytes_are_read_or_refused(read: Callable[[Headers], object]) -> None:
    @settings(PROPERTY)
    @given(
        headers=st.lists(
            st.tuples(
                st.sampled_from(["traceparent", "ce_id", "ce_specversion", h.BATCH_ID,
                                 h.BATCH_INDEX, h.BATCH_SIZE]),
                st.binary(max_size=6),
            ),
            max_size=6,
        )
    )  # fmt: skip
    def check(headers: list[tuple[str, bytes]]) -> None:
        refused = False
        try:
            read(headers)
        except BadRecordError:
            refused = True
        assert not refused or read is h.read_batch

    check()


def test_a_field_that_must_be_known_is_refused_and_others_are_left_aside() -> None:
    known = profile()
    headers = list(h.encoded(profile=known).items())
    more = headers[0][1][:-1] + b',"carbon_g_max":3}'
    assert h.read_profile([(h.PROFILE, more)]) == known
    with pytest.raises(BadRecordError) as caught:
        h.read_profile([(h.PROFILE, more), (h.CRITICAL, b"carbon_g_max")])
    assert (caught.value.stage, caught.value.reason) == ("validate", "newer_version")
    assert "'carbon_g_max', which only a newer version" in caught.value.message
