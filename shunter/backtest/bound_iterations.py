"""The iterations of the bound: what one variant's work takes of a pool, by kinds of iterations.

An iteration takes the larger of its arithmetic and its memory traffic. Over all iterations together
prompts (arithmetic) would hide behind decode steps (memory) for nothing. Only so many iterations
have a prompt in them as prompts have chunks, though, so that those are counted apart from the
others, and those with short prompts alone apart from those with long ones: in each kind the larger
of the two counts. docs/bound.md derives the rows.
"""

import math
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from policies import Option
from policies.hardware.chunks import PREFILL_CHUNK_TOKENS, SHORT_CHUNK_TOKENS
from shunter.backtest.bound_ends import limit_spans, spans_after
from shunter.backtest.bound_times import (
    Iterations,
    Served,
    TokenTimes,
    chunks_of,
    context_beyond,
    context_tokens,
    memory_share,
)
from shunter.backtest.demand import Demand
from shunter.backtest.programme import Programme

# The longest prompts of the kinds of iterations in which short prompts end, in times of what is
# computed while a full batch's memory is read.
SHORT = (0.25, 0.5, 0.75, 1.0, 1.5)
# The shares of decode steps whose contexts are shorter than those at which readers are told apart.
READ_AT = (0.3, 0.5, 0.7, 0.9)


@dataclass(frozen=True, slots=True)
class Kinds:
    """The kinds of iterations of a variant.

    Attributes:
        edges: the longest prompts of the classes of short prompts.
        chunked: those with a chunk of a prompt, by the class of the longest that ends in them. Of
            the last class are those with a chunk that ends no prompt, and all in the spans of the
            trace's end, which follow one after the other.
        others: those without a prompt, before the spans and in each.
    """

    edges: Sequence[int]
    chunked: Sequence[Sequence[Iterations]]
    others: Sequence[Iterations]

    @property
    def with_prompts(self) -> list[Iterations]:
        """Those with a chunk of a prompt."""
        return [kind for each in self.chunked for kind in each]

    @property
    def every(self) -> list[Iterations]:
        """All of them."""
        return [*self.with_prompts, *self.others]


