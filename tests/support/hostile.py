"""Inputs that somebody who means harm would publish, and how much one may cost."""

import gc
import os
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import orjson
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from stream_cases import START

from topics.records import headers as h

FEW = 100
PROPERTY = settings(
    deadline=None,  # of the wall clock; an input's limit is processor time, below
    # Of few, the same each time: what an input takes differs, and none may fail by chance.
    derandomize=int(os.environ.get("SHUNTER_FUZZ_EXAMPLES", "0")) < FEW,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
MIB = 1024 * 1024
NOW_MS = int(START * 1000)
# An input may take half a second, on a machine that is busy, and 5 us a byte.
SECONDS, SECONDS_PER_BYTE = 0.5, 5e-6
# Beside what is made once, at first use: a JSON value of one byte takes some 30, and a few copies
# are there at once of a request that is decoded, decided on and told in evidence or a dead letter.
BYTES, BYTES_PER_BYTE = 2 * MIB, 150

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
def mangled(draw: st.DrawFn, values: st.SearchStrategy[bytes]) -> bytes:
    """A value with some bytes replaced, removed or put in."""
    value = bytearray(draw(values))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(value)))
        gone = draw(st.integers(0, 6))
        value[at : at + gone] = draw(SPLICES)
    return bytes(value)


@st.composite
def repeated(draw: st.DrawFn) -> bytes:
    """JSON, or nearly, of up to 128 KiB or more: deep, long, wide, or one thing many times."""
    before, unit, after = draw(
        st.sampled_from(
            [
                (b"", b"[", b""),
                (b"", b'{"a":', b""),
                (b"", b"[[],", b"0"),
                (b"", b"9", b""),
                (b"0.", b"3", b"e-7"),
                (b"1e", b"9", b""),
                (b'"', b"x", b'"'),
                (b'"', b"\\ud83d", b'"'),
                (b'"', b"\\u0000", b'"'),
                (b'"', "\u202e".encode(), b'"'),
                (b'"', b"\xf0\x9f\x98", b'"'),
                (b"[0", b",0", b"]"),
                (b"[{}", b",{}", b"]"),
                (b'{"k":1', b',"k":1', b"}"),
                (b'{"', b"k", b'":1}'),
                (b" ", b"\n\t ", b"1"),
            ]
        )
    )
    times: int = 2 ** draw(st.integers(0, 14)) + draw(st.integers(-1, 1))
    closing = {b"[": b"]", b'{"a":': b"}", b"[[],": b"]"}.get(unit, b"")
    if closing and draw(st.booleans()):
        after = (after or b"0") + closing * times
    return before + unit * times + after


SCALARS = st.sampled_from(
    [
        *(b"0", b"-0", b"1", b"-1", b"0.5", b"1e308", b"1e309", b"-1e999", b"5e-324", b"1E+2"),
        *(b"9223372036854775807", b"18446744073709551616", b"10000000", b"4102444801"),
        *(b"NaN", b"Infinity", b"-Infinity", b"null", b"true", b"false", b"{}", b"[]", b'""'),
        *(b'"chat"', b'"batch"', b'"flex"', b'"10m"', b'"0s"', b'"366d"', b'"999999999d"'),
        *(b'"yard-8b"', b'"a"', b'["eu-west"]', b'["boards-us"]', b'{"ttft_ms":1e-9}'),
        *(b'"\\ud800"', b'"\\udc00\\ud800"', b'"\\u0000"', b'"\xff"', b'"\xed\xa0\x80"'),
        *(b'{"regions":[]}', b'{"max_cost_usd":0}', b'{"data_class":"regulated"}'),
        *(b'{"input_tokens":10000000}', b'{"output_tokens":0}', b'{"batchable":true}'),
        *(b'[{"role":"user","content":"x"}]', b'[{"content":[{"text":5}]}]', b"[1,2]"),
    ]
)  # fmt: skip
# Of each field some values that are right, if extreme.
NATIVE = {
    b"url": [b'"/v1/completions"', b'"/v1/embeddings"', b'"/v1/moderations"', b'"/x"'],
    b"model": [b'"yard-8b"', b'"none"', b'"\xed\x95\x9c"'],
    b"task": [b'"chat"', b'"summarization"', b'"summarization"', b'"none"'],
    b"tenant": [b'"acme"', b'"\\u0000"', b'" "'],
    b"created_at": [b"0", b"1800000000.0", b"4102444800", b"1e-300"],
    b"deadline": [b"0", b"1800000001.5", b"4102444800"],
    b"completion_window": [b'"10m"', b'"0.001ms"', b'"366d"'],
    b"service_tier": [b'"auto"', b'"batch"', b'"flex"', b'"priority"'],
    b"slo": [b"{}", b'{"ttft_ms":1e-9}', b'{"ttft_ms":1e9,"tpot_ms":5e-324}'],
    b"constraints": [b"{}", b'{"regions":[]}', b'{"max_cost_usd":0}', b'{"labels":{"a":"b"}}'],
    b"session": [b'"s"', b'"\\ud83d\\ude00"'],
    b"hints": [b'{"input_tokens":10000000}', b'{"output_tokens":0}', b'{"batchable":true}'],
    b"metadata": [b"null", b"1e308", b"[[[]]]", b'{"":{"":0}}'],
}
OF_BODY = {
    b"model": [b'"yard-8b"', b'"none"', b"5"],
    b"messages": [b"[]", b'[{"content":[{"text":5}]}]', b'[{"role":"user","content":"x"}]', b"{}"],
    b"prompt": [b'"x"', b"[1,2,3]", b'["x",["y"]]', b"null"],
    b"input": [b'"x"', b"[[1],[2]]", b"[]", b"0"],
    b"tools": [b"[]", b'[{"function":{"parameters":{}}}]', b'"x"'],
    b"max_tokens": [b"1", b"10000000", b"null"],
    b"max_completion_tokens": [b"1", b"10000000"],
    b"stream": [b"true", b"false", b"null"],
}
KEYS = st.sampled_from(
    [*NATIVE, *OF_BODY, b"id", b"", b"\\u0069d", b"__proto__", b"\\ud800", b"\xff"]
)
LONG_KEYS = st.integers(7, 17).map(lambda power: b"k" * 2**power)
ODD_FIELDS = st.tuples(KEYS | KEYS | LONG_KEYS, SCALARS | SCALARS | repeated())


