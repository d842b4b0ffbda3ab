"""The request: what is accepted, what is refused, and what a refusal tells and does not tell."""

import json
import re
import time
from typing import Any

import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from policy_cases import BYTES_MAX, PROPERTY

from topics import BadRecordError, InferenceRequest, Progress, decode, duration_s, parse_request
from topics.wire.codec import JSON_DEPTH_MAX

BODY: dict[str, Any] = {"model": "llama", "messages": [{"role": "user", "content": "hi"}]}
SECRET = "the patient has " + "s" * 200


def parse(value: bytes | None, **options: Any) -> InferenceRequest:
    return parse_request(value, **{"bytes_max": BYTES_MAX} | options)


def native(**fields: Any) -> InferenceRequest:
    return parse(json.dumps({"id": "r1", "body": BODY} | fields).encode())


def refusal(value: bytes | None, **options: Any) -> BadRecordError:
    with pytest.raises(BadRecordError) as caught:
        parse(value, **options)
    return caught.value


def refusal_or_none(value: bytes) -> BadRecordError | None:
    try:
        parse(value)
    except BadRecordError as error:
        return error
    return None


def refused(**fields: Any) -> BadRecordError:
    return refusal(json.dumps({"id": "r1", "body": BODY} | fields).encode())


def test_the_smallest_request_gets_the_defaults() -> None:
    found = parse(b'{"id":"r1","body":{"model":"llama"}}')
    assert (found.id, found.model, found.url) == ("r1", "llama", "/v1/chat/completions")
    assert (found.tenant, found.service_tier, found.task) == ("default", "auto", None)
    assert found.constraints.regions is None
    assert found.constraints.exclude_pools == []
    assert found.created_at is None
    assert found.deadline is None


def test_every_field_is_read() -> None:
    fields: dict[str, Any] = {
        "url": "/v1/completions",
        "model": "other",
        "task": "chat",
        "tenant": "acme",
        "created_at": 1_700_000_000,
        "deadline": 1_700_000_100.5,
        "service_tier": "flex",
        "slo": {"ttft_ms": 300, "tpot_ms": 40.5},
        "constraints": {
            "regions": ["eu-west"],
            "precisions": ["fp8"],
            "pools": ["a", "b"],
            "exclude_pools": ["c"],
            "data_class": "regulated",
            "labels": {"cooling": "air"},
            "max_cost_usd": 0.01,
            "max_gco2": 0.5,
        },
        "session": "s",
        "hints": {"input_tokens": 1, "output_tokens": 0, "batchable": True},
        "metadata": {"any": [1, None]},
    }
    found = native(**fields).model_dump()
    del fields["model"]
    assert {name: found[name] for name in fields} == fields
    assert found["model"] == "other"
    assert found["body"] == BODY


def test_the_model_of_the_body_counts_where_the_request_names_none() -> None:
    assert native().model == "llama"
    assert native(model="other").model == "other"


@pytest.mark.parametrize(
    ("body", "limit"),
    [
        ({}, None),
        ({"max_tokens": 5}, 5),
        ({"max_completion_tokens": 6, "max_tokens": 5}, 6),
        ({"max_completion_tokens": None, "max_tokens": 5}, 5),
        ({"max_tokens": None}, None),
    ],
)
def test_the_bodys_own_limit_of_the_reply(body: dict[str, Any], limit: int | None) -> None:
    assert native(body=BODY | body).output_tokens_max == limit


def test_a_line_of_an_openai_batch_file_is_a_request() -> None:
    line = {"custom_id": "c1", "method": "POST", "url": "/v1/embeddings", "body": BODY}
    found = parse(json.dumps(line).encode())
    assert (found.id, found.url, found.model) == ("c1", "/v1/embeddings", "llama")
    assert found.service_tier == "batch"
    assert found.body == BODY
    del line["method"]
    assert parse(json.dumps(line).encode()).model_dump() == found.model_dump()
    assert found.sent == line | {"method": "POST"}


