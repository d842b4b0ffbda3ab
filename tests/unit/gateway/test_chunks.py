"""Chunks in the form of OpenAI's, and answers that fail told apart."""

from dataclasses import replace
from typing import Any

import orjson
import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from gateway.api.chunks import ChunkForm
from gateway.api.refusals import refusal_of
from gateway.api.translation import wanted
from gateway.exchange.fleet_state import FleetState
from streams.engine.clock import SystemClock
from topics import Response, Result, ResultError, Settings, Timing

NOW = 1_800_000_000.0
ASKED = wanted(
    "/v1/chat/completions",
    {"model": "m", "stream": True, "messages": [{"role": "user", "content": "hi"}]},
    {},
    "acme",
    NOW,
)
BODY = {
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": "ab"}, "finish_reason": "stop"}
    ]
}


def piece(text: str, **more: Any) -> dict[str, Any]:
    return {"id": "x", "choices": [{"index": 0, "delta": {"content": text} | more}]}


def deltas(events: Any) -> list[Any]:
    chunks = [orjson.loads(event.removeprefix(b"data: ")) for event in events]
    return [(c["choices"][0]["delta"], c["choices"][0].get("finish_reason")) for c in chunks]


def test_the_role_comes_first_and_the_end_is_told_once() -> None:
    form = ChunkForm("req_1", ASKED, NOW)
    assert deltas(form.events(piece("a"))) == [
        ({"role": "assistant", "content": ""}, None),
        ({"content": "a"}, None),
    ]
    assert deltas(form.events(piece("b"))) == [({"content": "b"}, None)]
    assert list(form.events({"choices": [], "usage": {}})) == []
    assert deltas(form.finish(BODY)) == [({}, "stop")]
    assert deltas(form.finish(BODY)) == []


def test_each_choice_of_a_chunk_says_whether_it_has_ended() -> None:
    form = ChunkForm("req_1", ASKED, NOW)
    chunks = [orjson.loads(e.removeprefix(b"data: ")) for e in form.events(piece("a"))]
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None]


def test_a_role_that_a_server_says_with_each_piece_is_said_once() -> None:
    """As Ollama does; OpenAI's client would put the roles together, as it does texts."""
    form, state = ChunkForm("req_1", ASKED, NOW), ChatCompletionStreamState()
    for text in "ab":
        for event in form.events(piece(text, role="assistant")):
            chunk = ChatCompletionChunk.model_validate_json(event.removeprefix(b"data: "))
            list(state.handle_chunk(chunk))
    (choice,) = state.current_completion_snapshot.choices
    assert (choice.message.role, choice.message.content) == ("assistant", "ab")


def test_what_was_lost_of_a_text_is_made_up_for() -> None:
    form = ChunkForm("req_1", ASKED, NOW)
    list(form.events(piece("a")))
    rest = form.rest_of(BODY)
    assert rest is not None
    assert deltas(rest) == [({"content": "b"}, None)]


def test_what_was_lost_of_another_answer_can_not_be_told() -> None:
    for lost in (piece("x"), piece("a", tool_calls=[{"index": 0}])):
        form = ChunkForm("req_1", ASKED, NOW)
        list(form.events(lost))
        assert form.rest_of(BODY) is None


def result(status: Any, code: str, details: Any = None, response: Any = None) -> Result:
    error = ResultError(code, "why", details)
    return Result("req_1", status, Timing(NOW), response=response, error=error)


def test_a_limit_is_told_where_the_declared_one_was_exceeded() -> None:
    fleet = FleetState(Settings(), SystemClock())
    asked = replace(ASKED, fields=ASKED.fields | {"model": "llama-3.1-8b"})
    reasons = {"premium-us": "context_too_long", "silicon-us": "region"}
    told = refusal_of(result("rejected", "no_pool", reasons), asked, fleet)
    assert "maximum context length is 131072 tokens" in told.message
    by_a_server = refusal_of(result("failed", "no_pool", reasons), asked, fleet)
    assert "131072" not in by_a_server.message


def test_a_request_for_too_many_answers_is_told_what_to_ask_for() -> None:
    found = result("failed", "no_pool", {"a": "too_many_answers", "b": "model_not_served"})
    told = refusal_of(found, ASKED, FleetState(Settings(), SystemClock()))
    assert (told.status, told.code) == (400, "too_many_answers")
    assert "ask for a smaller n, or send prompts one by one" in told.message


@pytest.mark.parametrize(
    ("found", "status", "code"),
    [
        (result("expired", "deadline_passed"), 504, "deadline_exceeded"),
        (result("cancelled", "cancelled"), 409, "request_cancelled"),
        (result("rejected", "unknown_model"), 404, "model_not_found"),
        (result("rejected", "no_pool", {"a": "region"}), 422, "no_pool"),
        (result("rejected", "no_pool", {"a": "model_not_served"}), 404, "model_not_found"),
        (
            result("rejected", "no_pool", {"a": "context_too_long", "b": "model_not_served"}),
            400,
            "context_length_exceeded",
        ),
        (
            result("failed", "no_pool", {"a": "context_too_long", "b": "region"}),
            400,
            "context_length_exceeded",
        ),
        (result("failed", "context_too_long", {"a": "timeout"}), 502, "upstream_failed"),
        (result("rejected", "rate_limited"), 429, "rate_limit_exceeded"),
        (result("rejected", "budget"), 429, "insufficient_quota"),
        (result("rejected", "over_share"), 429, "over_share"),
        (result("rejected", "pool_unavailable"), 503, "pool_unavailable"),
        (result("rejected", "key_required"), 403, "key_required"),
        (result("rejected", "outside_bound"), 422, "outside_bound"),
        (result("rejected", "conflicting_labels"), 400, "conflicting_labels"),
        (result("failed", "timeout", {"a": "timeout"}), 502, "upstream_failed"),
        (
            result("failed", "request_refused", None, Response(418, {"error": {"code": "tea"}})),
            418,
            "tea",
        ),
    ],
)
def test_each_end_has_its_status(found: Result, status: int, code: str) -> None:
    error = refusal_of(found, ASKED, FleetState(Settings(), SystemClock()))
    answer = error.response()
    assert (answer.status, error.code) == (status, code)
    # What no window of a budget has room for need not come again.
    is_passing = status in {429, 503} and code != "insufficient_quota"
    assert ("Retry-After" in answer.headers) == is_passing
    is_final = status in {409, 422, 502, 504} or code == "insufficient_quota"
    assert (answer.headers.get("x-should-retry") == "false") == is_final


@pytest.mark.parametrize(
    ("left_s", "wait", "again"), [(0.2, "1", None), (60.0, "60", None), (60.1, "61", "false")]
)
def test_a_full_budget_tells_when_its_window_ends(
    left_s: float, wait: str, again: str | None
) -> None:
    """And where no client would wait as long, that it shall not try again by itself."""
    error = ResultError("budget", "full", retry_at=NOW + 10 + left_s)
    found = Result("req_1", "rejected", Timing(NOW, finished_at=NOW + 10), error=error)
    answer = refusal_of(found, ASKED, FleetState(Settings(), SystemClock())).response()
    assert (answer.status, answer.headers["Retry-After"]) == (429, wait)
    assert answer.headers.get("x-should-retry") == again
