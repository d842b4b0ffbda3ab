"""The HTTP status and the error object of a result without an answer."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from topics.records.result import Result, ResultError

_TYPES = {404: "not_found_error", 429: "rate_limit_error"}
_SERVERS_FAULT = 500
# By the code of a rejection; another one is the server's fault.
_REJECTED = {
    "unknown_model": (404, "model_not_found"),
    "unknown_task": (400, "unknown_task"),
    "unknown_data_class": (400, "unknown_data_class"),
    "conflicting_labels": (400, "conflicting_labels"),
    "pool_unavailable": (503, "pool_unavailable"),
    "rate_limited": (429, "rate_limit_exceeded"),
    "over_share": (429, "over_share"),
}


@dataclass(frozen=True, slots=True)
class Failure:
    """An answer that says why there is none: ``status_code`` of HTTP, and its body."""

    status_code: int
    body: Any


def failure_of(result: Result) -> Failure | None:
    """Return what an OpenAI-compatible server answers to a request that ended so.

    None for a result that has its answer. A model server's own refusal is passed on as it came.
    """
    if result.status == "completed":
        return None
    error = result.error or ResultError("unhandled", "the request has neither answer nor reason")
    if result.response is not None:
        return Failure(result.response.status_code, result.response.body)
    status, code = _status_and_code(result, error)
    return Failure(status, error_body(status, code, error.message, error.details))


def _status_and_code(result: Result, error: ResultError) -> tuple[int, str]:
    if result.status == "expired":
        return HTTPStatus.GATEWAY_TIMEOUT, "deadline_exceeded"
    if result.status == "cancelled":
        return HTTPStatus.CONFLICT, "request_cancelled"
    if error.code == "unhandled":
        return HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error"
    if result.status == "failed":
        return HTTPStatus.BAD_GATEWAY, "upstream_failed"
    if error.code == "no_pool":
        return _no_pool(error)
    return _REJECTED.get(error.code, (HTTPStatus.INTERNAL_SERVER_ERROR, error.code))


def _no_pool(error: ResultError) -> tuple[int, str]:
    reasons = set((error.details or {}).values())
    if reasons == {"model_not_served"}:
        return HTTPStatus.NOT_FOUND, "model_not_found"
    if reasons - {"model_not_served"} == {"context_too_long"}:
        return HTTPStatus.BAD_REQUEST, "context_length_exceeded"
    return HTTPStatus.UNPROCESSABLE_ENTITY, "no_pool"


def error_body(
    status: int, code: str, message: str, details: dict[str, str] | None = None
) -> dict[str, Any]:
    """Return OpenAI's error object; ``details`` is a reason code by pool."""
    default = "server_error" if status >= _SERVERS_FAULT else "invalid_request_error"
    error: dict[str, Any] = {
        "message": message,
        "type": _TYPES.get(status, default),
        "param": None,
        "code": code,
    }
    if details is not None:
        error["details"] = details
    return {"error": error}