@pytest.mark.parametrize(
    ("change", "names"),
    [
        ({"id": "r1"}, "1 fields that an OpenAI Batch line has not"),
        ({"constraints": {}, "secret": 1}, "2 fields that an OpenAI Batch line has not"),
        ({"metadata": 1}, "metadata: must be an object"),
        ({"shunter": []}, "shunter: must be an object"),
        ({"shunter": {"wishes": 1}}, "shunter: has a name that is not a field of a request"),
        ({"shunter": {"constraints": {"wishes": 1}}}, "constraints"),
        ({"shunter": {"tenant": "a"}, "metadata": {"tenant": "b"}}, "tenant: said twice"),
        ({"shunter": {"region": "a", "regions": ["b"]}}, "regions: said twice"),
        ({"shunter": {"deadline": "soon"}}, "completion_window"),
        ({"shunter": {"deadline": 5, "completion_window": "1h"}}, "not both"),
        ({"body": BODY | {"metadata": {"shunter_wishes": "1"}}}, "body.metadata: has a name"),
        ({"method": "GET"}, "method: it is not 'POST'"),
        ({"method": None}, "method"),
        ({"url": None}, "url"),
        ({"url": "v1"}, "url"),
        ({"body": None}, "body"),
        ({"body": {}}, "model"),
        ({"custom_id": 5}, "id"),
        ({"custom_id": ""}, "id"),
    ],
)
def test_a_batch_line_has_its_fields_and_no_other(change: dict[str, Any], names: str) -> None:
    line = {"custom_id": "c1", "method": "POST", "url": "/v1/embeddings", "body": BODY}
    error = refusal(json.dumps(line | change).encode())
    assert (error.stage, error.reason) == ("validate", "invalid_request")
    assert names in error.message


def line_of(**fields: Any) -> InferenceRequest:
    line = {"custom_id": "c1", "method": "POST", "url": "/v1/chat/completions", "body": BODY}
    return parse(json.dumps(line | fields).encode())


NATIVE_WISHES = {
    "tenant": "acme",
    "completion_window": "2h",
    "service_tier": "flex",
    "slo": {"ttft_ms": 300.0, "tpot_ms": 40.5},
    "hints": {"input_tokens": 7, "batchable": True},
    "constraints": {
        "regions": ["eu-west", "eu-north"],
        "exclude_pools": ["x"],
        "labels": {"cooling": "1"},
        "max_cost_usd": 0.01,
    },
}
WISHES_AS_TEXTS = {
    "tenant": "acme",
    "deadline": "2h",
    "tier": "flex",
    "slo": "ttft_ms=300,tpot_ms=40.5",
    "hints": "input_tokens=7,batchable=true",
    "region": "eu-west, eu-north",
    "exclude_pools": "x",
    "labels": "cooling=1",
    "max_cost_usd": "0.01",
}


@pytest.mark.parametrize(
    "line",
    [
        {"shunter": NATIVE_WISHES},
        {"metadata": NATIVE_WISHES},
        {"shunter": WISHES_AS_TEXTS},
        {"metadata": WISHES_AS_TEXTS | {"own": "untouched"}},
        {"shunter": NATIVE_WISHES, "metadata": WISHES_AS_TEXTS},
        {"body": BODY | {"metadata": {f"shunter_{n}": v for n, v in WISHES_AS_TEXTS.items()}}},
    ],
)
def test_a_batch_line_says_what_a_request_may(line: dict[str, Any]) -> None:
    found, wanted = line_of(**line), native(**NATIVE_WISHES)
    for name in NATIVE_WISHES:
        assert getattr(found, name) == getattr(wanted, name)
    assert found.metadata == line.get("metadata", line.get("body", {}).get("metadata"))


def test_other_names_in_the_metadata_of_a_body_are_the_clients_own() -> None:
    found = line_of(body=BODY | {"metadata": {"tenant": "mine", "region": "north"}})
    assert (found.tenant, found.constraints.regions) == ("default", None)
    assert found.metadata == {"tenant": "mine", "region": "north"}


@pytest.mark.parametrize(
    ("told", "deadline"),
    [
        ("1790000000.5", 1_790_000_000.5),
        ("2033-05-18T03:33:20Z", 2e9),
        ("2033-05-18T05:33:20.5+02:00", 2e9 + 0.5),
        ("2033-05-18", 2e9 - 12_800),
    ],
)
def test_a_deadline_that_is_a_time_may_be_text(told: str, deadline: float) -> None:
    assert line_of(metadata={"deadline": told}).deadline == deadline
    assert line_of(shunter={"deadline": told}).deadline == deadline


@pytest.mark.parametrize(
    ("told", "tier", "native_tier"),
    [
        ("flex", "flex", "flex"),
        ("default", "default", "default"),
        ("fast", "priority", "priority"),
        ("auto", "batch", "auto"),
        ("another", "batch", "auto"),
        (None, "batch", "auto"),
        (7, "batch", "auto"),
    ],
)
def test_the_tier_of_the_body_counts(told: Any, tier: str, native_tier: str) -> None:
    body = BODY | {"service_tier": told}
    assert line_of(body=body).service_tier == tier
    assert native(body=body).service_tier == native_tier
    assert line_of(body=body, shunter={"tier": "priority"}).service_tier == "priority"
    assert native(body=body, service_tier="batch").service_tier == "batch"


