"""Steps that decide nothing: as their plain form has them, in canonical JSON."""

from typing import Any

import msgspec
import orjson
import pytest
import rfc8785
from evidence_cases import is_canonical
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import PROPERTY

from topics import Envelope, Evidence, Fallback, Host, Placement, Source, TextDigest, Usage, decode
from topics.records.decision_rows import UnfitError, candidate_rows, column_rows, plain
from topics.records.decision_tables import Tables
from topics.records.evidence_bytes import evidence_bytes
from topics.records.money import Spent
from topics.records.placement import Batch, Candidate

# Near all that ECMAScript writes otherwise, whole ones among them.
every_number = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(9e-7, 1.1e-5),
    st.integers(-(2**53) + 1, 2**53 - 1).map(float),
    st.sampled_from([0.0, -0.0, 1.0, 1e-5, 1e-6, 9.999999999999999e-6, 1e15, 1e16, 1e21, -1e-6]),
)
# The reference writes the others, but takes none of them back.
numbers = every_number.filter(lambda number: not 2**53 <= abs(number) < 1e21)
texts = st.sampled_from(["", "r-1", '"1.0,', ":1e-6}", "x.0]", "e-6"])
envelopes = st.none() | st.builds(
    Envelope,
    cost_usd=numbers,
    ttft_s=st.none() | numbers,
    finish_s=numbers,
    tpot_s=st.none() | numbers,
    chance=st.none() | numbers,
)
whole = st.integers(0, 2**40)
steps = st.builds(
    Evidence,
    request_id=texts,
    step=st.sampled_from(["executed", "failed", "fell_back", "cancelled"]),
    at=numbers,
    writer=texts,
    source=st.builds(Source, texts, whole, whole),
    tenant=st.none() | texts,
    placement=st.none() | st.builds(Placement, *([texts] * 5), st.just("direct")),
    promised=envelopes,
    held_promise=envelopes,
    got=envelopes,
    usage=st.none() | st.builds(Usage, whole, whole, whole, whole),
    batch=st.none() | st.builds(Batch, texts, whole, whole),
    host=st.none() | st.builds(Host, texts, texts, texts, cpus=st.none() | whole),
    fallback=st.none() | st.builds(Fallback, texts, texts),
    spent=st.none() | st.builds(Spent, whole, whole, whole, numbers, whole),
    energy_wh=st.none() | numbers,
    response_digest=st.none() | st.builds(TextDigest, texts, texts),
    message=st.none() | texts | st.text(max_size=12) | st.sampled_from(["\ue000", "𐀀"]),
)


@settings(PROPERTY)
@given(steps)
def test_a_step_is_read_back_from_canonical_json(given_step: Evidence) -> None:
    value = evidence_bytes(given_step)
    assert is_canonical(value)
    assert decode(Evidence, value) == given_step


@settings(PROPERTY)
@given(every_number)
def test_a_plain_number_is_written_as_the_reference_has_it(number: float) -> None:
    assert msgspec.json.encode(plain(number)) == rfc8785.dumps(number)


def test_what_a_small_request_costs_stands_without_an_exponent() -> None:
    fields: dict[str, Any] = {"at": 1.0, "writer": "w", "source": Source("t", 0, 0)}
    got = Envelope(3.9e-6, 0.5, 2.0, 0.0, None)
    value = evidence_bytes(Evidence("r", "executed", got=got, **fields))
    assert b'"got":{"cost_usd":0.0000039,"finish_s":2,"tpot_s":0,"ttft_s":0.5}' in value
    assert orjson.loads(value)["at"] == 1


# Most are within bounds, also together.
some = st.one_of(*([st.floats(0, 100)] * 7), st.floats(0, 1e6), st.floats())
figures = st.tuples(*([some] * 4), *([st.floats(0, 1)] * 3))


@settings(PROPERTY)
@given(st.lists(st.tuples(figures, st.floats(0, 1)), max_size=4), st.floats(0, 100))
def test_rows_of_columns_are_those_of_candidates(
    found: list[tuple[tuple[float, ...], float]], elapsed_s: float
) -> None:
    places = [(at, at, 0) for at in range(len(found))]
    records = [
        Candidate(
            *(f"p{at}", f"v{at}", "fp8", "here", "direct"),
            *(usd, elapsed_s + ttft_s, elapsed_s + finish_s, tpot_s, chance),
        )
        for at, ((usd, ttft_s, tpot_s, finish_s, *_), chance) in enumerate(found)
    ]
    try:
        plain_rows, _ = candidate_rows(records, Tables())
    except UnfitError:
        with pytest.raises(UnfitError):
            column_rows(places, *_columns(found), elapsed_s)
    else:
        assert column_rows(places, *_columns(found), elapsed_s) == plain_rows


def _columns(found: list[tuple[tuple[float, ...], float]]) -> tuple[list[Any], list[float]]:
    return [each for each, _ in found], [chance for _, chance in found]
