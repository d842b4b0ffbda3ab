"""Texts in spans: of any form of request, never longer than allowed, always whole JSON."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streams.tracing.setup import TEXT_CHARACTERS_MAX, _text_max
from workers.span_texts import _messages, texts_of

VARIABLE = "OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT"
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(),
    lambda each: st.lists(each, max_size=3) | st.dictionaries(st.text(max_size=9), each),
)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ({"prompt": "now?"}, [("user", "now?")]),
        ({"input": ["a", "b"]}, [("user", '{"input":["a","b"]}')]),
        ({"messages": [{"role": "system", "content": "s"}, {"content": "u"}]},
         [("system", "s"), ("user", "u")]),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}, 3]},
         [("user", '{"role":"user","content":[{"type":"text"}]}'), ("user", "3")]),
        ("now?", [("user", "now?")]),
    ],
)  # fmt: skip
def test_each_form_of_request_has_its_texts(body: Any, expected: list[tuple[str, str]]) -> None:
    told = json.loads(_messages(body, "messages", "user", 1000))
    assert [(each["role"], each["parts"][0]["content"]) for each in told] == expected


@given(
    ANYTHING | st.dictionaries(st.sampled_from(["messages", "choices"]), ANYTHING),
    st.integers(1, 30),
)
def test_nothing_is_longer_than_allowed(body: Any, characters_max: int) -> None:
    for member in ("messages", "choices"):
        told = json.loads(_messages(body, member, "user", characters_max))
        texts = [part["content"] for each in told for part in each["parts"]]
        assert sum(map(len, texts)) <= characters_max
    assert texts_of(body, body, characters_max)


def test_endless_messages_without_a_text_end() -> None:
    body = {"messages": [{"role": "x" * 9999, "content": ""}] * 100_000}
    assert len(_messages(body, "messages", "user", 4096)) < 10_000


@pytest.mark.parametrize(
    ("wanted", "limit", "expected"),
    [
        ("", "", 0), ("false", "99", 0), ("NO_CONTENT", "", 0), ("true", "", TEXT_CHARACTERS_MAX),
        ("SPAN_ONLY", "99", 99), ("span_and_event", "999999", TEXT_CHARACTERS_MAX),
    ],
)  # fmt: skip
def test_they_are_off_unless_switched_on(
    wanted: str, limit: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, wanted)
    monkeypatch.setenv("OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT", limit)
    assert _text_max() == expected


def test_another_switch_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "event_only")
    with pytest.raises(ValueError, match="set span_only"):
        _text_max()
