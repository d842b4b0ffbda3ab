"""Hostile values and headers: each is read or refused with a reason, in bounded time and memory.

SHUNTER_FUZZ_EXAMPLES sets the number of inputs; a long run has 100,000.
"""

import os
import time
import tracemalloc
from collections.abc import Callable
from contextlib import suppress

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from topics import (
    BadRecordError,
    Evidence,
    Placement,
    PoolStatus,
    Profile,
    Progress,
    Result,
    decode,
    parse_request,
    peek_id,
)
from topics import headers as h

EXAMPLES = int(os.environ.get("SHUNTER_FUZZ_EXAMPLES", "1000"))
PROPERTY = settings(
    max_examples=EXAMPLES,
    deadline=1000,  # ms for one input
    derandomize="SHUNTER_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MIB = 1024 * 1024
WHOLE = orjson.dumps(
    {
        "id": "r-1",
        "body": {"model": "m", "messages": [{"role": "user", "content": "é\U0001f600"}]},
        "task": "chat",
        "completion_window": "10m",
        "slo": {"ttft_ms": 300, "tpot_ms": 40.5},
        "constraints": {"regions": ["eu"], "labels": {"a": "b"}, "max_cost_usd": 0.1},
        "hints": {"input_tokens": 5, "output_tokens": 6, "batchable": True},
        "metadata": {"x": [None, 1e300]},
    }
)
LINE = b'{"custom_id":"l","method":"POST","url":"/v1/embeddings","body":{"model":"m","input":"x"}}'
RECORD = (
    b'{"pool":"p","device":"d","model_variant":"v","precision":"fp8","region":"r","path":"direct"}'
)
SPLICES = st.binary(max_size=8) | st.sampled_from(
    [
        *(
            b"{",
            b"[",
            b'"',
            b",",
            b":",
            b"}",
            b"]",
            b"\\",
            b"\\u0000",
            b"\\ud800",
            b"\xff",
            b"\x00",
        ),
        *(b"1e999", b"-0", b"NaN", b"9" * 400, b"null", b"true", b'"id":', b'{"a":' * 300),
    ]
)


@st.composite
def mangled(draw: st.DrawFn) -> bytes:
    """A good value with some bytes replaced, removed or put in."""
    value = bytearray(draw(st.sampled_from([WHOLE, LINE, RECORD])))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(value)))
        gone = draw(st.integers(0, 6))
        value[at : at + gone] = draw(SPLICES)
    return bytes(value)


VALUES = mangled() | st.binary(max_size=300)
NAMES = st.sampled_from([h.PROFILE, h.PLACEMENT, "ce_id", "traceparent"]) | st.text(max_size=8)
KINDS = [Profile, Placement, Progress, PoolStatus, Result, Evidence]


def read_or_refused(read: Callable[[], object]) -> None:
    try:
        read()
    except BadRecordError as error:
        refused = error
    else:
        return
    assert refused.reason
    assert len(refused.message) < 2000


@PROPERTY
@given(value=VALUES)
def test_any_value_is_a_request_or_refused(value: bytes) -> None:
    read_or_refused(lambda: parse_request(value, bytes_max=MIB))


@PROPERTY
@given(value=VALUES, default_id=st.none() | st.just("c"))
def test_a_request_has_the_id_that_a_peek_finds(value: bytes, default_id: str | None) -> None:
    peeked = peek_id(value, default_id)
    with suppress(BadRecordError):
        assert parse_request(value, bytes_max=MIB, default_id=default_id).id == peeked


@PROPERTY
@given(value=VALUES, kind=st.sampled_from(KINDS))
def test_any_value_is_a_record_or_refused(value: bytes, kind: type) -> None:
    read_or_refused(lambda: decode(kind, value))


@PROPERTY
@given(headers=st.lists(st.tuples(NAMES, VALUES), max_size=5))
def test_any_headers_are_read_or_refused(headers: list[tuple[str, bytes]]) -> None:
    for name, kind in ((h.PROFILE, Profile), (h.PLACEMENT, Placement)):
        read_or_refused(lambda name=name, kind=kind: h.read(headers, name, kind))
    read_or_refused(lambda: h.read_batch(headers))
    read_or_refused(lambda: h.cloud_event_id(headers))
    h.trace_id(headers)
    h.client_headers(headers)


def filled(start: bytes, unit: bytes, end: bytes) -> bytes:
    """As many units as a request may have bytes."""
    return start + unit * ((MIB - len(start) - len(end)) // len(unit)) + end


HOSTILE = {
    "open arrays": filled(b"", b"[", b""),
    "open objects": filled(b"", b'{"a":', b""),
    "nested in the body": filled(b'{"id":"a","body":{"x":', b"[", b""),
    "one long number": filled(b'{"id":"a","body":{"max_tokens":', b"9", b"}}"),
    "one long exponent": filled(b'{"id":"a","deadline":1e', b"9", b',"body":{}}'),
    "one long string": filled(b'{"id":"', b"a", b'","body":{}}'),
    "escapes": filled(b'{"id":"a","body":{"model":"', b"\\u0041", b'"}}'),
    "the same key": filled(b'{"id":"a"', b',"x":1', b"}"),
    "many keys": b'{"id":"a","body":{"model":"m"},'
    + b",".join(b'"k%06x":1' % i for i in range(80_000))
    + b"}",
    "many keys in the body": b'{"id":"a","body":{"model":"m",'
    + b",".join(b'"k%06x":1' % i for i in range(80_000))
    + b"}}",
    "many regions": filled(
        b'{"id":"a","body":{"model":"m"},"constraints":{"regions":["a"', b',"b"', b"]}}"
    ),
    "many wrong regions": filled(
        b'{"id":"a","body":{"model":"m"},"constraints":{"regions":[1', b",1", b"]}}"
    ),
    "empty lists": filled(b'{"id":"a","body":{"model":"m","x":[[]', b",[]", b"]}}"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_the_worst_of_a_full_size_takes_bounded_time_and_memory(kind: str) -> None:
    value = HOSTILE[kind]
    assert len(value) <= MIB
    began = time.process_time()
    read_or_refused(lambda: parse_request(value, bytes_max=MIB))
    took_s = time.process_time() - began
    tracemalloc.start()
    try:
        read_or_refused(lambda: parse_request(value, bytes_max=MIB))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    print(f"{kind}: {took_s * 1000:.0f} ms, {peak_bytes / MIB:.0f} MiB")
    assert took_s < 5
    assert peak_bytes < 100 * MIB
