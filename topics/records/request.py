"""The request: what an application publishes to the ingest topic."""

import re
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Annotated, Any

import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from topics.records.batch_line import LINE_FIELDS, ServiceTier, body_tier, fields_of_line
from topics.wire.codec import decode_unique_json_object, describe, kind_of
from topics.wire.errors import BadRecordError

ID_CHARACTERS_MAX = 128
TOKENS_MAX = 10_000_000
# No server makes nearly as many; prices of more would be no number of 64 bits.
ANSWERS_MAX = 1_000_000
# 2100-01-01: a larger epoch is a time in milliseconds or a mistake.
EPOCH_S_MAX = 4_102_444_800
_PROMPT_OF = {
    "/v1/completions": "prompt",
    "/v1/embeddings": "input",
    "/v1/moderations": "input",
}
# As vLLM and SGLang read a number that is a text: "1_00" and "00100.0" are 100, too.
_WHOLE = TypeAdapter(int)
_REPLIED = frozenset({"/v1/chat/completions", "/v1/completions"})
# A year: longer than any topic here keeps a request.
DURATION_S_MAX = 366 * 86400
SECONDS_PER_UNIT = {"ms": 0.001, "s": 1, "m": 60, "h": 3600, "d": 86400}
NO_DURATION = "no_duration"
"""The kind of error of a text that is no duration."""
# Not \d, which takes the digits of every script, and those of newer Unicode than `re` knows.
_DURATION = re.compile(r"[0-9]{1,9}(\.[0-9]{1,3})?(ms|s|m|h|d)")


def duration_s(text: str) -> float:
    """Return a duration such as ``10m`` or ``1.5h`` in seconds."""
    number, unit = re.fullmatch(r"([0-9.]+)([a-z]+)", text).groups()  # type: ignore[union-attr]
    return float(number) * SECONDS_PER_UNIT[unit]


def _as_durations_are(value: Any) -> Any:
    if isinstance(value, str) and _DURATION.fullmatch(value) is None:
        raise PydanticCustomError(NO_DURATION, "it is no duration such as 90s, 10m or 24h")
    return value


def _at_most_a_year(text: str) -> str:
    if duration_s(text) > DURATION_S_MAX:
        raise ValueError(f"must be at most {DURATION_S_MAX // 86400}d")
    return text


Name = Annotated[str, StringConstraints(min_length=1, max_length=ID_CHARACTERS_MAX)]
Names = Annotated[list[Name], Field(max_length=64)]
EpochSeconds = Annotated[float, Field(ge=0, le=EPOCH_S_MAX, allow_inf_nan=False)]
Tokens = Annotated[int, Field(ge=0, le=TOKENS_MAX)]
Milliseconds = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False)]
# What a menu calls an offer (topics/records/quote.py).
QuoteId = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,600}\.[A-Za-z0-9_-]{43}$", max_length=644)
]
Duration = Annotated[
    str,
    StringConstraints(pattern=f"^{_DURATION.pattern}$"),
    AfterValidator(_at_most_a_year),
    BeforeValidator(_as_durations_are),
]


class Strict(BaseModel):
    """A record that a client writes."""

    # Unknown fields are refused: a misspelt constraint that is quietly ignored would be broken.
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Slo(Strict):
    """Latency objectives of the client, in milliseconds."""

    ttft_ms: Milliseconds | None = None
    tpot_ms: Milliseconds | None = None


class Constraints(Strict):
    """Constraints that placement may never break. An empty list allows nothing."""

    regions: Names | None = None
    precisions: Names | None = None
    pools: Names | None = None
    exclude_pools: Names = Field(default_factory=list)
    data_class: Name | None = None
    labels: Annotated[dict[Name, Name], Field(max_length=16)] = Field(default_factory=dict)
    max_cost_usd: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    max_gco2: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None


class Hints(Strict):
    """The client's knowledge of its request; it precedes any estimate."""

    input_tokens: Tokens | None = None
    output_tokens: Tokens | None = None
    batchable: bool | None = None


