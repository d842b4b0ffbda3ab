"""The iterations of the bound: what one variant's work takes of a pool, by kinds of iterations.

An iteration takes the larger of its arithmetic and its memory traffic. Over all iterations together
prompts (arithmetic) would hide behind decode steps (memory) for nothing. Only so many iterations
have a prompt in them as prompts have chunks, though, so that those are counted apart from the
others: in each kind the larger of the two counts, and most decode steps are of the second.
docs/placement.md derives the rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from policies import Option
from policies.hardware.accelerator import PREFILL_CHUNK_TOKENS
from shunter.backtest.demand import Demand
from shunter.backtest.programme import Programme

Served = Sequence[tuple[int, Demand]]
"""The requests that an option may serve, each with the variable of its share."""


@dataclass(frozen=True, slots=True)
class Iterations:
    """Variables of one kind of iterations of a variant.

    Attributes:
        count: how many.
        seconds: their time, without what prompts take beside arithmetic and memory.
        steps: decode steps of sequences in them.
        reserved: shares of the memory that those sequences have, summed over their steps.
        read: thousands of tokens whose keys and values those steps read.
        prompt_s: arithmetic of the prompts in them that may be in either kind.
    """

    count: int
    seconds: int
    steps: int
    reserved: int
    read: int
    prompt_s: int

    @classmethod
    def new(cls, programme: Programme) -> "Iterations":
        """Add the variables to a programme."""
        return cls(*(programme.variable() for _ in range(6)))


def add_iterations(
    programme: Programme, option: Option, served: Served, busy: dict[int, float]
) -> None:
    """Add the iterations that serve these shares; ``busy`` is the row that gets their time."""
    times = TokenTimes.of(option)
    chunked, others = Iterations.new(programme), Iterations.new(programme)
    busy[chunked.seconds] = busy[others.seconds] = 1.0
    for column, demand in served:
        busy[column] = busy.get(column, 0.0) + times.prompt_beside_s(demand)
    _split(programme, option, served, chunked, others)
    _limit_chunked(programme, option, served, chunked)
    _limit_sharing(programme, option, served, chunked, others)
    prompts = {c: times.prompt_compute_s(d) for c, d in served if is_ordered(d, option)}
    _add_seconds(programme, option, chunked, prompts)
    _add_seconds(programme, option, others, {})


def is_ordered(demand: Demand, option: Option) -> bool:
    """Return whether its prompt is computed in the order of arrival, whatever else comes.

    What may come as a batch is overtaken by direct work, between any two of its chunks.
    """
    return not (demand.profile.batchable and "batch" in option.lanes)


def chunks_of(demand: Demand) -> int:
    """Return in how many iterations its prompt is computed at least."""
    return math.ceil(demand.input_tokens / PREFILL_CHUNK_TOKENS)


def memory_share(demand: Demand, option: Option) -> float:
    """Return the share of a replica's memory for keys and values that it has while it runs."""
    return (demand.input_tokens + demand.output_tokens) / option.kv_capacity_tokens


def _split(
    programme: Programme, option: Option, served: Served, chunked: Iterations, others: Iterations
) -> None:
    """Have all decode steps, and the prompts that may be anywhere, in one of the two kinds."""
    times = TokenTimes.of(option)
    steps = {chunked.steps: -1.0, others.steps: -1.0}
    read = {chunked.read: -1.0, others.read: -1.0}
    reserved = {chunked.reserved: -1.0, others.reserved: -1.0}
    prompt_s = {chunked.prompt_s: -1.0, others.prompt_s: -1.0}
    for column, demand in served:
        if demand.steps:
            steps[column] = demand.steps
            reserved[column] = demand.steps * memory_share(demand, option)
            read[column] = context_tokens(demand) / 1000
        if not is_ordered(demand, option):
            prompt_s[column] = times.prompt_compute_s(demand)
    programme.equal += [(steps, 0.0), (reserved, 0.0), (read, 0.0), (prompt_s, 0.0)]


def _limit_chunked(
    programme: Programme, option: Option, served: Served, chunked: Iterations
) -> None:
    """Bound the iterations with a chunk of an ordered prompt, from both sides.

    From above: where a prompt is cut short of a whole chunk, it is the first in the next iteration.
    """
    most: dict[int, float] = {chunked.count: 1.0}
    tokens: dict[int, float] = {chunked.count: -1.0}
    for column, demand in served:
        if is_ordered(demand, option):
            most[column] = -1.0 - chunks_of(demand)
            tokens[column] = demand.input_tokens / PREFILL_CHUNK_TOKENS
    programme.at_most += [(most, 0.0), (tokens, 0.0)]


