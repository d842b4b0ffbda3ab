"""The Responses API, made of chat completions: what is asked, what is answered, and its events."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.responses import Response as SdkResponse
from openai.types.responses import ResponseStreamEvent
from pydantic import TypeAdapter

from gateway.api.responses_events import ResponseEvents
from gateway.api.responses_input import chat_body
from gateway.api.responses_output import response_answer
from gateway.api.translation import Wanted, wanted
from gateway.http.errors import ApiError
from topics import Response, Result, Timing, Usage
from topics.openai_api.operations import RESPONSES

EVENT: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object"}, "strict": True}
IMAGE = "https://example.org/a.png"


def asked(**fields: Any) -> Wanted:
    body = {"model": "m", "input": "hi"} | fields
    return wanted(RESPONSES, body, {}, "acme", 1.0)


def result_of(choice: dict[str, Any], **more: Any) -> Result:
    body = {"choices": [choice]} | more
    timing = Timing(created_at=1.0, finished_at=2.0)
    return Result("r", "completed", timing, response=Response(200, body), usage=Usage(7, 3))


def call(number: int, **function: str) -> dict[str, Any]:
    named = {"id": f"c{number}"} if "name" in function else {}
    return {"index": number, "function": function, **named}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("hi", [{"role": "user", "content": "hi"}]),
        (
            [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "input_text", "text": "a"}]},
                {"type": "reasoning", "id": "rs_1", "summary": []},
                {
                    "type": "message",
                    "role": "assistant",
                    "content": [{"type": "output_text", "text": "b", "annotations": []}],
                },
                {"type": "function_call", "call_id": "c0", "name": "look", "arguments": "{}"},
                {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "[]"},
                {"type": "function_call_output", "call_id": "c0", "output": "seen"},
            ],
            [
                {"role": "developer", "content": "be brief"},
                {"role": "user", "content": "a"},
                {
                    "role": "assistant",
                    "content": "b",
                    "tool_calls": [
                        {
                            "id": f"c{n}",
                            "type": "function",
                            "function": {"name": "look", "arguments": arguments},
                        }
                        for n, arguments in enumerate(["{}", "[]"])
                    ],
                },
                {"role": "tool", "tool_call_id": "c0", "content": "seen"},
            ],
        ),
        (
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "input_text", "text": "what is it?"},
                        {"type": "input_image", "image_url": IMAGE, "detail": "low"},
                    ],
                }
            ],
            [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "what is it?"},
                        {"type": "image_url", "image_url": {"url": IMAGE, "detail": "low"}},
                    ],
                }
            ],
        ),
    ],
)
def test_what_is_said_is_a_conversation(items: Any, messages: Any) -> None:
    assert chat_body({"model": "m", "input": items})["messages"] == messages


def test_each_field_has_its_place_in_a_chat_completion() -> None:
    schema = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
    body = {
        "model": "m",
        "input": "hi",
        "instructions": "be brief",
        "max_output_tokens": 9,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "name": "look"},
        "text": {"format": schema, "verbosity": "low"},
        "reasoning": {"effort": "low", "summary": "auto"},
        "include": ["reasoning.encrypted_content"],
        "truncation": "disabled",
        "n": 1,
        "store": True,
        "top_k": 3,
        "shunter": {"deadline": "5m"},
    }
    chat = chat_body(body)
    assert chat.pop("messages")[0] == {"role": "system", "content": "be brief"}
    function = {name: TOOL[name] for name in ("name", "parameters", "strict")}
    named = {name: schema[name] for name in ("name", "schema", "strict")}
    assert chat == {
        "model": "m",
        "max_tokens": 9,
        "tools": [{"type": "function", "function": function}],
        "tool_choice": {"type": "function", "function": {"name": "look"}},
        "response_format": {"type": "json_schema", "json_schema": named},
        "verbosity": "low",
        "reasoning_effort": "low",
        "store": True,
        "top_k": 3,
        "shunter": {"deadline": "5m"},
    }


@pytest.mark.parametrize(
    ("fields", "code", "param"),
    [
        ({"input": None}, "missing_required_parameter", "input"),
        ({"input": []}, "invalid_value", "input"),
        ({"input": 7}, "invalid_type", "input"),
        ({"input": [7]}, "invalid_type", "input[0]"),
        ({"input": [{"role": "owl", "content": "a"}]}, "invalid_value", "input[0].role"),
        ({"input": [{"role": "user", "content": 7}]}, "invalid_type", "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_file"}]}]},
            "unsupported_parameter",
            "input[0].content[0].type",
        ),
        ({"input": [{"type": "item_reference"}]}, "unsupported_parameter", "input[0].type"),
        (
            {"input": [{"type": "function_call", "call_id": 1}]},
            "invalid_type",
            "input[0].call_id",
        ),
        ({"instructions": 7}, "invalid_type", "instructions"),
        ({"max_output_tokens": 0}, "invalid_value", "max_output_tokens"),
        ({"max_output_tokens": True}, "invalid_value", "max_output_tokens"),
        ({"previous_response_id": "resp_1"}, "unsupported_parameter", "previous_response_id"),
        ({"background": True}, "unsupported_parameter", "background"),
        ({"n": 2}, "unsupported_parameter", "n"),
        ({"truncation": "auto"}, "unsupported_parameter", "truncation"),
        ({"include": ["file_search_call.results"]}, "unsupported_parameter", "include"),
        ({"tools": [{"type": "web_search"}]}, "unsupported_parameter", "tools[0].type"),
        ({"tools": 7}, "invalid_type", "tools"),
        ({"text": {"format": {"type": "xml"}}}, "unsupported_parameter", "text.format.type"),
        ({"text": {"format": {"type": []}}}, "unsupported_parameter", "text.format.type"),
        ({"text": 7}, "invalid_type", "text"),
    ],
)
def test_what_is_unfit_or_not_served_is_named(
    fields: dict[str, Any], code: str, param: str
) -> None:
    with pytest.raises(ApiError) as refused:
        chat_body({"model": "m", "input": "hi"} | fields)
    assert (refused.value.status, refused.value.code) == (400, code)
    assert refused.value.param == param


SCALARS = st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3)
KINDS = ["message", "function_call", "function_call_output", "reasoning", "input_text", "function"]
NAMES = ["type", "role", "content", "output", "call_id", "name", "arguments", "format", "effort"]
NAMES += ["reasoning", "refusal", "tool_calls", "function", "index", "id"]
NAMES += ["choices", "message", "delta", "finish_reason", "usage"]
ODD = st.recursive(
    SCALARS | st.sampled_from([*KINDS, "user", "input_image", "json_schema"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(NAMES), inner),
    max_leaves=8,
)
FIELDS = ["input", "instructions", "tools", "tool_choice", "text", "reasoning", "include"]
FIELDS += ["max_output_tokens", "truncation", "prompt", "store", "top_k"]


def refusal_of(body: dict[str, Any]) -> ApiError | None:
    try:
        messages = chat_body(body)["messages"]
    except ApiError as error:
        return error
    assert all(message["role"] for message in messages)
    return None


@given(st.dictionaries(st.sampled_from(FIELDS), ODD))
def test_whatever_comes_is_a_conversation_or_refused(body: dict[str, Any]) -> None:
    refused = refusal_of(body)
    assert refused is None or (refused.status == 400 and refused.param)


@given(st.lists(ODD, max_size=4), ODD)
def test_whatever_a_server_sends_is_told_as_events(deltas: list[Any], message: Any) -> None:
    form, choice = ResponseEvents("r", asked(), 1.0), {"message": message, "finish_reason": message}
    body, ended = {"choices": [choice]}, result_of(choice, usage=message)
    parts = [part for delta in [*deltas, message] for part in form.events({"choices": [delta]})]
    parts += [part for delta in deltas for part in form.events({"choices": [{"delta": delta}]})]
    parts += [*(form.rest_of(body) or ()), *form.finish(body), *form.last(ended)]
    types = [
        orjson.loads(part.partition(b"data: ")[2])["type"] for part in parts if part[:1] != b":"
    ]
    assert (types[0], types[-1]) == ("response.created", "response.completed")
    assert response_answer(ended, asked())["status"] == "completed"


def test_an_answer_is_what_openais_client_reads() -> None:
    message = {
        "role": "assistant",
        "content": "b",
        "reasoning_content": "hm",
        "tool_calls": [{"id": "c0", "function": {"name": "look", "arguments": "{}"}}],
    }
    choice = {"message": message, "finish_reason": "tool_calls"}
    usage = {
        "prompt_tokens": 11,
        "completion_tokens": 5,
        "prompt_tokens_details": {"cached_tokens": 4},
        "completion_tokens_details": {"reasoning_tokens": 2},
    }
    told = response_answer(result_of(choice, usage=usage), asked(tools=[TOOL], temperature=0.5))
    read = SdkResponse.model_validate(told, strict=True)
    assert [item.type for item in read.output] == ["reasoning", "message", "function_call"]
    assert (read.output_text, read.status, read.temperature) == ("b", "completed", 0.5)
    found: Any = read.output[-1]
    assert (found.call_id, found.name, found.arguments) == ("c0", "look", "{}")
    assert read.usage is not None
    assert (read.usage.input_tokens, read.usage.total_tokens) == (11, 16)
    assert read.usage.input_tokens_details.cached_tokens == 4
    assert read.usage.output_tokens_details.reasoning_tokens == 2


@pytest.mark.parametrize(
    ("reason", "status", "why"),
    [
        ("stop", "completed", None),
        (None, "completed", None),
        ("length", "incomplete", "max_output_tokens"),
        ("content_filter", "incomplete", "content_filter"),
    ],
)
def test_an_answer_that_was_cut_says_so(reason: str | None, status: str, why: str | None) -> None:
    told = response_answer(result_of({"message": {}, "finish_reason": reason}), asked())
    assert (told["status"], told["output"][0]["status"]) == (status, status)
    assert told["incomplete_details"] == (why and {"reason": why})
    assert told["output"][0]["content"][0]["text"] == ""
    # Of a server that counts no tokens, the worker's own count.
    assert told["usage"]["total_tokens"] == 10


def events_of(parts: Any) -> list[dict[str, Any]]:
    """The events, each as OpenAI's client reads it, in their order and with their names."""
    found = []
    for part in parts:
        if part.startswith(b": "):
            continue
        name, data = part.decode().rstrip().split("\n")
        told = orjson.loads(data.removeprefix("data: "))
        assert name == f"event: {told['type']}"
        if told["type"] != "error":
            EVENT.validate_python(told)
        found.append(told)
    return found


