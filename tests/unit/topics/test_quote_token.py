"""Quote tokens: who has the secret reads back what it signed, and nobody alters it."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import PROPERTY
from pydantic import TypeAdapter
from stream_cases import MODEL, request

from topics import InferenceRequest
from topics.records.quote_token import (
    QuoteTerms,
    QuoteTokenError,
    id_of,
    request_digest,
    said_in,
    terms_of,
    token_of,
)
from topics.records.request import QuoteId

SECRET = b"between routers"
finite = st.floats(0, 4e9, allow_nan=False)
times = st.tuples(st.none(), finite) | st.tuples(finite, st.none())
terms = st.builds(
    lambda first, when, last: QuoteTerms(*first, *when, *last),
    st.tuples(
        st.text("0123456789abcdef", min_size=32, max_size=32),
        st.sampled_from(["auto", "flex", "batch"]),
    ),
    times,
    st.tuples(st.floats(0.5, 1), st.integers(0, 2**53), finite),
)
TEXT = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"


@PROPERTY
@given(terms)
def test_terms_come_back_as_they_were(given_terms: QuoteTerms) -> None:
    token = token_of(SECRET, given_terms)
    assert terms_of(SECRET, token) == given_terms
    assert said_in(token) == given_terms
    assert TypeAdapter(QuoteId).validate_python(token) == token
    with pytest.raises(QuoteTokenError, match="another installation"):
        terms_of(b"another secret", token)


@PROPERTY
@given(terms, st.integers(0, 10_000), st.sampled_from(TEXT))
def test_no_character_of_a_token_can_be_altered(
    given_terms: QuoteTerms, at: int, other: str
) -> None:
    token = token_of(SECRET, given_terms)
    at %= len(token)
    altered = token[:at] + other + token[at + 1 :]
    if altered == token:
        return
    with pytest.raises(QuoteTokenError):
        terms_of(SECRET, altered)
    assert id_of(altered) != id_of(token)


def parsed(**fields: object) -> InferenceRequest:
    return InferenceRequest.model_validate(request(model=MODEL, **fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "r2"},
        {"tenant": "other"},
        {"task": "summarization"},
        {"body": {"model": MODEL, "messages": []}},
        {"constraints": {"regions": ["eu-west"]}},
        {"slo": {"ttft_ms": 5.0}},
        {"hints": {"output_tokens": 5}},
        {"url": "/v1/completions"},
    ],
)
def test_a_quote_is_of_one_request_alone(fields: dict[str, object]) -> None:
    assert request_digest(parsed(**fields)) != request_digest(parsed())


def test_when_it_is_wanted_and_what_comes_back_is_not_quoted() -> None:
    own = {"deadline": 5.0, "service_tier": "flex", "metadata": {"a": 1}, "quote": True}
    assert request_digest(parsed(**own)) == request_digest(parsed(created_at=3.0))


@pytest.mark.parametrize("token", ["", "x", "e30.x", "W10.x", "%%.x", "bm9uZQ.x"])
def test_what_is_no_token_tells_no_terms(token: str) -> None:
    assert said_in(token) is None


@pytest.mark.parametrize(
    "told", [["a"], ["a", "auto", None, None, 1, 1, 1], ["a", "auto", "x", None, 1, 1, 1], [1] * 7]
)
def test_what_has_other_terms_tells_none(told: list[object]) -> None:
    token = base64.urlsafe_b64encode(json.dumps(told).encode()).decode().rstrip("=")
    assert said_in(f"{token}.x") is None


def test_a_window_is_due_after_the_acceptance() -> None:
    window = QuoteTerms("a", "auto", None, 60.0, 0.9, 1, 2e9)
    assert (window.due_at(100.0), window._replace(deadline=5.0).due_at(100.0)) == (160.0, 5.0)
