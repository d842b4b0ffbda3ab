"""Canonical JSON: the fast form is the reference's, for whatever evidence may hold."""

import dataclasses
import json
import math
import sys
from typing import Any

import pytest
import rfc8785
from hypothesis import given, settings
from hypothesis import strategies as st

from topics import Candidate, Evidence, Source, Tag
from topics.wire.canonical_json import canonical, canonical_json

finite = st.floats(-sys.float_info.max, sys.float_info.max)
# Where ECMAScript and msgspec part: whole numbers, small ones, large ones.
numbers = finite | st.floats(1e-8, 1e-4) | st.integers(-50, 50).map(float) | st.floats(1e14, 1e23)
texts = st.text(max_size=12) | st.sampled_from(
    ['":1.0,', "1.0}", "x\\", '"', '\\":2.0,', "e-6,", ":-0.0}", "\U0001f600", "\ue000", "1e5]"]
)
values = st.recursive(
    st.none() | st.booleans() | numbers | texts | st.integers(-(2**53) + 1, 2**53 - 1),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(texts, inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None)
@given(values)
def test_any_json_is_written_as_the_reference_does(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


@settings(deadline=None)
@given(numbers, numbers, texts, texts, values)
def test_evidence_is_written_as_the_reference_does(
    cost: float, at: float, name: str, message: str, value: Any
) -> None:
    evidence = Evidence(
        request_id=name,
        step="placed",
        at=at,
        writer="router/a",
        source=Source("inference.requests", 0, 7),
        tags={"task": Tag(value, "client", 1.0)},
        candidates=(Candidate("p", "v", "fp8", "eu", "direct", cost_usd=cost, chance=1.0),),
        message=message,
    )
    raw = canonical(evidence)
    assert raw == rfc8785.dumps(json.loads(json.dumps(dataclasses.asdict(evidence))))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"b": 1.0, "a": 0.000001}, b'{"a":0.000001,"b":1}'),
        ({"n": -0.0}, b'{"n":0}'),
        ([1.0, 2.5e-6], b"[1,0.0000025]"),
        ({"seed": 2**63}, b'{"seed":9223372036854776000}'),
        ({"n": 1e21}, b'{"n":1e+21}'),
    ],
)
def test_numbers_are_those_of_ecmascript(value: Any, written: bytes) -> None:
    assert canonical_json(value) == written


def nested(levels: int) -> Any:
    value: Any = "a"
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value",
    [
        # What the parser of requests reads at most, and what orjson does not write.
        nested(253),
        nested(600),
        # More values than are looked at one by one.
        [{"role": "user", "content": "a" * (n % 7), "n": n / 8} for n in range(2000)],
        {"content": "".join(map(chr, [*range(0xD800), *range(0xE000, 0x10FFFF, 7)]))},
    ],
    ids=["deep", "deeper", "wide", "every character"],
)
def test_what_is_deep_or_wide_is_written_as_the_reference_does(value: Any) -> None:
    assert canonical_json(value) == rfc8785.dumps(value)


plain = (
    st.floats(1e-5, 1e16, exclude_max=True)
    | st.floats(-1e16, -1e-5, exclude_min=True)
    | st.integers(-5, 16).flatmap(lambda n: st.floats(0.9 * 10.0**n, 1.1 * 10.0**n))
    | st.integers(1, 2**53).map(lambda n: n / 2**20)
)


@settings(deadline=None)
@given(st.lists(plain, max_size=20))
def test_numbers_that_are_not_searched_for_are_those_of_ecmascript(found: list[float]) -> None:
    assert canonical_json(found) == rfc8785.dumps(found)


@pytest.mark.parametrize("bound", [1e-5, 1e-4, 1e15, 1e16])
def test_next_to_a_bound_numbers_are_those_of_ecmascript(bound: float) -> None:
    below = above = bound
    for _ in range(200):
        below, above = math.nextafter(below, 0), math.nextafter(above, math.inf)
        for number in (below, -below, above, -above):
            assert canonical_json(number) == rfc8785.dumps(number)


@pytest.mark.parametrize("value", ["\ud800", [10**400]])
def test_what_has_no_such_form_is_refused(value: Any) -> None:
    with pytest.raises(ValueError, match=r"Unicode|range|large|canonical|nested"):
        canonical_json(value)
