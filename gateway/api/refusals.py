"""Results that are no answers, as errors of the API."""

from typing import Any

from gateway.api.translation import Wanted
from gateway.exchange.fleet_state import FleetState
from gateway.http.errors import ApiError
from topics import Result, ResultError
from topics.openai_api.failures import servers_refusal, status_and_code
from topics.records.refusal_codes import TOO_LONG, TOO_MANY_ANSWERS

# What is wrong with the request: its place in the body, by the code.
_AT_FAULT = {
    "unknown_task": "shunter.task",
    "unknown_data_class": "shunter.constraints.data_class",
    "conflicting_labels": "shunter.constraints.labels",
    "model_not_found": "model",
}
_PASSING = frozenset({429, 503})
_FEWER = (
    "no pool that may serve it writes so many answers of one request, or takes a list as its"
    " prompt: ask for a smaller n, or send prompts one by one, as texts"
)
_NO_REASON = ResultError("unhandled", "the result does not say why")


def refusal_of(result: Result, wanted: Wanted, fleet: FleetState) -> ApiError:
    """Return the error for a result that is not completed.

    Of one that the tenant's rate turned away it takes a turn, so it is asked once for each answer.
    """
    error = result.error or _NO_REASON
    if (refusal := servers_refusal(result)) is not None:
        return _servers_own(refusal.status_code, refusal.body, error)
    status, code = status_and_code(result)
    if code == "context_length_exceeded":
        return _too_long(error, wanted, fleet, is_declared=result.status == "rejected")
    message, details, wait_s = error.message, error.details, None
    headers: dict[str, str] = {}
    if code == "model_not_found":
        message = f"the model {wanted.model!r:.140} is none that is served here; see /v1/models"
        details = None
    elif code == TOO_MANY_ANSWERS:
        message = _FEWER
    elif code == "insufficient_quota":
        if error.retry_at is not None:
            wait_s = error.retry_at - (result.timing.finished_at or error.retry_at)
        else:
            # No window ever has room for it.
            headers["x-should-retry"] = "false"
    elif code == "rate_limit_exceeded":
        wait_s = fleet.rate_turn_s(wanted.fields["tenant"])
    elif status in _PASSING:
        wait_s = fleet.retry_after_s(wanted.fields["model"])
    elif code == "no_pool":
        details = details or {}
    return ApiError(
        status,
        code,
        message,
        param=_AT_FAULT.get(code),
        details=details,
        retry_after_s=wait_s,
        headers=headers,
    )


def _too_long(
    error: ResultError, wanted: Wanted, fleet: FleetState, *, is_declared: bool
) -> ApiError:
    """Return the error; a server that refused it knows a limit of its own, not the declared one."""
    reasons = error.details or {} if is_declared else {}
    limit = max(
        (
            option.context_tokens
            for option in fleet.options_of(wanted.fields["model"])
            if reasons.get(option.pool) in TOO_LONG
        ),
        default=None,
    )
    told = "" if limit is None else f"This model's maximum context length is {limit} tokens. "
    return ApiError(
        400,
        "context_length_exceeded",
        f"{told}The request is too long for each pool that may serve it: {error.message}",
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
