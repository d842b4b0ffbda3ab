"""Quotes: what a client asks, the menu that it gets, and what a request that took one is bound to.

Money is whole nano-dollars, so that a price is the same number wherever it is written.
"""

from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from topics.records.batch_line import ServiceTier
from topics.records.frozen import dataclass
from topics.records.quote_terms import Quoted
from topics.records.request import (
    Duration,
    EpochSeconds,
    InferenceRequest,
    Name,
    Strict,
    native_fields,
    read_object,
)
from topics.records.result import ResultError
from topics.wire.codec import describe
from topics.wire.errors import BadRecordError

# Each is decided on for each offer, while the requests behind the question wait.
MEMBERS_MAX = 64
OFFERS_MAX = 8


@dataclass(frozen=True, slots=True)
class QuoteOffer:
    """One line of a menu: all requests of the question, by one deadline in one tier.

    Of one that is quoted relative to its acceptance, ``within_s`` are the seconds from then, and
    ``deadline`` what it comes to if it is taken at once, epoch seconds. ``chance`` is the least of
    a request's, ``nano_usd`` their sum and ``cost_usd`` the same in US dollars. ``quote_ids`` has
    for each request, by id, what accepts it; ``quotes`` are the terms behind these.
    """

    deadline: float
    tier: str
    cost_usd: float
    nano_usd: int
    chance: float
    valid_until: float
    within_s: float | None
    quote_ids: dict[str, str]
    quotes: dict[str, Quoted]


@dataclass(frozen=True, slots=True)
class QuoteAnswer:
    """The answer to a question: its menu, or why there is none. ``at`` is epoch seconds."""

    id: str
    at: float
    offers: tuple[QuoteOffer, ...] = ()
    error: ResultError | None = None
    trace_id: str | None = None
    metadata: Any = None


class QuoteQuestion(Strict):
    """One question: what these requests would cost, by each of these deadlines, in each tier.

    Without deadlines and windows the menu has those that can be promised with each of the policy's
    chances. Ids of requests are those that they will be sent with.
    """

    id: Name
    requests: Annotated[list[InferenceRequest], Field(min_length=1, max_length=MEMBERS_MAX)]
    deadlines: Annotated[list[EpochSeconds], Field(max_length=OFFERS_MAX)] = Field(
        default_factory=list
    )
    windows: Annotated[list[Duration], Field(max_length=OFFERS_MAX)] = Field(default_factory=list)
    tiers: Annotated[list[ServiceTier], Field(max_length=4)] = Field(default_factory=list)
    metadata: Any = None

    @model_validator(mode="after")
    def _is_answerable(self) -> "QuoteQuestion":
        ids = [request.id for request in self.requests]
        if len(set(ids)) < len(ids):
            raise ValueError("requests: two have the same id")
        if any(request.quote or request.quote_id is not None for request in self.requests):
            raise ValueError("requests: one asks for a quote, or has one, itself")
        if len({request.tenant for request in self.requests}) > 1:
            raise ValueError("requests: of more than one tenant; ask for each")
        asked = (len(self.deadlines) + len(self.windows)) * max(1, len(self.tiers))
        if asked > OFFERS_MAX:
            raise ValueError(f"asks for {asked} offers; the most is {OFFERS_MAX}")
        return self


def question_of(request: InferenceRequest) -> QuoteQuestion:
    """Return the question that a request with ``quote: true`` asks."""
    own = request.model_copy(
        update={"quote": False, "deadline": None, "completion_window": None, "service_tier": "auto"}
    )
    told = request.service_tier
    return QuoteQuestion.model_construct(
        id=request.id,
        requests=[own],
        deadlines=[] if request.deadline is None else [request.deadline],
        windows=[] if request.completion_window is None else [request.completion_window],
        tiers=[] if told == "auto" else [told],
        metadata=request.metadata,
    )


def parse_question(value: bytes | None, *, bytes_max: int) -> QuoteQuestion:
    """Return the question in a record's value; its requests may be lines of a Batch file.

    Raises:
        BadRecordError: with stage, reason code and a message that names the field.
    """
    fields = dict(read_object(value, _FIELDS, bytes_max))
    requests = fields.get("requests")
    if isinstance(requests, list):
        fields["requests"] = [
            native_fields(each) if isinstance(each, dict) else each for each in requests
        ]
    try:
        return QuoteQuestion.model_validate(fields)
    except ValidationError as error:
        raise BadRecordError(
            "validate", "invalid_question", describe(error, QuoteQuestion)
        ) from error


# What an error may name.
_FIELDS = frozenset((*QuoteQuestion.model_fields, *InferenceRequest.model_fields))