@dataclass(frozen=True, slots=True)
class Cuts:
    """Variables of the ends of chunks that end no prompt, beyond the least of each prompt.

    Attributes:
        count: how many.
        forced: those of iterations in which no other prompt ends, each with the least tokens of
            requests that don't count there: none where a server may compute short chunks.
    """

    count: int
    forced: dict[int, int]

    @classmethod
    def new(cls, programme: Programme, option: Option, served: Served) -> "Cuts":
        """Add the variables to a programme."""
        chunk = PREFILL_CHUNK_TOKENS
        cuts = cls(programme.variable(), {programme.variable(): chunk})
        by_gap: dict[int, dict[int, float]] = {}
        for column, demand in served:
            gap = chunk * chunks_of(demand) - demand.input_tokens + 1
            by_gap.setdefault(gap.bit_length() - 1, {})[column] = -1.0
        for bits, row in by_gap.items():
            column = programme.variable()
            cuts.forced[column] = 1 << bits
            programme.at_most.append((row | {column: 1.0}, 0.0))
        if option.keeps_tpot:
            column = programme.variable()
            cuts.forced[column] = 0
            short = {each: -float((d.input_tokens - 1) // SHORT_CHUNK_TOKENS) for each, d in served}
            programme.at_most.append((short | {column: 1.0}, 0.0))
        every = dict.fromkeys(cuts.forced, 1.0) | {cuts.count: -1.0}
        programme.at_most.append((every, 0.0))
        return cuts


def add_iterations(
    programme: Programme,
    option: Option,
    served: Served,
    busy: dict[int, float],
    last_s: float | None = None,
) -> Kinds:
    """Add the iterations that serve these shares, and return them by kinds.

    Args:
        programme: gets the rows.
        option: the option.
        served: the requests.
        busy: the row that gets the iterations' time.
        last_s: the last arrival of a whole trace, whose iterations are told apart further: by
            short prompts, by contexts, and by spans after it. None: these rows would cost more time
            than they are worth.
    """
    edges = () if last_s is None else short_prompts(option, served)
    spans = () if last_s is None else spans_after(programme, option, served, last_s)
    before = Kinds(
        edges,
        [[Iterations.new(programme)] for _ in range(len(edges) + 1)],
        [Iterations.new(programme)],
    )
    kinds = Kinds(
        edges,
        [
            *before.chunked[:-1],
            [*before.chunked[-1], *(span.chunked for span in spans)],
        ],
        [*before.others, *(span.others for span in spans)],
    )
    cuts = Cuts.new(programme, option, served)
    _add_beside(option, served, cuts, busy)
    for kind in kinds.every:
        busy[kind.seconds] = 1.0
        kind.add_seconds(programme, option)
    programme.limits |= {kind.prompt_s: 0.0 for kind in kinds.others}
    _split(programme, option, served, kinds.every)
    _split_prompts(programme, option, served, kinds, cuts)
    _limit_chunked(programme, served, kinds, cuts)
    _limit_sharing(programme, option, served, kinds)
    if last_s is not None:
        _limit_reads(programme, served, kinds.every)
    if spans:
        limit_spans(programme, option, served, before.every, spans, cuts.forced)
    return kinds


def short_prompts(option: Option, served: Served) -> list[int]:
    """Return the longest prompts of the kinds of iterations in which short ones end."""
    times, chunk = TokenTimes.of(option), PREFILL_CHUNK_TOKENS
    steps = sum(d.steps for _, d in served)
    read = sum(context_tokens(d) for _, d in served) / steps if steps else 0.0
    batch = min(option.max_batch, option.kv_capacity_tokens / read) if read else 1
    balance = (times.full_s + batch * (read * times.kv_s - times.token_s)) / times.token_s
    found = {round(share * balance) for share in SHORT}
    return sorted(edge for edge in found if 0 < edge < chunk)


def _add_beside(option: Option, served: Served, cuts: Cuts, busy: dict[int, float]) -> None:
    """Add to the busy time what prompts and chunks take beside arithmetic and memory."""
    times = TokenTimes.of(option)
    for column, demand in served:
        busy[column] = busy.get(column, 0.0) + times.prompt_beside_s(demand)
    busy[cuts.count] = times.prompt_s
    # Each with tokens has a chunk of a prompt of a request that doesn't count, besides.
    for column, tokens in cuts.forced.items():
        if tokens:
            busy[column] = times.prompt_s + tokens * times.traffic_s


def _split(
    programme: Programme, option: Option, served: Served, kinds: Sequence[Iterations]
) -> None:
    """Have each decode step in one of the kinds."""
    steps = {kind.steps: -1.0 for kind in kinds}
    read = {kind.read: -1.0 for kind in kinds}
    reserved = {kind.reserved: -1.0 for kind in kinds}
    for column, demand in served:
        if demand.steps:
            steps[column] = demand.steps
            reserved[column] = demand.steps * memory_share(demand, option)
            read[column] = context_tokens(demand) / 1000
    programme.equal += [(steps, 0.0), (reserved, 0.0), (read, 0.0)]


def _limit_reads(programme: Programme, served: Served, kinds: Sequence[Iterations]) -> None:
    """Have no kind read more than so many steps can, of those that read most."""
    decoding = sorted((d.input_tokens + (1 + d.steps) // 2, d.steps) for _, d in served if d.steps)
    total, seen = sum(count for _, count in decoding), 0
    at: list[int] = []
    for tokens, count in decoding:
        seen += count
        while len(at) < len(READ_AT) and seen >= READ_AT[len(at)] * total:
            at.append(tokens)
    for tokens in sorted(set(at)):
        beyond: dict[int, float] = {}
        for column, demand in served:
            more = context_beyond(demand, tokens) / 1000
            if more:
                beyond[column] = -more
        for kind in kinds:
            mine = programme.variable()
            beyond[mine] = 1.0
            row = {kind.read: 1.0, kind.steps: -tokens / 1000, mine: -1.0}
            programme.at_most.append((row, 0.0))
        programme.at_most.append((beyond, 0.0))


def _split_prompts(
    programme: Programme, option: Option, served: Served, kinds: Kinds, cuts: Cuts
) -> None:
    """Have each prompt in iterations of its own length or longer ones."""
    times = TokenTimes.of(option)
    for at, edge in enumerate(kinds.edges):
        row = {kind.prompt_s: 1.0 for each in kinds.chunked[: at + 1] for kind in each}
        for column, demand in served:
            if demand.input_tokens <= edge:
                row[column] = -times.prompt_compute_s(demand)
        programme.at_most.append((row, 0.0))
    every = {kind.prompt_s: 1.0 for kind in kinds.with_prompts}
    every |= {column: -times.prompt_compute_s(demand) for column, demand in served}
    every |= {column: -tokens * times.token_s for column, tokens in cuts.forced.items()}
    programme.equal.append((every, 0.0))


def _limit_chunked(programme: Programme, served: Served, kinds: Kinds, cuts: Cuts) -> None:
    """Bound the iterations with a chunk of a prompt, from both sides."""
    chunk = PREFILL_CHUNK_TOKENS
    ends: list[dict[int, float]] = [{kind.count: 1.0 for kind in each} for each in kinds.chunked]
    most: dict[int, float] = {count: 1.0 for each in ends for count in each}
    tokens: dict[int, float] = dict.fromkeys(most, -1.0)
    ends[-1][cuts.count] = -1.0
    for column, demand in served:
        chunks = chunks_of(demand)
        most[column] = -chunks
        tokens[column] = demand.input_tokens / chunk
        if chunks > 1:
            ends[-1][column] = 1.0 - chunks
        kind = ends[bisect_left(kinds.edges, demand.input_tokens)]
        kind[column] = kind.get(column, 0.0) - 1.0
    most |= dict.fromkeys(cuts.forced, -1.0)
    programme.at_most += [(row, 0.0) for row in (most, tokens, *ends)]


def _limit_sharing(programme: Programme, option: Option, served: Served, kinds: Kinds) -> None:
    """Bound the iterations from below, by the most requests that can share one."""
    places: dict[int, float] = {}
    memory: dict[int, float] = {}
    for kind in kinds.with_prompts:
        places |= {kind.count: -float(option.max_batch), kind.steps: 1.0}
        memory |= {kind.count: -1.0, kind.reserved: 1.0}
    for column, demand in served:
        # A prompt under way has its place, and its memory, as a reply has.
        chunks = chunks_of(demand)
        places[column] = chunks
        memory[column] = chunks * memory_share(demand, option)
    programme.at_most += [(places, 0.0), (memory, 0.0)]
    for kind in kinds.every:
        # A prompt takes one of the places.
        most = float(option.max_batch - (kind not in kinds.others))
        places = {kind.count: -most, kind.steps: 1.0}
        memory = {kind.count: -1.0, kind.reserved: 1.0}
        read = {kind.read: 1000.0 / option.kv_capacity_tokens, kind.reserved: -1.0}
        programme.at_most += [(places, 0.0), (memory, 0.0), (read, 0.0)]
    counts = dict.fromkeys((kind.count for kind in kinds.every), -1.0)
    times = TokenTimes.of(option)
    for weight in _weights(option, [demand for _, demand in served]):
        pace = dict(counts)
        for column, demand in served:
            limit_s = demand.pace_s
            if demand.steps and limit_s is not None:
                share = 2 * _root_context(demand) - weight * _spare_tokens(times, limit_s)
                pace[column] = demand.steps * weight * share
        programme.at_most.append((pace, 0.0))


def _root_context(demand: Demand) -> float:
    """Return the mean square root of the context over the decode steps, or a little less.

    The root is concave in the step, so its mean is never below that of the two ends.
    """
    first = demand.input_tokens + 1
    return (math.sqrt(first) + math.sqrt(first + demand.steps - 1)) / 2


def _spare_tokens(times: TokenTimes, tpot_s: float) -> float:
    """Return the cached tokens that a step can read within the TPOT, beside the weights."""
    return (tpot_s - times.one_s - times.overhead_s) / times.kv_s


def _weights(option: Option, served: Sequence[Demand]) -> list[float]:
    """Return tangents for the TPOT limit that touch near the usual contexts."""
    limited = [d for d in served if d.pace_s is not None and d.steps]
    if not limited or option.roofline.kv_bytes_per_token == 0:
        return []
    root = sum(d.steps * _root_context(d) for d in limited)
    times = TokenTimes.of(option)
    spare = sum(d.steps * _spare_tokens(times, d.pace_s or 0.0) for d in limited)
    return [factor * root / spare for factor in (0.5, 1.0, 2.0)]
