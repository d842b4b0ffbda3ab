"""A range of the live ingest topic as a trace, with the reply lengths from the results."""

from collections.abc import AsyncIterator, Container
from dataclasses import dataclass, field, replace

from policies import Fleet, Policy, UnservableError, tag
from policies.backtest.workload import Arrival
from shunter.logs.reading import read_all
from streams.config.token_counting import TokenCounter
from streams.engine.log import Log, Record
from topics import BadRecordError, Catalogue, Result, Usage, decode, parse_request
from topics.records import headers as h
from topics.records.quote_token import said_in
from topics.registry import INGEST_BYTES_MAX

# Fields of a body that tags depend on, beside its text; the rest is not kept in memory.
KEPT_FIELDS = ("model", "stream", "max_tokens", "max_completion_tokens")


@dataclass(slots=True)
class TopicTrace:
    """Requests of a range, and the number left out: unreadable, or of unknown class or model.

    ``unanswered`` are those without a reply length in a result; the policy's length is used.
    """

    arrivals: list[Arrival] = field(default_factory=list)
    left_out: int = 0
    unanswered: int = 0


async def read_topic(
    log: Log,
    catalogue: Catalogue,
    fleet: Fleet,
    policy: Policy,
    tokens: TokenCounter,
    start: float,
    end: float,
) -> TopicTrace:
    """Return the requests on the ingest topic from ``start`` until before ``end``.

    A request that was published twice counts once, and a question what one would cost is none.
    Times are Kafka's record times.

    Args:
        log: to read from.
        catalogue: names the topics, and their partitions.
        fleet: for the valid models.
        policy: for the valid classes.
        tokens: counts prompts that no result counted.
        start: epoch seconds.
        end: epoch seconds.

    Raises:
        LogError: a transaction stays open.
    """
    found = TopicTrace()
    records: dict[str, tuple[float, Arrival]] = {}
    async for record in _between(log, catalogue, start, end):
        try:
            arrival = _arrival(record, policy, tokens)
        except (BadRecordError, UnservableError):
            found.left_out += 1
            continue
        if arrival is None:
            continue
        at, request_id = record.timestamp_ms / 1000, arrival.request.id if arrival.request else ""
        if arrival.model not in fleet.models:
            found.left_out += 1
        elif request_id not in records or at < records[request_id][0]:
            records[request_id] = (at, arrival)
    usages = await _usages(log, catalogue, records)
    ordered = sorted(records.items(), key=lambda pair: (pair[1][0], pair[0]))
    for row, (request_id, (at, arrival)) in enumerate(ordered):
        usage = usages.get(request_id)
        found.unanswered += usage is None
        placed = replace(arrival, row=row, arrival_s=at - ordered[0][1][0])
        found.arrivals.append(
            placed if usage is None else placed.counted(usage.input_tokens, usage.output_tokens)
        )
    return found


async def _between(
    log: Log, catalogue: Catalogue, start: float, end: float
) -> AsyncIterator[Record]:
    async for record in read_all(log, catalogue.requests, catalogue.partitions):
        if start <= record.timestamp_ms / 1000 < end:
            yield record


def _arrival(record: Record, policy: Policy, tokens: TokenCounter) -> Arrival | None:
    """Return a record's request, tagged as the router tags it; None for a question.

    Raises:
        BadRecordError: it is no request.
        UnservableError: it is of no class of the policy.
    """
    request = parse_request(
        record.value,
        bytes_max=INGEST_BYTES_MAX,
        default_id=h.cloud_event_id(record.headers),
    )
    if request.quote:
        return None
    at = record.timestamp_ms / 1000
    if request.quote_id is not None and (terms := said_in(request.quote_id)) is not None:
        when = {"deadline": terms.due_at(at), "completion_window": None}
        request = request.model_copy(update=when | {"service_tier": terms.tier})
    count = tokens.of(request)
    profile = tag(request, policy, received_at=at, now=at, ingest_partition=0, count=count).profile
    body = {name: request.body[name] for name in KEPT_FIELDS if name in request.body}
    kept = {
        "body": body,
        "task": profile.task,
        "deadline": None if request.deadline is None else request.deadline - at,
        "metadata": None,
    }
    return Arrival.of(profile, request.model_copy(update=kept))


async def _usages(log: Log, catalogue: Catalogue, wanted: Container[str]) -> dict[str, Usage]:
    """Return the usage in each request's result, if it has an answer."""
    usages = {}
    async for record in read_all(log, catalogue.results, catalogue.partitions):
        if (record.key or b"").decode("utf-8", "replace") not in wanted:
            continue
        try:
            result = decode(Result, record.value or b"")
        except BadRecordError:
            continue
        # Without an answer it is what tries have written, however far they had come.
        if result.status == "completed" and result.usage is not None:
            usages[result.id] = result.usage
    return usages
