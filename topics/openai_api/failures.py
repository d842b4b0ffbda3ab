"""The HTTP status and the error object of a result without an answer."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from topics.records.refusal_codes import RULED_OUT, TOO_LONG, TOO_MANY_ANSWERS
from topics.records.result import Response, Result, ResultError

_TYPES: dict[int, str] = {
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
}
_SERVERS_FAULT = 500
_ENDED = {
    "expired": (HTTPStatus.GATEWAY_TIMEOUT, "deadline_exceeded"),
    "cancelled": (HTTPStatus.CONFLICT, "request_cancelled"),
}
# By the code of a rejection; with another one no pool may serve it, as a rule of the policy says.
_REJECTED = {
    "unknown_model": (HTTPStatus.NOT_FOUND, "model_not_found"),
    "operation_not_served": (HTTPStatus.NOT_FOUND, "operation_not_served"),
    "unknown_task": (HTTPStatus.BAD_REQUEST, "unknown_task"),
    "unknown_data_class": (HTTPStatus.BAD_REQUEST, "unknown_data_class"),
    "conflicting_labels": (HTTPStatus.BAD_REQUEST, "conflicting_labels"),
    "key_required": (HTTPStatus.FORBIDDEN, "key_required"),
    "key_of_another_tenant": (HTTPStatus.FORBIDDEN, "key_of_another_tenant"),
    "pool_unavailable": (HTTPStatus.SERVICE_UNAVAILABLE, "pool_unavailable"),
    "rate_limited": (HTTPStatus.TOO_MANY_REQUESTS, "rate_limit_exceeded"),
    "over_share": (HTTPStatus.TOO_MANY_REQUESTS, "over_share"),
    "budget": (HTTPStatus.TOO_MANY_REQUESTS, "insufficient_quota"),
}
_REFUSED = frozenset({"request_refused", "content_refused"})
# Codes of results whose details say what kept a request from each pool.
_BY_POOL = frozenset({"no_pool", "context_too_long", TOO_MANY_ANSWERS})
_BY_AN_EXTENSION = "extension:"
_UNHANDLED = ResultError("unhandled", "the request has neither answer nor reason")


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
    if (refusal := servers_refusal(result)) is not None:
        return Failure(refusal.status_code, refusal.body)
    error = result.error or _UNHANDLED
    status, code = status_and_code(result)
    return Failure(status, error_body(status, code, error.message, error.details))


def servers_refusal(result: Result) -> Response | None:
    """Return the answer of a model server that refused the request itself; None if none did."""
    is_refused = result.error is not None and result.error.code in _REFUSED
    return result.response if is_refused else None


def status_and_code(result: Result) -> tuple[int, str]:
    """Return the HTTP status and the code of a result without an answer."""
    if result.status in _ENDED:
        return _ENDED[result.status]
    error = result.error or _UNHANDLED
    if error.code == "unhandled":
        return HTTPStatus.INTERNAL_SERVER_ERROR, "internal_error"
    reasons = set((error.details or {}).values())
    if error.code in _BY_POOL and (at_fault := _at_fault(reasons)) is not None:
        return HTTPStatus.BAD_REQUEST, at_fault
    if result.status == "failed":
        return HTTPStatus.BAD_GATEWAY, "upstream_failed"
    if error.code == "no_pool" and reasons == {"model_not_served"}:
        return HTTPStatus.NOT_FOUND, "model_not_found"
    return _REJECTED.get(error.code, (HTTPStatus.UNPROCESSABLE_ENTITY, error.code))


def _at_fault(reasons: set[str]) -> str | None:
    """Return the code of a request that asks too much of each pool that may serve it, else None."""
    why = {each for each in reasons - RULED_OUT if not each.startswith(_BY_AN_EXTENSION)}
    if not why or not why <= TOO_LONG | {TOO_MANY_ANSWERS}:
        return None
    return "context_length_exceeded" if why <= TOO_LONG else TOO_MANY_ANSWERS


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
