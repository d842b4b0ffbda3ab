"""Requests of a trace, as the router would see them."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from policies.config.fleet import Fleet
from policies.config.options import Options, compile_options
from policies.config.policy import Policy
from policies.learning.output_lengths import Lengths
from policies.tagging import UnservableError, tag
from topics import InferenceRequest, Profile
from topics.records.request import Hints

URLS = {"embedding": "/v1/embeddings", "safety_classification": "/v1/moderations"}
TOKENS_MAX = 10_000_000
ARRIVAL_S_MAX = 366 * 86_400
"""A year: later ones are epoch seconds, up to which a replay would run for days."""

Tagger = Callable[[str, Lengths], Profile]
"""Returns the request of an id as the router tags it, given the reply lengths seen until then."""


class TraceError(ValueError):
    """A trace can't be replayed; the message names row and column."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request of a trace. ``row`` counts from 0, ``arrival_s`` from the trace's start.

    Tokens are those of all its prompts, and of all replies to them.
    """

    row: int
    arrival_s: float
    task: str
    model: str
    input_tokens: int
    output_tokens: int
    session: str | None
    prefix_tokens: int = 0
    """Leading tokens of the prompt that an earlier one of the session had."""
    tenant: str = "default"
    request: InferenceRequest | None = None
    """What was asked for, where the trace has it; its deadline is seconds from its arrival."""

    @classmethod
    def of(cls, profile: Profile, request: InferenceRequest) -> "Arrival":
        """Return a request as it was tagged, at the trace's start; its deadline as in a trace."""
        return cls(
            row=0,
            arrival_s=0.0,
            task=profile.task,
            model=profile.model,
            input_tokens=max(1, profile.input_tokens),
            output_tokens=profile.answers * profile.output_tokens,
            session=profile.session,
            request=request,
            tenant=profile.tenant,
        )

    @property
    def prompts(self) -> int:
        """Return how many prompts it has; without a request it is one."""
        return 1 if self.request is None else len(self.request.prompts) or 1

    def counted(self, input_tokens: int, output_tokens: int) -> "Arrival":
        """Return it with the lengths that its answer told."""
        return replace(self, input_tokens=max(1, input_tokens), output_tokens=output_tokens)


def parse_arrivals(rows: Iterable[Mapping[str, str | None]], file: str) -> list[Arrival]:
    """Return the requests of a trace, as read from its CSV columns.

    Raises:
        TraceError: a column is missing or a value is out of range, or the rows aren't sorted.
    """
    arrivals: list[Arrival] = []
    before_s = 0.0
    for number, fields in enumerate(rows):
        arrival = _parse(number, fields, file)
        if arrival.arrival_s < before_s:
            raise TraceError(
                f"{file}: row {number}: arrival_s {arrival.arrival_s:g} is before the row above"
                f" ({before_s:g}); sort the file by arrival_s"
            )
        before_s = arrival.arrival_s
        arrivals.append(arrival)
    if not arrivals:
        raise TraceError(f"{file}: holds no request")
    return arrivals


def _parse(number: int, fields: Mapping[str, str | None], file: str) -> Arrival:
    def text(column: str) -> str:
        value = fields.get(column)
        if not value:
            raise TraceError(f"{file}: row {number}: column {column} is missing or empty")
        return value

    def count(column: str, least: int) -> int:
        value = text(column)
        if not (value.isascii() and value.isdigit() and least <= int(value[:9]) <= TOKENS_MAX):
            raise TraceError(
                f"{file}: row {number}: {column} is {value[:40]!r}: give a whole number from"
                f" {least} to {TOKENS_MAX:,}"
            )
        return int(value)

    try:
        arrival_s = float(text("arrival_s"))
    except ValueError as error:
        if isinstance(error, TraceError):
            raise
        arrival_s = -1.0
    if not 0 <= arrival_s <= ARRIVAL_S_MAX:
        raise TraceError(
            f"{file}: row {number}: arrival_s is {text('arrival_s')[:40]!r}: give seconds from the"
            f" trace's start, from 0 to {ARRIVAL_S_MAX:,}"
        )
    return Arrival(
        row=number,
        arrival_s=arrival_s,
        task=text("task"),
        model=text("model"),
        input_tokens=count("input_tokens", 1),
        output_tokens=count("output_tokens", 0),
        session=fields.get("session") or None,
        prefix_tokens=count("prefix_tokens", 0) if fields.get("prefix_tokens") else 0,
        tenant=fields.get("tenant") or "default",
    )


