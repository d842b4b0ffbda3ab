"""Results that are no answers, as errors of the API."""

from typing import Any

from gateway.api.wanted import Wanted
from gateway.exchange.fleet_state import FleetState
from gateway.http.errors import ApiError
from topics import Result, ResultError

_BAD_REQUEST = 400
# Codes of rejections that say what is wrong with the request: its place in the body.
_AT_FAULT = {
    "unknown_task": "shunter.task",
    "unknown_data_class": "shunter.constraints.data_class",
    "conflicting_labels": "shunter.constraints.labels",
}
_PASSING = {"over_share": 429, "pool_unavailable": 503}
_ELSEWHERE = frozenset({"model_not_served", "operation_not_served"})
_REFUSED = frozenset({"request_refused", "content_refused"})


def refusal_of(result: Result, wanted: Wanted, fleet: FleetState) -> ApiError:
    """Return the error for a result that is not completed."""
    error = result.error or ResultError("unknown", "the result does not say why")
    if result.status == "expired":
        return ApiError(504, "deadline_exceeded", error.message, details=error.details)
    if result.status == "cancelled":
        return ApiError(409, "request_cancelled", error.message)
    if _is_too_long(error):
        return _too_long(error, wanted, fleet)
    if result.status == "rejected":
        return _rejected(error, wanted, fleet)
    if error.code in _REFUSED and result.response is not None:
        return _servers_own(result.response.status_code, result.response.body, error)
    return ApiError(502, "upstream_failed", error.message, details=error.details)


def _rejected(error: ResultError, wanted: Wanted, fleet: FleetState) -> ApiError:
    code, message, details = error.code, error.message, error.details
    if code in _AT_FAULT:
        return ApiError(_BAD_REQUEST, code, message, param=_AT_FAULT[code])
    reasons = set((details or {}).values())
    if code == "unknown_model" or (code == "no_pool" and reasons == {"model_not_served"}):
        told = f"the model {wanted.model!r:.140} is none that is served here; see /v1/models"
        return ApiError(404, "model_not_found", told, param="model")
    if code == "no_pool":
        return ApiError(422, "no_pool", message, details=details or {})
    if code == "rate_limited":
        wait_s = fleet.rate_wait_s(wanted.fields["tenant"])
        return ApiError(429, "rate_limit_exceeded", message, retry_after_s=wait_s)
    if code in _PASSING:
        wait_s = fleet.retry_after_s(wanted.fields["model"])
        return ApiError(_PASSING[code], code, message, details=details, retry_after_s=wait_s)
    return ApiError(502, "upstream_failed", message, details=details or {})


def _is_too_long(error: ResultError) -> bool:
    """Return whether each pool that serves the model says that the request is too long."""
    reasons = set((error.details or {}).values()) - _ELSEWHERE
    return reasons == {"context_too_long"} and error.code in {"no_pool", "context_too_long"}


def _too_long(error: ResultError, wanted: Wanted, fleet: FleetState) -> ApiError:
    limit = max((o.context_tokens for o in fleet.options_of(wanted.fields["model"])), default=None)
    told = "" if limit is None else f"This model's maximum context length is {limit} tokens. "
    return ApiError(
        _BAD_REQUEST,
        "context_length_exceeded",
        f"{told}The request is too long for each pool that serves it: {error.message}",
        param="messages" if wanted.operation == "chat" else None,
        details=error.details,
    )


def _servers_own(status: int, body: Any, error: ResultError) -> ApiError:
    """Return a model server's own refusal, in its words."""
    told = body.get("error", body) if isinstance(body, dict) else {}
    if not isinstance(told, dict):
        told = {"message": told}

    def text(name: str) -> str | None:
        value = told.get(name)
        return None if value is None or isinstance(value, dict | list) else str(value)

    return ApiError(
        status,
        text("code") or error.code,
        text("message") or error.message,
        param=text("param"),
        type_=text("type"),
        details=error.details,
    )