def test_a_batch_line_without_url_names_it() -> None:
    assert refusal(b'{"custom_id":"c","body":{"model":"m"}}').message.startswith("url: ")


def test_the_id_of_a_cloud_event_counts_where_the_value_has_none() -> None:
    assert parse(b'{"body":{"model":"m"}}', default_id="ce").id == "ce"
    assert parse(b'{"id":"own","body":{"model":"m"}}', default_id="ce").id == "own"
    line = b'{"custom_id":"c1","url":"/v1/embeddings","body":{"model":"m"}}'
    assert parse(line, default_id="ce").id == "c1"
    assert refusal(b'{"body":{"model":"m"}}', default_id="").message.startswith("id: ")
    assert refusal(b'{"body":{"model":"m"}}', default_id="x" * 129).message.startswith("id: ")
    assert refusal(b'{"body":{"model":"m"}}').message.startswith("id: ")


@pytest.mark.parametrize("value", [None, b""])
def test_an_empty_value_is_no_request(value: bytes | None) -> None:
    error = refusal(value)
    assert (error.stage, error.reason) == ("decode", "empty_value")


def test_size_is_limited_to_the_byte() -> None:
    value = b'{"id":"r1","body":{"model":"llama"}}'
    assert parse(value, bytes_max=len(value)).id == "r1"
    error = refusal(value, bytes_max=len(value) - 1)
    assert (error.stage, error.reason) == ("decode", "too_large")
    assert f"{len(value):,} bytes" in error.message
    assert "SHUNTER_REQUEST_BYTES_MAX" in error.message


@pytest.mark.parametrize(
    "value",
    [
        b" ",
        b"nonsense",
        b"{",
        b'{"id":"r1",}',
        b"{'id':'r1'}",
        b'{"id":"r1","body":{"model":"m"}} x',
        b'{"id":"r1","body":{"model":"m"},"deadline":NaN}',
        b'{"id":"r1","body":{"model":"m"},"deadline":Infinity}',
        b'{"id":"r1","body":{"model":"m"},"deadline":1e999}',
        b'{"id":"r1","body":{"model":"m"},"tenant":"\xff"}',
        b'{"id":"r1","body":{"model":"m"},"tenant":"\\ud800"}',
        b'\xef\xbb\xbf{"id":"r1","body":{"model":"m"}}',
        '{"id":"r1","body":{"model":"m"}}'.encode("utf-16"),
        b"\x00\x01\x02",
    ],
)
def test_what_is_not_utf_8_json_is_refused(value: bytes) -> None:
    error = refusal(value)
    assert (error.stage, error.reason) == ("decode", "not_json")


@pytest.mark.parametrize("value", [b"null", b"1", b'"r1"', b"[]", b"true"])
def test_json_that_is_no_object_is_refused(value: bytes) -> None:
    error = refusal(value)
    assert (error.stage, error.reason) == ("decode", "not_an_object")


def nested(levels: int, field: str = "metadata") -> bytes:
    deep = b"[" * levels + b"]" * levels
    return b'{"id":"r1","body":{"model":"m"},"%b":%b}' % (field.encode(), deep)


@pytest.mark.parametrize("levels", [JSON_DEPTH_MAX, 500, 10_000, 1_000_000])
@pytest.mark.parametrize("wrap", [nested, lambda n: b"[" * n, lambda n: b'{"a":' * n + b"1"])
def test_deep_nesting_is_refused(levels: int, wrap: Any) -> None:
    error = refusal(wrap(levels))
    assert error.stage == "decode"
    assert error.reason in {"too_deep", "not_json"}


def test_nesting_that_can_be_written_again_is_accepted() -> None:
    found = parse(nested(JSON_DEPTH_MAX - 1))
    assert orjson.loads(orjson.dumps({"metadata": found.metadata}))["metadata"] == found.metadata
    assert refusal(nested(JSON_DEPTH_MAX)).reason == "too_deep"


def test_brackets_in_text_are_no_nesting() -> None:
    assert native(metadata="[{" * 5_000).id == "r1"


ONCE = '"id":"r1","body":{"model":"m","max_tokens":5}'