def chunk(**delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


DELTAS = [
    chunk(role="assistant", content=""),
    chunk(reasoning_content="h"),
    chunk(reasoning_content="m"),
    chunk(content="a"),
    chunk(content="b"),
    chunk(tool_calls=[call(0, name="look", arguments="")]),
    chunk(tool_calls=[call(1, name="look", arguments="[")]),
    chunk(tool_calls=[call(0, arguments="{}"), call(1, arguments="]")]),
]
MESSAGE = {
    "content": "ab",
    "reasoning_content": "hm",
    "tool_calls": [
        {"id": "c0", "function": {"name": "look", "arguments": "{}"}},
        {"id": "c1", "function": {"name": "look", "arguments": "[]"}},
    ],
}
WHOLE = {"message": MESSAGE, "finish_reason": "tool_calls"}


def test_a_stream_comes_to_the_same_response_as_an_answer_in_one_piece() -> None:
    wish, ended = asked(tools=[TOOL]), result_of(WHOLE)
    form, body = ResponseEvents("r", wish, 1.0), {"choices": [WHOLE]}
    parts = [part for delta in DELTAS for part in form.events(delta)]
    events = events_of([*parts, *form.finish(body), *form.last(ended)])
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [e["type"] for e in events[:2]] == ["response.created", "response.in_progress"]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[-1]["type"] == "response.completed"
    assert events[-1]["response"] == response_answer(ended, wish)
    said: dict[str, str] = {}
    for event in events:
        if event["type"].endswith(".delta"):
            said[event["item_id"]] = said.get(event["item_id"], "") + event["delta"]
    assert sorted(said.values()) == sorted(["hm", "ab", "{}", "[]"])
    begun = [e["item"]["id"] for e in events if e["type"] == "response.output_item.added"]
    done = [e["item"]["id"] for e in events if e["type"] == "response.output_item.done"]
    assert begun == done == [item["id"] for item in events[-1]["response"]["output"]]


def test_an_answer_in_one_piece_is_streamed_too() -> None:
    form, body = ResponseEvents("r", asked(), 1.0), {"choices": [WHOLE]}
    events = events_of([*form.whole(body), *form.finish(body), *form.last(result_of(WHOLE))])
    assert events[-1]["response"]["output"] == response_answer(result_of(WHOLE), asked())["output"]


def test_of_a_text_what_is_missing_is_told_and_of_all_else_not() -> None:
    form = ResponseEvents("r", asked(), 1.0)
    events_of(form.events(chunk(content="a")))
    choice = {"message": {"role": "assistant", "content": "abc"}, "finish_reason": "length"}
    rest = form.rest_of({"choices": [choice]})
    assert rest is not None
    assert [event["delta"] for event in events_of(rest)] == ["bc"]
    assert form.rest_of({"choices": [{"message": {"content": "xyz"}}]}) is None
    assert form.rest_of({"choices": [WHOLE]}) is None
    events_of(form.finish({"choices": [choice]}))
    (last,) = events_of(form.last(result_of(choice)))
    assert last["type"] == "response.incomplete"


def test_an_error_is_an_event_that_clients_raise() -> None:
    form = ResponseEvents("r", asked(), 1.0)
    (told,) = events_of(form.failure(ApiError(502, "stream_interrupted", "lost")))
    assert (told["type"], told["code"], told["message"]) == ("error", "stream_interrupted", "lost")
    assert told["error"]["code"] == "stream_interrupted"
