"""Translation of a client's request: its body, its constraints, and what of them is refused."""

from typing import Any

import pytest

from gateway.api.translation import wanted
from gateway.http.bodies import parsed
from gateway.http.errors import ApiError
from topics import parse_request

NOW = 1_800_000_000.0
CHAT = "/v1/chat/completions"
BODY: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def refused(body: dict[str, Any], headers: dict[str, str] | None = None) -> tuple[Any, Any]:
    with pytest.raises(ApiError) as raised:
        wanted(CHAT, body, headers or {}, "acme", NOW)
    assert raised.value.status == 400
    return raised.value.code, raised.value.param


def test_the_value_is_a_request_and_the_body_is_the_servers() -> None:
    own = {"service_tier": "fast", "metadata": {"a": 1}, "store": True, "top_k": 3}
    asked = wanted(CHAT, BODY | own, {"X-Shunter-Deadline": "30s"}, "acme", NOW)
    request = parse_request(asked.value("req_1"), bytes_max=10_000)
    assert request.body == BODY | {"top_k": 3}
    assert (request.tenant, request.service_tier, request.metadata) == (
        "acme",
        "priority",
        {"a": 1},
    )
    assert (request.completion_window, asked.deadline) == ("30s", NOW + 30)


@pytest.mark.parametrize("told", ["2033-05-18T03:33:20Z", "2033-05-18T05:33:20+02:00"])
def test_a_deadline_may_be_a_time(told: str) -> None:
    by_header = wanted(CHAT, BODY, {"X-Shunter-Deadline": told}, "acme", NOW)
    in_body = wanted(CHAT, BODY | {"shunter": {"deadline": told}}, {}, "acme", NOW)
    assert by_header.deadline == in_body.deadline == by_header.fields["deadline"] == 2e9


def test_headers_say_what_the_body_may() -> None:
    headers = {
        "X-Shunter-Regions": "eu-west, us-east",
        "X-Shunter-Labels": "cooling=air",
        "X-Shunter-Max-Cost-Usd": "0.5",
        "X-Shunter-Slo": "ttft_ms=300,tpot_ms=40",
        "X-Shunter-Session": "s",
        "User-Agent": "x",
    }
    constraints = {"regions": ["eu-west", "us-east"], "labels": {"cooling": "air"}}
    told = {"constraints": constraints | {"max_cost_usd": 0.5}, "session": "s"}
    told |= {"slo": {"ttft_ms": 300.0, "tpot_ms": 40.0}}
    by_header = wanted(CHAT, BODY, headers, "acme", NOW)
    in_body = wanted(CHAT, BODY | {"shunter": told}, {}, "acme", NOW)
    both = wanted(CHAT, BODY | {"shunter": told}, headers, "acme", NOW)
    assert by_header.fields == in_body.fields == both.fields
    assert by_header.digest == in_body.digest


def test_a_quote_id_names_the_request_and_what_the_routers_made() -> None:
    token = f"terms.{'x' * 43}"
    taken = wanted(CHAT, BODY | {"shunter": {"quote_id": f"req_1:{token}"}}, {}, "acme", NOW)
    assert (taken.quoted_as, taken.fields["quote_id"], taken.asks_quote) == ("req_1", token, False)
    asks = wanted(CHAT, BODY | {"shunter": {"quote": True, "deadline": "9m"}}, {}, "acme", NOW)
    assert (asks.quoted_as, asks.fields["quote"], asks.asks_quote) == (None, True, True)
    assert wanted(CHAT, BODY, {}, "acme", NOW).asks_quote is False


@pytest.mark.parametrize("wish", [{"quote": True}, {"quote_id": "req_1:t"}])
def test_a_line_of_a_batch_is_not_quoted(wish: dict[str, Any]) -> None:
    with pytest.raises(ApiError, match="a line of a batch is not quoted"):
        wanted(CHAT, BODY | {"shunter": wish}, {}, "acme", NOW, batch=True)


def test_a_digest_is_of_all_that_is_asked_for() -> None:
    same = wanted(CHAT, dict(reversed(BODY.items())), {}, "acme", NOW + 9).digest
    assert wanted(CHAT, BODY, {}, "acme", NOW).digest == same
    others = [
        BODY | {"n": 2},
        BODY | {"shunter": {"deadline": "1s"}},
        BODY | {"metadata": {"a": 1}},
    ]
    assert len({wanted(CHAT, b, {}, "acme", NOW).digest for b in others} | {same}) == 4