@pytest.mark.parametrize(
    ("value", "field"),
    [
        ('{"id":"r2",%s}', "id"),
        ('{"id" : "r2" , %s}', "id"),
        ('{%s,"\\u0069d":"r2"}', "id"),
        ('{"\\u0069\\u0064":"r2",%s}', "id"),
        ('{%s,"body":{"model":"n"}}', "body"),
        ('{%s,"tenant":"a","tenant":"b"}', "tenant"),
        ('{%s,"tenant":"a","tenant":"a"}', "tenant"),
        ('{%s,"constraints":{},"constraints":{"regions":[]}}', "constraints"),
        ('{%s,"constraints":{"regions":["a"],"regions":["b"]}}', "regions"),
        ('{%s,"constraints":{"regions":["a"],"region\\u0073":["b"]}}', "regions"),
        ('{%s,"constraints":{"pools":["a"],"regions":[],"pools":["b"]}}', "pools"),
        ('{%s,"constraints":{"max_cost_usd":1,"max_cost_usd":2}}', "max_cost_usd"),
        ('{%s,"constraints":{"labels":{"cooling":"air","cooling":"liquid"}}}', None),
        ('{%s,"constraints":{"labels":{"a/b":"1","a\\/b":"2"}}}', None),
        ('{%s,"slo":{"ttft_ms":1,"ttft_ms":2}}', "ttft_ms"),
        ('{%s,"hints":{"input_tokens":1,"input_tokens":2}}', "input_tokens"),
        ('{%s,"task":"x","body":{"model":"m","max_tokens":1,"max_tokens":2}}', "max_tokens"),
        ('{"id":"r1","body":{"model":"m","messages":[],"messages":[1]}}', "messages"),
        ('{"custom_id":"a","custom_id":"b","url":"/v1/x","body":{"model":"m"}}', "custom_id"),
    ],
)
def test_a_field_that_stands_twice_is_refused(value: str, field: str | None) -> None:
    error = refusal((value % ONCE if "%s" in value else value).encode())
    assert (error.stage, error.reason) == ("decode", "duplicate_field")
    # What is no field of the contract is the client's own word.
    told = "a field" if field is None else f"the field {field!r}"
    assert error.message == f"{told} stands twice"


def test_the_same_name_in_different_objects_is_no_duplicate() -> None:
    body = BODY | {"tools": [{"id": "1", "model": "x"}, {"id": "2", "model": "x"}]}
    assert native(body=body, model="other", metadata={"id": "r1"}).model == "other"


