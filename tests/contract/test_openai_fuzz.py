"""Any answer of a model server is read as what can be written again, or as a CallError."""

import contextlib
import math
from typing import Any

import orjson
from hypothesis import given
from hypothesis import strategies as st
from openai_cases import can_be_told
from policy_cases import NOW, PROPERTY

from topics import encode
from workers.backends.base import CallError
from workers.backends.openai.answers import Assembled, tokens_by_text, usage_of
from workers.backends.openai.errors import classify, retry_after_s
from workers.backends.openai.server_metrics import read_load

# Of each, some that a server has where another type belongs.
SCALARS = st.sampled_from(
    [None, True, False, 0, 1, -1, 127, 128, 2**63, 1e30, 0.5, "", "abc", "stop", "0", "é\U0001f600"]
)
NAMES = st.sampled_from(
    [
        *("choices", "index", "delta", "message", "finish_reason", "text", "content", "role"),
        *("tool_calls", "function", "arguments", "name", "id", "type", "usage", "logprobs"),
        *("prompt_tokens", "completion_tokens", "prompt_tokens_details", "cached_tokens"),
        *("error", "code", "object", "created", "model", "system_fingerprint", ""),
    ]
)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)


def mostly(known: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return what belongs there, and of four values one of any kind."""
    return st.one_of(known, known, known, JSON)


def some(*known: Any) -> st.SearchStrategy[Any]:
    return mostly(st.sampled_from(known))


def an_object(required: dict[str, Any], **optional: Any) -> st.SearchStrategy[Any]:
    return mostly(st.fixed_dictionaries(required, optional=optional))


def a_list(items: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return mostly(st.lists(items, max_size=3))


FUNCTIONS = an_object({}, name=JSON, arguments=some("{", "}"))
CALLS = an_object({}, index=some(0, 1), function=FUNCTIONS)
DELTAS = an_object({}, content=some("a"), tool_calls=a_list(CALLS))
CHOICES = an_object(
    {"index": some(0, 0, 1)},
    delta=DELTAS,
    message=DELTAS,
    text=some("a"),
    finish_reason=some("stop", None),
)
USAGES = an_object({}, completion_tokens=JSON, prompt_tokens_details=JSON)
CHUNKS = an_object({"choices": a_list(CHOICES)}, usage=USAGES, error=JSON, id=JSON)


@PROPERTY
@given(st.sampled_from(["chat.completion", "text_completion"]), st.lists(CHUNKS, max_size=5))
def test_any_chunks_are_an_answer_or_a_bad_one(object_name: str, chunks: list[Any]) -> None:
    assembled = Assembled(object_name)
    for chunk in chunks:
        with contextlib.suppress(CallError):
            assembled.add(chunk)
    with contextlib.suppress(CallError):
        body = assembled.body()
        assert orjson.loads(orjson.dumps(body)) == body
        check_usage(body)


@PROPERTY
@given(CHUNKS)
def test_usage_is_known_of_any_answer(body: Any) -> None:
    if isinstance(body, dict):
        check_usage(body)


def check_usage(body: dict[str, Any]) -> None:
    """See that the usage of an answer is a number of tokens, told or counted."""
    usage = usage_of(body, input_tokens=1, output_tokens=tokens_by_text(body))
    assert min(usage.input_tokens, usage.output_tokens, usage.cached_tokens) >= 0
    encode(usage)


NUMBERS = st.sampled_from(["1", "0", "-1", "2020", "99999999999999999999", "9" * 5000, "x", ""])
DATES = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    *(st.sampled_from(["Mon", ""]), NUMBERS, st.sampled_from(["Jan", "Dec", "x"]), NUMBERS),
    *(NUMBERS, NUMBERS, NUMBERS),
    *(st.sampled_from(["GMT", "EST", "", "+0000", "-2359", "+99999999999999999999", "+9", "-"]),),
)


@PROPERTY
@given(DATES | NUMBERS | st.text(max_size=40))
def test_any_retry_after_is_a_time_or_none(value: str) -> None:
    seconds = retry_after_s({"Retry-After": value}, NOW)
    assert seconds is None or (seconds >= 0 and math.isfinite(seconds))


@PROPERTY
@given(st.integers(300, 599), JSON, DATES | st.text(max_size=20))
def test_any_refusal_has_a_code(status: int, body: Any, retry_after: str) -> None:
    error = classify(status, body, {"Retry-After": retry_after}, NOW)
    assert error.code
    encode([error.code, error.message, error.after_s, error.response])


VALUES = st.sampled_from(["3.0", "1e30", "1e308", "1e309", "NaN", "-1", "9" * 400, "", "0x1", "é"])
METRICS = st.sampled_from(
    [
        *("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"),
        *("sglang:token_usage", "sglang:num_queue_reqs", "# TYPE vllm:num_requests_running gauge"),
    ]
)
LABELS = st.sampled_from(["", "{}", '{a="b"}', '{a="b"', '{="",}', '{a="\\', '{"a"}', "{{", " "])
PAGES = st.lists(st.builds("{}{} {}".format, METRICS, LABELS, VALUES), max_size=5).map("\n".join)


@PROPERTY
@given(PAGES)
def test_any_page_of_metrics_can_be_told_in_a_heartbeat(page: str) -> None:
    with contextlib.suppress(ValueError):
        can_be_told(read_load(page, {}))
