"""The result: exactly one per accepted request, on the results topic, keyed by request id."""

from dataclasses import dataclass
from typing import Any, Literal

from topics.records.placement import Placement

Status = Literal["completed", "failed", "expired", "rejected", "cancelled"]


@dataclass(frozen=True, slots=True)
class Response:
    """The model server's answer."""

    status_code: int
    body: Any


@dataclass(frozen=True, slots=True)
class ResultError:
    """The reason for a missing answer. ``details`` maps a pool to its reason code.

    ``retry_at`` is when the same request may be accepted, epoch seconds: the end of a full window
    of a rate or a budget. None where that is not known.
    """

    code: str
    message: str
    details: dict[str, str] | None = None
    retry_at: float | None = None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens read, written, and read from a cache; number of tools that the answer calls."""

    input_tokens: int
    output_tokens: int
    cached_tokens: int = 0
    tool_calls: int = 0


@dataclass(frozen=True, slots=True)
class Timing:
    """Times of a request's steps in epoch seconds; None for a step that did not happen."""

    created_at: float
    routed_at: float | None = None
    released_at: float | None = None
    started_at: float | None = None
    first_token_at: float | None = None
    finished_at: float | None = None


@dataclass(frozen=True, slots=True)
class Cost:
    """US dollars charged, and the envelope promised when the request was placed."""

    usd: float
    envelope_usd: float | None = None
    quoted_usd: float | None = None
    """The most that it may cost, by the quote that it took."""


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a request."""

    id: str
    status: Status
    timing: Timing
    response: Response | None = None
    error: ResultError | None = None
    placement: Placement | None = None
    usage: Usage | None = None
    cost: Cost | None = None
    trace_id: str | None = None
    metadata: Any = None
    reference_of: str | None = None
    """Of a second run that the quality watch asked for, the id of the client's request."""
    model: str | None = None
    """The model that the request named; its variant is in ``placement``. None in what earlier
    versions wrote."""