def test_escapes_without_duplicates_are_accepted() -> None:
    value = b'{"\\u0069d":"r\\u0031","body":{"model":"m"},"metadata":"\\u00e9\\"id\\":"}'
    found = parse(value)
    assert (found.id, found.metadata) == ("r1", 'é"id":')


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        ({"id": None}, "id"),
        ({"id": 1}, "id"),
        ({"id": ""}, "id"),
        ({"id": "x" * 129}, "id"),
        ({"id": ["r1"]}, "id"),
        ({"body": None}, "body"),
        ({"body": []}, "body"),
        ({"body": "text"}, "body"),
        ({"body": {}}, "model"),
        ({"body": {"model": None}}, "model"),
        ({"body": {"model": 5}}, "model"),
        ({"model": ""}, "model"),
        ({"url": 1}, "url"),
        ({"url": "v1/chat"}, "url"),
        ({"url": "/" + "x" * 128}, "url"),
        ({"url": "/a b"}, "url"),
        ({"url": "/a\n"}, "url"),
        ({"task": ""}, "task"),
        ({"tenant": None}, "tenant"),
        ({"tenant": "x" * 129}, "tenant"),
        ({"created_at": -1}, "created_at"),
        ({"created_at": "now"}, "created_at"),
        ({"created_at": 1_700_000_000_000}, "created_at"),
        ({"created_at": True}, "created_at"),
        ({"deadline": -0.5}, "deadline"),
        ({"deadline": 1e300}, "deadline"),
        ({"deadline": [1]}, "deadline"),
        ({"completion_window": 10}, "completion_window"),
        ({"completion_window": "-1m"}, "completion_window"),
        ({"completion_window": "10"}, "completion_window"),
        ({"completion_window": "10m\n"}, "completion_window"),
        ({"completion_window": "1e3s"}, "completion_window"),
        ({"completion_window": "1.s"}, "completion_window"),
        ({"completion_window": "10w"}, "completion_window: it is no duration such as 90s"),
        ({"completion_window": "٣m"}, "completion_window"),
        ({"completion_window": "\U00011f50m"}, "completion_window"),
        ({"completion_window": "999999999d"}, "completion_window"),
        ({"completion_window": "1m", "deadline": 1}, "completion_window"),
        ({"service_tier": "gold"}, "service_tier"),
        ({"service_tier": None}, "service_tier"),
        ({"slo": {"ttft_ms": 0}}, "slo.ttft_ms"),
        ({"slo": {"ttft_ms": -1}}, "slo.ttft_ms"),
        ({"slo": {"tpot_ms": "40"}}, "slo.tpot_ms"),
        ({"slo": {"tpot_ms": 1e12}}, "slo.tpot_ms"),
        ({"slo": {"e2e_ms": 1}}, "slo: it has a field that is none of tpot_ms, ttft_ms"),
        ({"slo": []}, "slo"),
        (
            {"constraints": {"region": ["eu"]}},
            "constraints: it has a field that is none of data_class, exclude_pools",
        ),
        ({"constraints": {"regions": "eu"}}, "constraints.regions"),
        ({"constraints": {"regions": [1]}}, "constraints.regions.0"),
        ({"constraints": {"regions": [""]}}, "constraints.regions.0"),
        ({"constraints": {"pools": ["p"] * 65}}, "constraints.pools"),
        ({"constraints": {"exclude_pools": None}}, "constraints.exclude_pools"),
        ({"constraints": {"precisions": {}}}, "constraints.precisions"),
        ({"constraints": {"data_class": 1}}, "constraints.data_class"),
        ({"constraints": {"labels": {"a": 1}}}, "constraints.labels.?: Input should"),
        ({"constraints": {"labels": []}}, "constraints.labels"),
        (
            {"constraints": {"labels": {str(i): "x" for i in range(17)}}},
            "constraints.labels",
        ),
        ({"constraints": {"max_cost_usd": -0.01}}, "constraints.max_cost_usd"),
        ({"constraints": {"max_cost_usd": "1"}}, "constraints.max_cost_usd"),
        ({"constraints": None}, "constraints"),
        ({"session": ""}, "session"),
        ({"hints": {"input_tokens": -1}}, "hints.input_tokens"),
        ({"hints": {"input_tokens": 1.5}}, "hints.input_tokens"),
        ({"hints": {"output_tokens": 10**9}}, "hints.output_tokens"),
        ({"hints": {"output_tokens": 10**30}}, "hints.output_tokens"),
        ({"hints": {"batchable": 1}}, "hints.batchable"),
        ({"body": BODY | {"max_tokens": 0}}, "body.max_tokens"),
        ({"body": BODY | {"max_tokens": -1}}, "body.max_tokens"),
        ({"body": BODY | {"max_tokens": True}}, "body.max_tokens"),
        ({"body": BODY | {"max_tokens": "5"}}, "body.max_tokens"),
        ({"body": BODY | {"max_completion_tokens": 10**8}}, "body.max_completion_tokens"),
        ({"body": BODY | {"max_completion_tokens": 1.5}}, "body.max_completion_tokens"),
        ({"body": BODY | {"stream": "yes"}}, "body.stream"),
        ({"priority": 1}, "record: it has a field that is none of body, completion_window"),
        ({"method": "POST"}, "record: it has a field that is none of"),
    ],
)
def test_a_bad_field_is_refused_by_its_name(fields: dict[str, Any], names: str) -> None:
    error = refused(**fields)
    assert (error.stage, error.reason) == ("validate", "invalid_request")
    assert re.search(rf"(^|; |: |\b){re.escape(names)}\b", error.message), error.message
    assert str(error) == error.message


def test_missing_fields_are_named() -> None:
    message = refusal(b"{}").message
    assert all(f"{field}: " in message for field in ("id", "body", "model"))


@pytest.mark.parametrize(
    "fields",
    [
        {"tenant": SECRET},
        {SECRET: 1},
        {"constraints": {"labels": {SECRET: "x"}}},
        {"constraints": {"labels": {"a": SECRET}}},
        {"constraints": {SECRET: 1}},
        {"slo": SECRET},
        {"service_tier": SECRET},
        {"completion_window": SECRET},
        {"deadline": SECRET},
        {"url": SECRET},
        {"body": SECRET},
        {"body": {"model": SECRET}},
        {"body": BODY | {"max_tokens": SECRET}},
        {"body": BODY | {"stream": [SECRET]}},
        {"custom_id": "c", "url": "/v1/x", SECRET: 1},
        {"custom_id": "c", "url": "/v1/x", "id": 1, "method": SECRET},
    ],
)
def test_refusals_do_not_show_the_payload(fields: dict[str, Any]) -> None:
    if "custom_id" in fields:
        line = {"body": BODY} | {k: v for k, v in fields.items() if k != "id"}
        message = refusal(json.dumps(line).encode()).message
    else:
        message = refused(**fields).message
    assert SECRET[:41] not in message


