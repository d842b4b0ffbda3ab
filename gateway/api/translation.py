"""An API request as one for Shunter: what is asked of the model, and what of the placement."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import orjson
from pydantic import ValidationError

from gateway.api.bodies import check_body
from gateway.api.fields import BODY_FIELD, wishes
from gateway.api.responses_input import CHAT, chat_body
from gateway.http.errors import ApiError
from topics import InferenceRequest, duration_s, encode
from topics.iso_time import time_told
from topics.openai_api.operations import RESPONSES
from topics.records.request import NO_DURATION, conversation_of
from topics.wire.codec import describe

OPERATIONS = {
    CHAT: "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/moderations": "moderations",
}
ENDPOINTS = (*OPERATIONS, RESPONSES)
"""The paths by which a model is asked."""
# Fields of the body that are for whoever takes the request, and never reach the model server.
_TAKEN = ("service_tier", "metadata", "store", BODY_FIELD)
_TIERS = {"auto": "auto", "default": "default", "flex": "flex", "priority": "priority"}
_TIERS |= {"fast": "priority"}
_CODES = {"missing": "missing_required_parameter", "extra_forbidden": "unknown_parameter"}
# Between the request's id and what the routers made, in a `quote_id` as the gateway gives it.
QUOTE_SEPARATOR = ":"
# Fields of a request that stand elsewhere in what a client sends.
_PLACES = {
    "body": "",
    "model": "model",
    "metadata": "metadata",
    "service_tier": "service_tier",
    "completion_window": f"{BODY_FIELD}.deadline",
}
Encoding = Literal["float", "base64"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A request that has no id yet.

    ``path`` is that of its operation, by whichever the client asked. ``model`` is as the client
    names it, ``tier`` as it asks for it. ``deadline`` is epoch seconds, None where the class's own
    counts. ``digest`` is that of all that the client has asked for.
    """

    path: str
    operation: str
    model: str
    tier: str | None
    is_streamed: bool
    has_usage_chunk: bool
    encoding: Encoding
    deadline: float | None
    fields: dict[str, Any]
    digest: str
    quoted_as: str | None = None
    """Where it takes an offer, the id of the request that was quoted."""
    response: Mapping[str, Any] | None = None
    """The body as the client sent it, where it asks for a response (``/v1/responses``)."""

    @property
    def asks_quote(self) -> bool:
        """True where it asks for its price, and is not to run."""
        return self.fields.get("quote") is True

    @property
    def session(self) -> str | None:
        """The conversation that it is of, as the client names it."""
        return conversation_of(self.fields.get("session"), self.fields["body"])

    def value(self, request_id: str) -> bytes:
        """Return the record's value under an id."""
        return encode({"id": request_id} | self.fields)

    def pack_body(self) -> None:
        """Keep the body as bytes: as objects it takes ten times as much, and Kafka may be slow."""
        self.fields["body"] = orjson.Fragment(encode(self.fields["body"]))

    def forget_body(self) -> None:
        """Drop the body, which nobody needs once there is a value to publish."""
        del self.fields["body"]


