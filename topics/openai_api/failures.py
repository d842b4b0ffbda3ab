"""The HTTP status and the error object of a result without an answer."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from topics.records.refusal_codes import RULED_OUT, TOO_LONG
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
    if error.code in {"no_pool", "context_too_long"} and _is_too_long(reasons):
        return HTTPStatus.BAD_REQUEST, "context_length_exceeded"
    if result.status == "failed":
        return HTTPStatus.BAD_GATEWAY, "upstream_failed"
    if error.code == "no_pool" and reasons == {"model_not_served"}:
        return HTTPStatus.NOT_FOUND, "model_not_found"
    return _REJECTED.get(error.code, (HTTPStatus.UNPROCESSABLE_ENTITY, error.code))


def _is_too_long(reasons: set[str]) -> bool:
    """Return True if a request is too long for each pool that may serve it, and there is one."""
    others = {each for each in reasons - TOO_LONG if not each.startswith(_BY_AN_EXTENSION)}
    return not reasons.isdisjoint(TOO_LONG) and others <= RULED_OUT


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
