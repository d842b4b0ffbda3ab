"""A result as a line of an OpenAI Batch output or error file."""

import hashlib
from typing import Any

import orjson

from topics.openai_api.failures import failure_of
from topics.records.result import Result

EXPIRED = "batch_expired"
CANCELLED = "batch_cancelled"
MESSAGES = {
    EXPIRED: "This request could not be executed before the completion window expired.",
    CANCELLED: "This request was cancelled before it was executed.",
}
NEVER_ENDED = {"expired": EXPIRED, "cancelled": CANCELLED}


def line_of_result(result: Result, custom_id: str | None = None) -> tuple[bytes, bool]:
    """Return the line of a result, without its end, and whether it belongs in the error file.

    Args:
        result: of the request.
        custom_id: what the client calls it; unset, the request's id.
    """
    name = result.id if custom_id is None else custom_id
    if (code := NEVER_ENDED.get(result.status)) is not None:
        return error_line(result.id, name, code, shunter=_told(result)), True
    failure = failure_of(result)
    answer = result.response if failure is None else failure
    if answer is None:
        return error_line(result.id, name, "no_answer", "The result has no answer."), True
    body = answer.body
    if failure is None and result.model is not None and isinstance(body, dict):
        # As OpenAI's own: the server's name for it is that of the variant, which placement has.
        body = body | {"model": result.model}
    said = {"status_code": answer.status_code, "request_id": result.id, "body": body}
    return _line(result.id, name, said, None, _told(result)), failure is not None


def error_line(
    request_id: str,
    custom_id: str,
    code: str,
    message: str | None = None,
    shunter: dict[str, Any] | None = None,
) -> bytes:
    """Return the line of a request that has no answer; ``message`` may be left to ``code``."""
    error = {"code": code, "message": MESSAGES.get(code, code) if message is None else message}
    return _line(request_id, custom_id, None, error, shunter)


def line_id(request_id: str) -> str:
    """Return the id of a request's line: the same whenever it is written."""
    return f"batch_req_{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"


def _line(
    request_id: str,
    custom_id: str,
    response: dict[str, Any] | None,
    error: dict[str, Any] | None,
    shunter: dict[str, Any] | None,
) -> bytes:
    line = {
        "id": line_id(request_id),
        "custom_id": custom_id,
        "response": response,
        "error": error,
    }
    if shunter is not None:
        line["shunter"] = shunter
    return orjson.dumps(line)


def _told(result: Result) -> dict[str, Any]:
    """Return what Shunter knows of the run: where, how long, how dear; no text."""
    error = result.error
    return {
        "status": result.status,
        "placement": result.placement,
        "usage": result.usage,
        "timing": result.timing,
        "cost": result.cost,
        "trace_id": result.trace_id,
        "error": None if error is None else {"code": error.code, "details": error.details},
    }