@st.composite
def made(draw: st.DrawFn) -> bytes:
    """A request, or a line of a Batch file, that is right or odd in a few fields."""
    fields = _drawn(draw, NATIVE)
    body = [(b"model", b'"yard-8b"'), *_drawn(draw, OF_BODY)]
    name = b'"r-%d"' % draw(st.integers(0, 99_999))
    if draw(st.integers(0, 3)):
        fields = [(b"id", name), *fields]
    else:
        fields = [(b"custom_id", name), (b"url", b'"/v1/chat/completions"')]
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        draw(st.sampled_from([fields, body])).append(draw(ODD_FIELDS))
    if draw(st.integers(0, 3)):
        body, fields = list(dict(body).items()), list(dict(fields).items())
    return _object([*fields, (b"body", _object(body))])


def _drawn(draw: st.DrawFn, known: dict[bytes, list[bytes]]) -> list[tuple[bytes, bytes]]:
    names = draw(st.lists(st.sampled_from(list(known)), max_size=4, unique=True))
    return [(name, draw(st.sampled_from(known[name]))) for name in names]


def _object(fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"{" + b",".join(b'"%s":%s' % field for field in fields) + b"}"


GOOD = st.sampled_from([WHOLE, LINE, RECORD])
VALUES = mangled(GOOD | GOOD | made()) | made() | repeated() | st.binary(max_size=300)
NAMES = st.sampled_from(
    [h.PROFILE, h.PLACEMENT, h.TRACEPARENT, h.TRACESTATE, h.CE_SPECVERSION, h.CE_ID, h.HELD_AT, ""]
) | st.text(max_size=8)
CONTEXTS = st.sampled_from(
    [
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00",
        b"00-00000000000000000000000000000000-b7ad6b7169203331-01",
        b"ff-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        b"00-0AF7651916CD43DD8448EB211C80319C-B7AD6B7169203331-01",
        *(b"", b"\x00" * 55, b"\xff" * 55, b"0" * 100_000, b"a=b," * 1000),
    ]
)
Headers = list[tuple[str, bytes | None]]
SOME_HEADERS = st.lists(st.tuples(NAMES, VALUES | CONTEXTS | st.none()), max_size=5)


@st.composite
def headers(draw: st.DrawFn) -> Headers:
    """Headers with nulls, of which one may be there again, as it was or null."""
    found = draw(SOME_HEADERS)
    if found and draw(st.booleans()):
        name, value = draw(st.sampled_from(found))
        found.append((name, draw(st.sampled_from([value, None]))))
    return found


HEADERS = headers()
KEYS_OF_RECORDS = st.none() | st.binary(max_size=140) | st.text(max_size=140).map(str.encode)
# Besides the time as it is: none, that of no record, and the last that a number can say.
LONG_MAX = 2**63 - 1
TIMES_NOT_BEFORE_NOW = st.sampled_from([NOW_MS, NOW_MS, -1, 253_370_764_800_000, LONG_MAX])
TIMES = TIMES_NOT_BEFORE_NOW | st.sampled_from([0, 1, -86_400_000, -LONG_MAX - 1])


@dataclass
class Worst:
    """The most that an input has taken, beside what any may, as a part of its limit."""

    inputs: int = 0
    time: float = 0.0
    memory: float = 0.0


WORST = Worst()


@contextmanager
def bounded(size: int) -> Iterator[None]:
    """Fail where what is done with so many bytes of input takes more time or memory than it may.

    Time is processor time: another program's work is not this one's fault. Nor is what hypothesis
    remembers of 60,000 inputs, among which to look for garbage takes two seconds.
    """
    gc.disable()
    tracemalloc.start()
    began = time.process_time()
    try:
        yield
        took_s = time.process_time() - began
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
        gc.enable()
    seconds, most = SECONDS + SECONDS_PER_BYTE * size, BYTES + BYTES_PER_BYTE * size
    WORST.inputs += 1
    WORST.time = max(WORST.time, took_s / seconds)
    WORST.memory = max(WORST.memory, peak / most)
    assert took_s <= seconds, f"{size:,} bytes took {took_s:.2f} s"
    assert peak <= most, f"{size:,} bytes took {peak / MIB:.1f} MiB"