def test_a_long_field_that_stands_twice_is_not_shown_in_full() -> None:
    value = f'{{{ONCE},"metadata":{{"{SECRET}":1,"{SECRET}":2}}}}'.encode()
    error = refusal(value)
    assert error.reason == "duplicate_field"
    assert SECRET[:41] not in error.message


@pytest.mark.parametrize(
    "value",
    [
        b'{"id":"r","body":{"model":"m"},"metadata":{%b,"k0":1}}'
        % b",".join(b'"k%d":1' % i for i in range(150_000)),
        b'{"id":"r","body":{"model":"m"},"metadata":[%b]}' % b",".join([b"{}"] * 500_000),
        b'{"id":"r","body":{"model":"m"},"metadata":"%b"}' % (b'\\"id\\":' * 400_000),
        b'{"id":"r","body":{"model":"m","max_tokens":[%b]}}' % b",".join([b"1"] * 500_000),
        b"\\u0069" * 500_000,
    ],
)
def test_large_and_hostile_values_are_decided_on_quickly(value: bytes) -> None:
    begin_s = time.process_time()
    error = refusal_or_none(value)
    assert time.process_time() - begin_s < 1.0
    assert error is None or len(error.message) < 500


def read_or_refused(value: bytes) -> None:
    error = refusal_or_none(value)
    if error:
        assert error.stage in {"decode", "validate"}
        assert 0 < len(error.message) < 1_000
    else:
        found = parse(value)
        assert 1 <= len(found.id) <= 128
        assert orjson.loads(orjson.dumps(found.model_dump()))["id"] == found.id


@PROPERTY
@given(value=st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
@example(value=b'{"id":"\x00"}')
def test_any_bytes_are_a_request_or_refused(value: bytes) -> None:
    read_or_refused(value)


KEYS = st.sampled_from(
    [*InferenceRequest.model_fields, "custom_id", "method", "ttft_ms", "regions", "labels",
     "input_tokens", "max_tokens", "max_completion_tokens", "stream", "messages", "content"]
) | st.text(max_size=4)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=10)
    | st.sampled_from(["r1", "/v1/embeddings", "10m", "flex", "POST", "llama"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)


@PROPERTY
@given(tree=st.dictionaries(KEYS, TREES, max_size=6), escape=st.booleans())
def test_any_object_is_a_request_or_refused(tree: dict[str, Any], escape: bool) -> None:
    whole = {"id": "r1", "body": {"model": "m"}} | tree
    value = json.dumps(whole) if escape else orjson.dumps(whole, option=0).decode()
    read_or_refused(value.encode())


@PROPERTY
@given(number=st.integers(0, 10**5), unit=st.sampled_from(["ms", "s", "m", "h"]))
def test_any_accepted_window_is_a_duration(number: int, unit: str) -> None:
    try:
        text = native(completion_window=f"{number}{unit}").completion_window
    except BadRecordError:
        assert number * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit] > 366 * 86400
    else:
        assert text is not None
        assert duration_s(text) == number * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("10m", 600), ("24h", 86400), ("1.5h", 5400), ("250ms", 0.25), ("7d", 604800)],
)
def test_durations(text: str, seconds: float) -> None:
    assert duration_s(text) == seconds
    assert native(completion_window=text).completion_window == text


def test_requests_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        native().__setattr__("id", "r2")


def test_further_progress_wins() -> None:
    behind, ahead = Progress(3, (5,)), Progress(4)
    assert behind.further(ahead) is ahead
    assert ahead.further(behind) is ahead
    assert ahead.further(None) is ahead
    assert behind.further(Progress(3)) is behind


def test_a_record_that_is_not_what_its_topic_promises() -> None:
    assert decode(Progress, b'{"next_offset":3,"finished":[5]}') == Progress(3, (5,))
    with pytest.raises(BadRecordError) as caught:
        decode(Progress, b'{"next_offset":"three"}')
    assert (caught.value.reason, caught.value.stage) == ("invalid_record", "validate")
    assert "next_offset" in caught.value.message
    with pytest.raises(BadRecordError) as caught:
        decode(Progress, b"{")
    assert (caught.value.reason, caught.value.stage) == ("not_json", "decode")