def repeat(arrivals: Sequence[Arrival], times: int) -> list[Arrival]:
    """Return the trace repeated ``times`` times, each from the last arrival of the previous one on.

    Row numbers continue. Each repetition has its own sessions, so that none hits another's cache.
    """
    span_s = arrivals[-1].arrival_s
    return [
        replace(
            arrival,
            row=arrival.row + number * len(arrivals),
            arrival_s=arrival.arrival_s + number * span_s,
            **_own_session(arrival, number),
        )
        for number in range(times)
        for arrival in arrivals
    ]


def _own_session(arrival: Arrival, number: int) -> dict[str, Any]:
    if number == 0 or arrival.session is None:
        return {}
    session, request = f"{number}/{arrival.session}", arrival.request
    if request is not None:
        request = request.model_copy(update={"session": session})
    return {"session": session, "request": request}


def compress(arrivals: Iterable[Arrival], rate: float) -> list[Arrival]:
    """Return the same requests, arriving ``rate`` times as fast."""
    return [replace(a, arrival_s=a.arrival_s / rate) for a in arrivals]


def profiles_of(arrivals: Iterable[Arrival], fleet: Fleet, policy: Policy) -> list[Profile]:
    """Return each request as the router tags it: prompt length known, reply length not.

    An embedding's prompt is cut to its model's context, as clients of such models do.

    Raises:
        TraceError: a task or data class that the policy doesn't have, or labels that contradict it.
    """
    options = compile_options(fleet)
    return [_profile(arrival, fleet, policy, options) for arrival in arrivals]


def taggable(arrivals: Iterable[Arrival], fleet: Fleet, policy: Policy) -> list[Arrival]:
    """Return the requests that a policy doesn't reject before it decides, renumbered.

    What it rejects is of no class that it has, or outside of what tenant and class are bound to.
    """
    options, kept = compile_options(fleet), list[Arrival]()
    for arrival in arrivals:
        try:
            _profile(arrival, fleet, policy, options)
        except TraceError:
            continue
        kept.append(replace(arrival, row=len(kept)))
    return kept


def tagger(arrivals: Iterable[Arrival], fleet: Fleet, policy: Policy) -> Tagger:
    """Return a function that tags these requests when they arrive.

    The ids are those of `profiles_of`.
    """
    by_id = {str(arrival.row): arrival for arrival in arrivals}
    options = compile_options(fleet)
    return lambda request_id, lengths: _profile(by_id[request_id], fleet, policy, options, lengths)


def _profile(
    arrival: Arrival,
    fleet: Fleet,
    policy: Policy,
    options: Options,
    lengths: Lengths | None = None,
) -> Profile:
    if arrival.task not in policy.classes:
        known = ", ".join(policy.classes)
        raise TraceError(f"row {arrival.row}: task {arrival.task!r} is not one of {known}")
    at, input_tokens = arrival.arrival_s, prompt_tokens(arrival, fleet)
    request = arrival.request
    if request is None:
        request = InferenceRequest(
            id=str(arrival.row),
            body={"model": arrival.model},
            url=URLS.get(arrival.task, "/v1/chat/completions"),
            model=arrival.model,
            task=arrival.task,
            session=arrival.session,
            tenant=arrival.tenant,
            hints=Hints(input_tokens=input_tokens),
        )
    else:
        left_s = request.deadline
        own = {
            "id": str(arrival.row),
            "created_at": at,
            "deadline": None if left_s is None else at + left_s,
            "hints": request.hints.model_copy(update={"input_tokens": input_tokens}),
        }
        request = request.model_copy(update=own)
    try:
        tagged = tag(
            request,
            policy,
            received_at=at,
            now=at,
            ingest_partition=0,
            count=_nothing,
            lengths=lengths,
            serving=options.serving.get(arrival.model),
        )
    except UnservableError as error:
        raise TraceError(f"row {arrival.row}: {error.message}") from error
    return tagged.profile


def _nothing(_text: str) -> int:
    """Count no text: the length is known, and a hint beneath a limit is held against the text."""
    return 0


def prompt_tokens(arrival: Arrival, fleet: Fleet) -> int:
    """Return the prompt's length as the model receives it."""
    model = fleet.models.get(arrival.model)
    if model is not None and arrival.output_tokens == 0 and "embeddings" in model.operations:
        return min(arrival.input_tokens, arrival.prompts * model.context_tokens)
    return arrival.input_tokens