# What most requests say nothing of is the same record in all of them.
_NO_SLO, _NO_CONSTRAINTS, _NO_HINTS = Slo(), Constraints(), Hints()


class InferenceRequest(Strict):
    """One inference request, as in the contract (docs/reference/requests.md)."""

    id: Name
    body: dict[str, Any]
    url: Annotated[str, StringConstraints(pattern=r"^/[\x21-\x7e]{1,127}$")] = (
        "/v1/chat/completions"
    )
    model: Name
    task: Name | None = None
    tenant: Name = "default"
    created_at: EpochSeconds | None = None
    deadline: EpochSeconds | None = None
    completion_window: Duration | None = None
    service_tier: ServiceTier = "auto"
    slo: Slo = Field(default_factory=lambda: _NO_SLO)
    constraints: Constraints = Field(default_factory=lambda: _NO_CONSTRAINTS)
    session: Name | None = None
    hints: Hints = Field(default_factory=lambda: _NO_HINTS)
    quote: bool = False
    quote_id: QuoteId | None = None
    metadata: Any = None

    def model_post_init(self, context: Any, /) -> None:
        """Keep the value that the request is read from, which validation is given as context."""
        if context:
            self.__dict__["sent"] = context

    @model_validator(mode="after")
    def _one_deadline(self) -> "InferenceRequest":
        if self.deadline is not None and self.completion_window is not None:
            raise ValueError("give deadline or completion_window, not both")
        if self.quote and self.quote_id is not None:
            raise ValueError("give quote, to ask for one, or quote_id, to accept one, not both")
        return self

    # Kept as a cached property is, since pydantic takes 3 us for a private attribute.
    @cached_property
    def sent(self) -> dict[str, Any]:
        """Return the record's value as the client sent it, parsed; empty if it was not read."""
        return {}

    @property
    def conversation(self) -> str | None:
        """Return the session, else the body's ``prompt_cache_key``; None without either."""
        return conversation_of(self.session, self.body)

    @property
    def output_tokens_max(self) -> int | None:
        """Return the body's own limit on the reply, in tokens."""
        for name in ("max_completion_tokens", "max_tokens"):
            limit = self.body.get(name)
            if isinstance(limit, int):
                return limit
        return None

    @property
    def prompt(self) -> Any:
        """Return what the body has beside messages: by the member that its endpoint reads."""
        return self.body.get(_PROMPT_OF.get(self.url, ""))

    @property
    def prompts(self) -> Sequence[Any]:
        """Return the texts or lists of tokens that are answered each for itself; none if one."""
        found = self.prompt
        if not isinstance(found, list) or len(found) < 2:
            return ()
        # A list of tokens, or of the parts of one input, is one prompt.
        return found if any(isinstance(part, str | list) for part in found) else ()

    @property
    def choices(self) -> int:
        """Return how many replies to each prompt the client gets."""
        return _count(self.body.get("n")) if self.url in _REPLIED else 1

    @property
    def replies(self) -> int:
        """Return how many replies a server writes to each prompt: ``best_of`` may be more."""
        if self.url not in _REPLIED:
            return 1
        wanted = max(self.choices, _count(self.body.get("best_of")))
        if wanted == 1:
            return 1
        return min(wanted, max(1, ANSWERS_MAX // max(1, len(self.prompts))))


def _count(value: object) -> int:
    """Return a whole number as servers take one, which may be a text or have a point; else 1."""
    if value is None:
        return 1
    if isinstance(value, str):
        try:
            value = _WHOLE.validate_python(value)
        except ValidationError:
            return 1
    if isinstance(value, bool) or not isinstance(value, int | float) or value % 1:
        return 1
    return max(1, int(min(value, ANSWERS_MAX)))


def conversation_of(session: str | None, body: dict[str, Any]) -> str | None:
    """Return what names the conversation of a request: its session, else what its body says."""
    named = body.get("prompt_cache_key") if session is None else session
    return named if isinstance(named, str) and 0 < len(named) <= ID_CHARACTERS_MAX else None


_BODY_LIMITS = ("max_tokens", "max_completion_tokens")
# What an error may name: the contract's own words, and no other of a client's.
_FIELDS = LINE_FIELDS.union(
    (*InferenceRequest.model_fields, *Constraints.model_fields, *Slo.model_fields),
    (*Hints.model_fields, *_BODY_LIMITS, "messages"),
)


def parse_request(
    value: bytes | None, *, bytes_max: int, default_id: str | None = None
) -> InferenceRequest:
    """Return the request in a record's value, native or a line of an OpenAI Batch file.

    Args:
        value: UTF-8 JSON, or None for a tombstone.
        bytes_max: longest value accepted, in bytes.
        default_id: id to use if the value has none (the ``ce_id`` of a CloudEvent).

    Raises:
        BadRecordError: with stage, reason code and a message that names the field.
    """
    sent = read_object(value, _FIELDS, bytes_max)
    try:
        return InferenceRequest.model_validate(native_fields(sent, default_id), context=sent)
    except ValidationError as error:
        raise BadRecordError(
            "validate", "invalid_request", describe(error, InferenceRequest)
        ) from error


def read_object(value: bytes | None, names: Collection[str], bytes_max: int) -> dict[str, Any]:
    """Return the JSON object that a client wrote as a record's value.

    Args:
        value: UTF-8 JSON, or None for a tombstone.
        names: what an error may tell of its fields.
        bytes_max: longest value accepted, in bytes.

    Raises:
        BadRecordError: it is none, or too long, or says something twice.
    """
    if not value:
        raise BadRecordError("decode", "empty_value", "the record has no value (a tombstone)")
    if len(value) > bytes_max:
        raise BadRecordError(
            "decode",
            "too_large",
            f"the value has {len(value):,} bytes; the limit is {bytes_max:,}"
            " (SHUNTER_REQUEST_BYTES_MAX)",
        )
    # Parsers disagree on which of two equal keys wins, so a repeated constraint could be read one
    # way by the client and another way here.
    return decode_unique_json_object(value, names)


def native_fields(sent: dict[str, Any], default_id: str | None = None) -> dict[str, Any]:
    """Return the fields of a request, native or a line of an OpenAI Batch file.

    Raises:
        BadRecordError: its body or its line is none.
    """
    fields = dict(sent)
    if "custom_id" in fields:
        fields = fields_of_line(fields)
    elif default_id is not None:
        fields.setdefault("id", default_id)
    body = fields.get("body")
    if "service_tier" not in fields and (tier := body_tier(body)) is not None:
        fields["service_tier"] = tier
    if isinstance(body, dict):
        _check_body(body)
        if "model" not in fields and "model" in body:
            fields["model"] = body["model"]
    return fields


def peek_id(value: bytes | None, default_id: str | None = None) -> str | None:
    """Return the id that ``parse_request`` would find, without parsing anything else.

    None if there is no valid id. This takes a tenth of the time.
    """
    try:
        fields = orjson.loads(value or b"")
    except orjson.JSONDecodeError:
        return None
    if not isinstance(fields, dict):
        return None
    found = fields["custom_id"] if "custom_id" in fields else fields.get("id", default_id)
    return found if isinstance(found, str) and 0 < len(found) <= ID_CHARACTERS_MAX else None


def _check_body(body: dict[str, Any]) -> None:
    for name in _BODY_LIMITS:
        limit = body.get(name)
        if limit is None:
            continue
        if type(limit) is not int or not 1 <= limit <= TOKENS_MAX:
            raise BadRecordError(
                "validate",
                "invalid_request",
                f"body.{name}: must be a whole number from 1 to {TOKENS_MAX:,}"
                f" (got {kind_of(limit)})",
            )
    stream = body.get("stream")
    if stream is not None and not isinstance(stream, bool):
        raise BadRecordError(
            "validate",
            "invalid_request",
            f"body.stream: must be true or false (got {kind_of(stream)})",
        )