def wanted(
    path: str,
    body: dict[str, Any],
    headers: Mapping[str, str],
    tenant: str,
    now: float,
    *,
    default_model: str | None = None,
    batch: bool = False,
) -> Wanted:
    """Return what a client asks for, checked as far as that can be without the fleet.

    Args:
        path: one of ``ENDPOINTS``.
        body: as parsed.
        headers: of HTTP; empty for a line of a batch.
        tenant: whose request it is.
        now: epoch seconds.
        default_model: where the body names none, as it may for moderations.
        batch: whether it is a line of a batch, and of that tier.

    Raises:
        ApiError: something is missing, unknown, unfit or contradictory (400).
    """
    response = None
    if path == RESPONSES:
        response = {name: value for name, value in body.items() if name != "input"}
        path, body = CHAT, chat_body(body)
    operation = OPERATIONS[path]
    if default_model is not None and body.get("model") is None:
        body = body | {"model": default_model}
    check_body(operation, body)
    asked = wishes(body.get(BODY_FIELD), headers)
    tier = body.get("service_tier")
    fields: dict[str, Any] = {
        "url": path,
        "body": {name: value for name, value in body.items() if name not in _TAKEN},
        "model": body["model"],
        "tenant": tenant,
        "service_tier": "batch" if batch else _tier(tier),
        "metadata": body.get("metadata"),
    }
    deadline = _deadline_into(fields, asked.pop("deadline", None), now)
    quoted_as = _quote_into(asked, is_line=batch)
    fields |= asked
    _check(fields)
    is_streamed = body.get("stream") is True
    options = body.get("stream_options") or {}
    return Wanted(
        path=path,
        operation=operation,
        model=body["model"],
        tier=tier,
        is_streamed=is_streamed,
        has_usage_chunk=is_streamed and options.get("include_usage") is True,
        encoding="base64" if body.get("encoding_format") == "base64" else "float",
        deadline=deadline,
        fields=fields,
        digest=_digest(body, asked, fields),
        quoted_as=quoted_as,
        response=response,
    )


def _quote_into(asked: dict[str, Any], *, is_line: bool) -> str | None:
    """Leave in ``asked`` what the routers made of a ``quote_id``; return the request's id."""
    if is_line and (asked.get("quote") or asked.get("quote_id")):
        message = "a line of a batch is not quoted: ask by POST of the request, or `shunter quote`"
        raise ApiError(400, "invalid_value", message, param=f"{BODY_FIELD}.quote")
    told = asked.get("quote_id")
    if not isinstance(told, str):
        return None
    request_id, _, asked["quote_id"] = told.partition(QUOTE_SEPARATOR)
    return request_id


def _tier(tier: Any) -> str:
    if tier is None:
        return "auto"
    if not isinstance(tier, str):
        raise ApiError(400, "invalid_type", "service_tier is a string", param="service_tier")
    if tier not in _TIERS:
        message = f"service_tier {tier!r:.40} is none of {', '.join(_TIERS)}"
        raise ApiError(400, "invalid_value", message, param="service_tier")
    return _TIERS[tier]


def _deadline_into(fields: dict[str, Any], deadline: Any, now: float) -> float | None:
    """Add the deadline to a request's fields, and return it in epoch seconds."""
    if deadline is None:
        return None
    at = time_told(deadline) if isinstance(deadline, str) else deadline
    if at is None:
        fields["completion_window"] = deadline
        _check(fields)
        return now + duration_s(deadline)
    fields["deadline"] = at
    _check(fields)
    return float(at)


def _check(fields: dict[str, Any]) -> None:
    try:
        InferenceRequest.model_validate({"id": "checked"} | fields)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_context=False)[0]
        kind, where = problem["type"], [str(part) for part in problem["loc"]]
        is_type = kind.endswith("_type") or kind in {"is_instance_of", "model_attributes_type"}
        code = _CODES.get(kind) or ("invalid_type" if is_type else "invalid_value")
        first = where[0] if where else ""
        param = _PLACES.get(first, ".".join([BODY_FIELD, *where]))[:100] or None
        told = describe(error, InferenceRequest)
        if kind == NO_DURATION:
            told = "deadline: a duration such as 30s, a time in ISO 8601 or epoch seconds is wanted"
        elif first == "completion_window":
            told = told.replace(first, "deadline", 1)
        raise ApiError(400, code, told, param=param) from error


def _digest(body: dict[str, Any], asked: dict[str, Any], fields: dict[str, Any]) -> str:
    """Return the digest of a request, the same for bodies that differ in the order of fields."""
    # A deadline in seconds stands in the fields as the client gave it.
    timing = [fields.get("completion_window"), fields.get("deadline")]
    plain = {name: value for name, value in body.items() if name != BODY_FIELD}
    try:
        # As deep as the body is in the record, or deeper.
        text = orjson.dumps([[plain], asked, timing], option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError as error:
        raise ApiError(400, "invalid_json", "the body nests too deep") from error
    return hashlib.sha256(text).hexdigest()
