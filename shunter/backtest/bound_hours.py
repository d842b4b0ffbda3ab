"""The work of the bound where prices move: which of it is done in which hour.

Time is cut at each change of a price. A request's prompt and its decode steps are split among the
spans in which it may run, each by shares of its own, since a run may begin in one and end in
another. What a span's shares take at least is busy time of that span, at its price; what all of it
takes exactly is busy time of any span (`shunter.backtest.bound_work`). A schedule gives values to
all of these variables at no more than its cost, so that the least cost is below every schedule's.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from policies import Option, Options
from policies.hardware.chunks import PREFILL_CHUNK_TOKENS
from shunter.backtest.bound_times import TokenTimes
from shunter.backtest.bound_work import add_work, token_usd
from shunter.backtest.demand import Demand, able, latest_end_s
from shunter.backtest.programme import Programme

SPANS_MAX = 400
"""With more, neighbours are taken together, at the lower of their prices."""


@dataclass(slots=True)
class SpanShares:
    """Of one option in one span, the requests and the columns of their shares there."""

    prompts: list[tuple[int, Demand]] = field(default_factory=list)
    decodes: list[tuple[int, Demand]] = field(default_factory=list)


def moving_volume_bound(demands: Sequence[Demand], options: Options) -> float:
    """Return the least cost of the work in US dollars, by the prices of its hours."""
    programme = Programme()
    edges = _edges(options, max(latest_end_s(demand) for demand in demands))
    busy = {pool: _busy(programme, choices[0], edges) for pool, choices in options.by_pool.items()}
    served: dict[tuple[str, str], list[tuple[int, Demand]]] = {}
    shares: dict[tuple[str, str, int], SpanShares] = {}
    for demand in demands:
        whole: dict[int, float] = {}
        # From the span in which it comes to that in which it ends at the latest.
        first = bisect_right(edges, demand.profile.created_at) - 1
        spans = range(first, min(len(edges) - 1, bisect_left(edges, latest_end_s(demand))))
        for option in able(demand, options):
            column = programme.variable(token_usd(demand, option))
            whole[column] = 1.0
            key = (option.pool, option.variant)
            served.setdefault(key, []).append((column, demand))
            _split(programme, column, demand, spans, key, shares)
        if whole:
            programme.equal.append((whole, 1.0))
    add_work(programme, options, served, busy)
    for pool, choices in options.by_pool.items():
        for span, column in enumerate(busy[pool]):
            _add_span(programme, choices, column, span, shares)
    return programme.solve("highs-ipm")


def _edges(options: Options, end: float) -> list[float]:
    """Return the times at which a price changes, with the beginning and the end."""
    found = {0.0, end}
    for choices in options.by_pool.values():
        at, tariff = 0.0, choices[0].tariff
        while tariff is not None and (coming := next(tariff.changes(at, end), None)) is not None:
            found.add(coming)
            at = coming
    edges = sorted(found)
    every = 1 + len(edges) // SPANS_MAX
    return [*edges[:-1:every], end]


def _busy(programme: Programme, option: Option, edges: Sequence[float]) -> list[int]:
    """Return a pool's busy time in each span, at the lowest price in it."""
    return [
        programme.variable(
            option.usd_per_s * lowest_factor(option, begin, end), (end - begin) * option.replicas
        )
        for begin, end in pairwise(edges)
    ]


def lowest_factor(option: Option, begin: float, end: float) -> float:
    """Return the lowest price of an option in a span, in times the declared one."""
    return 1.0 if option.tariff is None else min(option.tariff.factors(begin, end))


def _split(
    programme: Programme,
    whole: int,
    demand: Demand,
    spans: range,
    key: tuple[str, str],
    shares: dict[tuple[str, str, int], SpanShares],
) -> None:
    """Split prompt and decode of a choice among the spans."""
    if len(spans) == 1:
        here = shares.setdefault((*key, spans[0]), SpanShares())
        here.prompts.append((whole, demand))
        here.decodes.append((whole, demand))
        return
    prompts, decodes = {whole: -1.0}, {whole: -1.0}
    for span in spans:
        here = shares.setdefault((*key, span), SpanShares())
        column = programme.variable()
        prompts[column] = 1.0
        here.prompts.append((column, demand))
        if demand.steps:
            column = programme.variable()
            decodes[column] = 1.0
            here.decodes.append((column, demand))
    programme.equal.append((prompts, 0.0))
    if demand.steps:
        programme.equal.append((decodes, 0.0))


def _add_span(
    programme: Programme,
    choices: Sequence[Option],
    busy: int,
    span: int,
    shares: Mapping[tuple[str, str, int], SpanShares],
) -> None:
    """Make a pool busy in a span for as long as what is done there takes at least."""
    compute, memory = {busy: -1.0}, {busy: -1.0}
    for option in choices:
        here = shares.get((option.pool, option.variant, span))
        if here is None:
            continue
        times, steps = TokenTimes.of(option), programme.variable()
        places, room, chunks = {steps: -1.0}, {steps: -1.0}, {steps: -1.0}
        most = option.max_batch
        growth_s = (times.full_s - times.one_s) / (most - 1) if most > 1 else 0.0
        compute[steps] = times.overhead_s
        memory[steps] = times.overhead_s + times.one_s - growth_s
        for column, demand in here.prompts:
            tokens = demand.input_tokens
            chunks[column] = tokens / PREFILL_CHUNK_TOKENS
            beside_s = tokens * times.traffic_s + chunks[column] * times.prompt_s
            _add(compute, column, beside_s + tokens * times.token_s)
            _add(memory, column, beside_s)
        for column, demand in here.decodes:
            # No step has fewer cached tokens than the first.
            count, context = demand.steps, demand.input_tokens + 1
            places[column] = count / most
            tokens = demand.input_tokens + demand.output_tokens
            room[column] = count * tokens / option.kv_capacity_tokens
            beside_s = count * (times.traffic_s + times.sequence_s)
            each_s = times.token_s + context * times.pair_s
            _add(compute, column, beside_s + count * each_s)
            _add(memory, column, beside_s + count * (growth_s + context * times.kv_s))
        programme.at_most += [(places, 0.0), (room, 0.0), (chunks, 0.0)]
    programme.at_most += [(compute, 0.0), (memory, 0.0)]


def _add(row: dict[int, float], column: int, value: float) -> None:
    row[column] = row.get(column, 0.0) + value
