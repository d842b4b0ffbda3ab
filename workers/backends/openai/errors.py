"""Classify a model server's refusal: retry here, retry elsewhere, or give up."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any

from topics import Response
from topics.records.refusal_codes import TOO_MANY_ANSWERS
from workers.backends.base import CallError

# How servers say that a request is too long for them: OpenAI and vLLM, SGLang (and Together, which
# runs it), TGI, llama.cpp, TensorRT-LLM, and vendors as Anthropic words it. Each wording stands in
# tests/unit/workers/test_server_wordings.py.
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|context (?:length|size|window|limit)"
    r"|longer than the (?:model|maximum)|(?:must have|is) less than|max_model_len|too many tokens"
    r"|exceeds (?:the )?maximum (?:allowed|input) length|input length too long"
    r"|larger than the max context|prompt is too long|should not exceed max_(?:seq_len|num_tokens)"
    r"|.inputs. tokens (?:\+|and) .max_new_tokens. must (?:be <=|not exceed)"
    r"|too large to process\. increase the physical",
    re.IGNORECASE,
)
# How they say that they don't write so many answers of one request; another server may. The second
# is how llama.cpp told, by status 500, when it wrote one.
_TOO_MANY = re.compile(
    r"Field 'n': Value must be between 1 <= value <= \d+, but got [1-9]"
    r"|only one completion choice is allowed|\bn must be at most \d+, got"
    r"|prompt list length \d+ exceeds|.best_of. (?:must be > 0 and <= \d+|!= 1 is not allowed)"
    r"|cannot unmarshal array into Go struct field CompletionRequest\.prompt",
    re.IGNORECASE,
)
_REFUSED = re.compile(
    r"content[_ ]filter|content[_ ]policy|moderation_blocked|flagged", re.IGNORECASE
)
_OUT_OF_MEMORY = re.compile(
    r"out of (?:device )?memory|OutOfMemory|cuda_?error.*alloc|failed to find a memory slot",
    re.IGNORECASE,
)
_NO_QUOTA = re.compile(r"insufficient_quota|billing", re.IGNORECASE)


def classify(status: int, body: Any, headers: Mapping[str, str], now: float) -> CallError:
    """Return the error for an unsuccessful answer.

    Args:
        status: status of the HTTP answer, or the code of an error inside a stream.
        body: its JSON, or None.
        headers: headers of the answer.
        now: epoch seconds, for a ``Retry-After`` that is a date.
    """
    told = _told(body)
    if status in {429, 503, 529} and not _NO_QUOTA.search(told):
        return _passing(status, retry_after_s(headers, now))
    if status == 413 or (status in {400, 422, 500} and _TOO_LONG.search(told)):
        message = f"the server answered {status}: the request is too long for it"
        return CallError("context_too_long", message, retry="elsewhere")
    if status in {400, 422, 500} and _TOO_MANY.search(told):
        message = f"the server answered {status}: the request asks for more answers than it writes"
        return CallError(TOO_MANY_ANSWERS, message, retry="elsewhere")
    if 400 <= status < 500 and status not in _POOLS_FAULT:
        return _at_fault(status, body, told)
    code = "out_of_memory" if _OUT_OF_MEMORY.search(told) else _code(status)
    message = f"the server answered {status}"
    # An operation that it does not have says nothing of those that it has.
    is_pool_fault = code != "operation_not_served"
    return CallError(code, message, retry="elsewhere", is_pool_fault=is_pool_fault)


def _passing(status: int, after_s: float | None) -> CallError:
    """Return the error of a server that is overloaded (429) or temporarily unavailable."""
    is_down = status != HTTPStatus.TOO_MANY_REQUESTS
    return CallError(
        "unavailable" if is_down else "overloaded",
        f"the server answered {status}",
        retry="here",
        is_pool_fault=is_down,
        after_s=after_s,
    )


def _at_fault(status: int, body: Any, told: str) -> CallError:
    is_refused = _REFUSED.search(told) is not None
    why = "it refuses the content" if is_refused else "it finds the request at fault"
    return CallError(
        "content_refused" if is_refused else "request_refused",
        f"the server answered {status}: {why}; its answer is in `response`",
        retry="never",
        response=Response(status, body),
    )


# Of the statuses that blame the client, those that only a wrong key, URL or model name can cause,
# or the server's own state; the request itself may be good.
_POOLS_FAULT = {
    401: "unauthorized",
    403: "unauthorized",
    402: "no_quota",
    404: "not_found",
    405: "not_found",
    408: "timeout",
    409: "server_error",
    425: "server_error",
    429: "no_quota",
}


def _code(status: int) -> str:
    if 300 <= status < 400:
        return "redirected"
    if status == HTTPStatus.NOT_IMPLEMENTED:
        return "operation_not_served"
    return _POOLS_FAULT.get(status, "server_error")


def _told(body: Any) -> str:
    """Return the readable parts of an error body in any server's form."""
    if not isinstance(body, dict):
        return ""
    error = body.get("error", body)
    if isinstance(error, str):
        error = {"message": error}
    if not isinstance(error, dict):
        return ""
    fields = (error.get(name) for name in ("code", "type", "error_type", "message"))
    # A message may hold the request's own text, which could say anything at any length.
    return " ".join(str(field)[:500] for field in fields if isinstance(field, str))


def retry_after_s(headers: Mapping[str, str], now: float) -> float | None:
    """Return the seconds that the server asks to wait, or None.

    Source: RFC 9110, section 10.2.3: seconds, or a date.
    """
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(r"[0-9]{1,9}", value):
        return float(value)
    try:
        at = parsedate_to_datetime(value)
    except (ValueError, OverflowError):
        return None
    if at.tzinfo is None:
        at = at.replace(tzinfo=UTC)
    return max(0.0, (at - datetime.fromtimestamp(now, UTC)).total_seconds())