@pytest.mark.parametrize(
    ("change", "code", "param"),
    [
        ({"model": None}, "missing_required_parameter", "model"),
        ({"model": 1}, "invalid_type", "model"),
        ({"messages": []}, "invalid_value", "messages"),
        ({"messages": [{}]}, "missing_required_parameter", "messages[0].role"),
        ({"max_tokens": 0}, "invalid_value", "max_tokens"),
        ({"max_tokens": "1"}, "invalid_type", "max_tokens"),
        ({"n": "2"}, "invalid_type", "n"),
        ({"n": 2.0}, "invalid_type", "n"),
        ({"n": True}, "invalid_type", "n"),
        ({"n": 0}, "invalid_value", "n"),
        ({"best_of": "2"}, "invalid_type", "best_of"),
        ({"n": 3, "best_of": 2}, "invalid_value", "best_of"),
        ({"stream": "yes"}, "invalid_type", "stream"),
        ({"service_tier": "gold"}, "invalid_value", "service_tier"),
        ({"metadata": []}, "invalid_type", "metadata"),
        ({"shunter": []}, "invalid_type", "shunter"),
        ({"shunter": {"constrain": {}}}, "unknown_parameter", "shunter.constrain"),
        (
            {"shunter": {"constraints": {"region": []}}},
            "unknown_parameter",
            "shunter.constraints.region",
        ),
        ({"shunter": {"deadline": "soon"}}, "invalid_value", "shunter.deadline"),
        ({"shunter": {"deadline": 1.8e12}}, "invalid_value", "shunter.deadline"),
        ({"shunter": {"slo": {"ttft_ms": "x"}}}, "invalid_type", "shunter.slo.ttft_ms"),
        ({"shunter": {"quote": "yes"}}, "invalid_type", "shunter.quote"),
        ({"shunter": {"quote_id": "of-nothing"}}, "invalid_value", "shunter.quote_id"),
    ],
)
def test_what_is_unfit_is_named(change: dict[str, Any], code: str, param: str) -> None:
    assert refused(BODY | change) == (code, param)


@pytest.mark.parametrize(
    ("name", "value", "code"),
    [
        ("X-Shunter-Region", "eu", "unknown_parameter"),
        ("X-Shunter-Regions", "eu,,us", "invalid_value"),
        ("X-Shunter-Labels", "cooling", "invalid_value"),
        ("X-Shunter-Max-Cost-Usd", "cheap", "invalid_value"),
    ],
)
def test_an_unfit_header_is_named(name: str, value: str, code: str) -> None:
    assert refused(BODY, {name: value}) == (code, name.lower())


@pytest.mark.parametrize("header", [True, False])
def test_a_deadline_that_is_none_tells_what_one_may_be(header: bool) -> None:
    body = BODY if header else BODY | {"shunter": {"deadline": "soon"}}
    headers = {"X-Shunter-Deadline": "soon"} if header else {}
    with pytest.raises(ApiError) as raised:
        wanted(CHAT, body, headers, "acme", NOW)
    told = "deadline: a duration such as 30s, a time in ISO 8601 or epoch seconds is wanted"
    assert raised.value.message == told


def test_body_and_header_may_not_differ() -> None:
    body = BODY | {"shunter": {"constraints": {"regions": ["eu"]}}}
    assert refused(body, {"X-Shunter-Regions": "us"}) == (
        "conflicting_parameters",
        "shunter.constraints.regions",
    )


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{", b'{"a":1,"a":2}', b'{"a":"\\ud800"}', b'{"a":NaN}', b"\xff"]
)
def test_what_is_no_json_object_is_refused(data: bytes) -> None:
    with pytest.raises(ApiError) as raised:
        parsed(data)
    assert (raised.value.status, raised.value.code) == (400, "invalid_json")


def test_what_would_nest_too_deep_in_the_record_is_refused() -> None:
    nested: Any = []
    for _ in range(252):
        nested = [nested]
    assert refused(parsed_body(nested)) == ("invalid_json", None)


def parsed_body(extra: Any) -> dict[str, Any]:
    return BODY | {"x": extra}