def _limit_sharing(
    programme: Programme, option: Option, served: Served, chunked: Iterations, others: Iterations
) -> None:
    """Bound the iterations from below, by the most requests that can share one."""
    for kind in (chunked, others):
        # A prompt under way has its place, and its memory, as a reply has.
        places = {kind.count: -1.0, kind.steps: 1.0 / option.max_batch}
        memory = {kind.count: -1.0, kind.reserved: 1.0}
        for column, demand in served:
            if kind is chunked and is_ordered(demand, option):
                places[column] = chunks_of(demand) / option.max_batch
                memory[column] = chunks_of(demand) * memory_share(demand, option)
        read = {kind.read: 1000.0 / option.kv_capacity_tokens, kind.reserved: -1.0}
        programme.at_most += [(places, 0.0), (memory, 0.0), (read, 0.0)]
    chunks: dict[int, float] = {chunked.count: -1.0, others.count: -1.0}
    for column, demand in served:
        chunks[column] = demand.input_tokens / PREFILL_CHUNK_TOKENS
    programme.at_most.append((chunks, 0.0))
    for weight in _weights(option, [demand for _, demand in served]):
        pace: dict[int, float] = {chunked.count: -1.0, others.count: -1.0}
        for column, demand in served:
            limit_s = demand.profile.tpot_s
            if demand.steps and limit_s is not None:
                share = 2 * _root_context(demand) - weight * _spare_tokens(option, limit_s)
                pace[column] = demand.steps * weight * share
        programme.at_most.append((pace, 0.0))


def _add_seconds(
    programme: Programme, option: Option, kind: Iterations, prompts: dict[int, float]
) -> None:
    """Have iterations take as long as their arithmetic and as their memory traffic do at least.

    Args:
        programme: gets the rows.
        option: what runs them.
        kind: the iterations.
        prompts: by the variable of a share, the arithmetic of the prompt, if it is in this kind.
    """
    times, most = TokenTimes.of(option), option.max_batch
    beside_s = times.traffic_s + times.sequence_s
    # In a mixture of experts a step touches more weights the more sequences share it: concave, so
    # never below the chord.
    growth_s = (times.full_s - times.one_s) / (most - 1) if most > 1 else 0.0
    compute = {
        kind.seconds: -1.0,
        kind.count: times.overhead_s,
        kind.steps: beside_s + times.token_s,
        kind.read: 1000 * times.pair_s,
        kind.prompt_s: 1.0,
    }
    memory = {
        kind.seconds: -1.0,
        kind.count: times.overhead_s + times.one_s - growth_s,
        kind.steps: beside_s + growth_s,
        kind.read: 1000 * times.kv_s,
    }
    programme.at_most += [(compute | prompts, 0.0), (memory, 0.0)]


def context_tokens(demand: Demand) -> float:
    """Return the tokens that all decode steps of a request read together."""
    count = demand.steps
    return count * (demand.input_tokens + 1) + count * (count - 1) / 2


def _root_context(demand: Demand) -> float:
    """Return the mean square root of the context over the decode steps, or a little less.

    The root is concave in the step, so its mean is never below that of the two ends.
    """
    first = demand.input_tokens + 1
    return (math.sqrt(first) + math.sqrt(first + demand.steps - 1)) / 2


def _spare_tokens(option: Option, tpot_s: float) -> float:
    """Return the cached tokens that a step can read within the TPOT, beside the weights."""
    rates = TokenTimes.of(option)
    return (tpot_s - rates.one_s - rates.overhead_s) / rates.kv_s


def _weights(option: Option, served: Sequence[Demand]) -> list[float]:
    """Return tangents for the TPOT limit that touch near the usual contexts."""
    limited = [d for d in served if d.profile.tpot_s is not None and d.steps]
    if not limited or option.roofline.kv_bytes_per_token == 0:
        return []
    root = sum(d.steps * _root_context(d) for d in limited)
    spare = sum(d.steps * _spare_tokens(option, d.profile.tpot_s or 0.0) for d in limited)
    return [factor * root / spare for factor in (0.5, 1.0, 2.0)]


@dataclass(frozen=True, slots=True)
class TokenTimes:
    """Seconds that an option takes.

    Per token computed, per attention pair, per cached token read; for the weights that one and a
    full batch of sequences touch; for the overhead of an iteration, of a token's exchange between
    devices, of a decoding sequence, and of a prompt or chunk of one.
    """

    token_s: float
    pair_s: float
    kv_s: float
    one_s: float
    full_s: float
    overhead_s: float
    traffic_s: float
    sequence_s: float
    prompt_s: float

    @classmethod
    def of(cls, option: Option) -> "TokenTimes":
        """Return the terms of the option's roofline (`policies.hardware.roofline`)."""
        r = option.roofline
        flops = r.flops * r.compute_efficiency
        bytes_per_s = r.bandwidth_bytes_per_s * r.bandwidth_efficiency
        untouched = 1 - r.active_weights_bytes / r.weights_bytes
        return cls(
            token_s=2 * r.active_parameters / flops,
            pair_s=4 * r.attention_width * r.layers / flops,
            kv_s=r.kv_bytes_per_token / bytes_per_s,
            one_s=r.active_weights_bytes / bytes_per_s,
            full_s=r.weights_bytes * (1 - untouched**option.max_batch) / bytes_per_s,
            overhead_s=r.step_overhead_s,
            traffic_s=r.traffic_token_s,
            sequence_s=r.sequence_overhead_s,
            prompt_s=r.prompt_overhead_s,
        )

    def prompt_compute_s(self, demand: Demand) -> float:
        """Return the arithmetic of a prompt."""
        tokens = demand.input_tokens
        return tokens * self.token_s + tokens * tokens / 2 * self.pair_s

    def prompt_beside_s(self, demand: Demand) -> float:
        """Return the least that a prompt takes beside arithmetic and memory."""
        return demand.input_tokens * self.traffic_s + chunks_of(demand) * self.prompt_s
