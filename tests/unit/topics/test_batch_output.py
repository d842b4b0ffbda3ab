"""Results in OpenAI's words: status and error of each end, and lines of Batch output."""

import json
from dataclasses import replace
from typing import Any, get_args

import pytest
from client_commands import result

from topics import Response, ResultError
from topics.openai_api.batch_output import error_line, line_of_result
from topics.openai_api.failures import failure_of
from topics.records import refusal_codes
from topics.records.refusal_codes import PASSING, RULED_OUT, Refusal

TOO_LONG = "context_length_exceeded"
TOO_MANY = "too_many_answers"


def ended(status: str, code: str, details: dict[str, str] | None = None, **fields: Any) -> Any:
    error = ResultError(code, "why", details)
    return replace(result("r", status), response=None, error=error, **fields)


@pytest.mark.parametrize(
    ("found", "status", "code"),
    [
        (ended("rejected", "unknown_model"), 404, "model_not_found"),
        (ended("rejected", "unknown_task"), 400, "unknown_task"),
        (ended("rejected", "operation_not_served"), 404, "operation_not_served"),
        (ended("rejected", "no_pool", {"a": "region", "b": "model_not_served"}), 422, "no_pool"),
        (ended("rejected", "no_pool", {"a": "model_not_served"}), 404, "model_not_found"),
        (
            ended("rejected", "no_pool", {"a": "context_too_long", "b": "model_not_served"}),
            400,
            "context_length_exceeded",
        ),
        (ended("rejected", "no_pool", {"a": "context_too_long", "b": "quality"}), 400, TOO_LONG),
        (ended("rejected", "no_pool", {"a": "memory", "b": "extension:tenancy"}), 400, TOO_LONG),
        (ended("failed", "no_pool", {"a": "context_too_long", "b": "region"}), 400, TOO_LONG),
        (
            ended("failed", "context_too_long", {"a": "timeout", "b": "context_too_long"}),
            502,
            "upstream_failed",
        ),
        (ended("rejected", "no_pool"), 422, "no_pool"),
        (ended("rejected", "pool_unavailable"), 503, "pool_unavailable"),
        (ended("rejected", "rate_limited"), 429, "rate_limit_exceeded"),
        (ended("rejected", "over_share"), 429, "over_share"),
        (ended("rejected", "unhandled"), 500, "internal_error"),
        (ended("rejected", "of a plugin"), 422, "of a plugin"),
        (ended("rejected", "outside_bound"), 422, "outside_bound"),
        (ended("rejected", "key_required"), 403, "key_required"),
        (ended("failed", "context_too_long", {"a": "context_too_long"}), 400, TOO_LONG),
        (ended("failed", "no_pool", {"a": TOO_MANY, "b": "region"}), 400, TOO_MANY),
        (ended("failed", TOO_MANY, {"a": "context_too_long", "b": TOO_MANY}), 400, TOO_MANY),
        (ended("failed", TOO_MANY, {"a": "timeout", "b": TOO_MANY}), 502, "upstream_failed"),
        (ended("failed", "timeout", {"a": "timeout"}), 502, "upstream_failed"),
        (ended("expired", "deadline_passed"), 504, "deadline_exceeded"),
        (ended("cancelled", "cancelled"), 409, "request_cancelled"),
    ],
)
def test_each_end_has_its_status_and_code(found: Any, status: int, code: str) -> None:
    failure = failure_of(found)
    assert failure is not None
    assert (failure.status_code, failure.body["error"]["code"]) == (status, code)
    assert failure.body["error"]["message"] == "why"
    assert failure.body["error"].get("details") == found.error.details


def test_each_hard_constraint_is_known_not_to_be_a_servers_failure() -> None:
    assert set(get_args(Refusal)) - set(PASSING) == RULED_OUT | refusal_codes.TOO_LONG


def test_an_answer_is_no_failure() -> None:
    assert failure_of(result("r")) is None


def test_a_servers_own_refusal_is_passed_on() -> None:
    theirs = {"error": {"message": "no", "code": "theirs"}}
    found = ended("failed", "request_refused")
    line, is_error = line_of_result(replace(found, response=Response(418, theirs)), "mine")
    said = json.loads(line)
    assert is_error
    assert said["response"] == {"status_code": 418, "request_id": "r", "body": theirs}
    assert (said["custom_id"], said["error"]) == ("mine", None)


def test_a_line_of_an_answer() -> None:
    line, is_error = line_of_result(result("r"))
    said = json.loads(line)
    assert not is_error
    assert said["id"].startswith("batch_req_")
    assert said["custom_id"] == "r"
    assert said["response"] == {
        "status_code": 200,
        "request_id": "r",
        "body": {"answer": "forty-two"},
    }
    assert said["error"] is None
    assert said["shunter"]["placement"]["pool"] == "lpddr-eu"
    assert said["shunter"]["cost"]["usd"] == 0.0000123
    assert json.loads(line_of_result(result("r"))[0])["id"] == said["id"]
    assert json.loads(line_of_result(result("s"))[0])["id"] != said["id"]


def test_a_line_names_the_model_that_was_asked_for() -> None:
    body = {"id": "x", "model": "llama-3.1-8b-int8", "choices": []}
    answered = replace(result("r"), response=Response(200, body), model="llama-3.1-8b")
    said = json.loads(line_of_result(answered)[0])
    assert list(said["response"]["body"].items()) == [
        ("id", "x"),
        ("model", "llama-3.1-8b"),
        ("choices", []),
    ]
    assert said["shunter"]["placement"]["model_variant"] == "llama-3.1-8b-int8"
    before = json.loads(line_of_result(replace(answered, model=None))[0])
    assert before["response"]["body"] == body
    theirs = {"error": {"code": "theirs"}}
    refused = replace(
        ended("failed", "request_refused"), response=Response(418, theirs), model="llama-3.1-8b"
    )
    assert json.loads(line_of_result(refused)[0])["response"]["body"] == theirs


@pytest.mark.parametrize("status", ["expired", "cancelled"])
def test_what_never_ended_has_no_response(status: str) -> None:
    line, is_error = line_of_result(ended(status, "x"))
    said = json.loads(line)
    assert is_error
    assert said["response"] is None
    assert said["error"]["code"] == f"batch_{status}"
    assert said["error"]["message"].startswith("This request")


def test_a_line_without_a_result() -> None:
    said = json.loads(error_line("r", "c", "not_json", "it is none"))
    assert said == {
        "id": said["id"],
        "custom_id": "c",
        "response": None,
        "error": {"code": "not_json", "message": "it is none"},
    }
