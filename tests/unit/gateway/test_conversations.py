"""Requests of one conversation are published under one key, so that one worker has them."""

from typing import Any

import orjson
import pytest

from gateway.api.translation import wanted
from shunter.client.request_lines import check_lines
from topics import parse_request

CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


@pytest.mark.parametrize(
    ("body", "headers", "session"),
    [
        ({}, {}, None),
        ({"prompt_cache_key": "talk-7"}, {}, "talk-7"),
        ({"prompt_cache_key": "talk-7"}, {"X-Shunter-Session": "talk-8"}, "talk-8"),
        ({"shunter": {"session": "talk-9"}}, {}, "talk-9"),
    ],
)
def test_a_gateway_knows_the_conversation(
    body: dict[str, Any], headers: dict[str, str], session: str | None
) -> None:
    asked = wanted(CHAT, BODY | body, headers, "default", 1.0)
    assert asked.session == session
    request = parse_request(asked.value("r-1"), bytes_max=100_000)
    assert request.conversation == session


@pytest.mark.parametrize("named", [7, "", "x" * 129, None, ["a"]])
def test_what_can_not_name_a_conversation_names_none(named: Any) -> None:
    value = orjson.dumps({"id": "r", "body": BODY | {"prompt_cache_key": named}})
    assert parse_request(value, bytes_max=100_000).conversation is None


def test_submitted_lines_are_keyed_by_what_they_name() -> None:
    lines = [
        orjson.dumps({"id": "a", "body": BODY}),
        orjson.dumps({"id": "b", "body": BODY, "session": "talk"}),
        orjson.dumps({"id": "c", "body": BODY | {"prompt_cache_key": "talk"}}),
    ]
    checked = check_lines(lines, bytes_max=100_000)
    assert checked.ids == {1: "a", 2: "b", 3: "c"}
    assert checked.sessions == {2: "talk", 3: "talk"}
