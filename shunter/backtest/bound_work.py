"""The work of the bound: the pool time that requests take, whenever they are served."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from policies import Option, Options
from policies.hardware.accelerator import PREFILL_CHUNK_TOKENS
from shunter.backtest.demand import Demand, able
from shunter.backtest.programme import Programme
from topics.records.money import NANO

Served = Sequence[tuple[int, Demand]]
"""The requests that an option may serve, each with the variable of its share."""


def volume_bound(demands: Sequence[Demand], options: Options) -> float:
    """Return the least cost of the work in US dollars, whenever it is done."""
    programme = Programme()
    busy = {
        pool: programme.variable(choices[0].usd_per_s) for pool, choices in options.by_pool.items()
    }
    columns: dict[tuple[str, str], list[tuple[int, Demand]]] = {}
    for demand in demands:
        choices = list(able(demand, options))
        if not choices:
            continue  # no pool can serve it in time, so it costs nothing
        mine = {}
        for option in choices:
            column = programme.variable(token_usd(demand, option))
            mine[column] = 1.0
            columns.setdefault((option.pool, option.variant), []).append((column, demand))
        programme.equal.append((mine, 1.0))
    add_work(programme, options, columns, {pool: [column] for pool, column in busy.items()})
    return programme.solve()


def token_usd(demand: Demand, option: Option) -> float:
    """Return the least that an option charges for a request by its tokens; 0 if by its time."""
    rates = option.rates
    if rates is None:
        return 0.0
    # All of the prompt may be cached, where that is cheaper.
    cached = demand.input_tokens if rates.cached_femto < rates.input_femto else 0
    return rates.nano_usd(demand.input_tokens, demand.output_tokens, cached) / NANO


def add_work(
    programme: Programme,
    options: Options,
    served_by: Mapping[tuple[str, str], Served],
    busy: Mapping[str, Sequence[int]],
) -> None:
    """Make each pool busy for as long as its arithmetic and its memory traffic take.

    Args:
        programme: gets the rows.
        options: the fleet.
        served_by: requests by pool and variant.
        busy: by pool, the variables whose sum is its busy time in seconds.
    """
    for pool, choices in options.by_pool.items():
        compute = dict.fromkeys(busy[pool], -1.0)
        memory = dict.fromkeys(busy[pool], -1.0)
        for option in choices:
            served = served_by.get((pool, option.variant), ())
            if served:
                steps = programme.variable()
                _limit_sharing(programme, option, served, steps)
                _add_tokens(option, served, steps, compute, memory)
        programme.at_most += [(compute, 0.0), (memory, 0.0)]


def _limit_sharing(programme: Programme, option: Option, served: Served, steps: int) -> None:
    """Bound the iterations from below, by the most requests that can share one."""
    places: dict[int, float] = {steps: -1.0}
    memory: dict[int, float] = {steps: -1.0}
    chunks: dict[int, float] = {steps: -1.0}
    for column, demand in served:
        chunks[column] = demand.input_tokens / PREFILL_CHUNK_TOKENS
        if demand.steps:
            tokens = demand.input_tokens + demand.output_tokens
            places[column] = demand.steps / option.max_batch
            memory[column] = demand.steps * tokens / option.kv_capacity_tokens
    programme.at_most += [(places, 0.0), (memory, 0.0), (chunks, 0.0)]
    for weight in _weights(option, [demand for _, demand in served]):
        pace: dict[int, float] = {steps: -1.0}
        for column, demand in served:
            limit_s = demand.profile.tpot_s
            if demand.steps and limit_s is not None:
                share = 2 * _root_context(demand) - weight * _spare_tokens(option, limit_s)
                pace[column] = demand.steps * weight * share
        programme.at_most.append((pace, 0.0))


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


def _add_tokens(
    option: Option,
    served: Served,
    steps: int,
    compute: dict[int, float],
    memory: dict[int, float],
) -> None:
    """Add the pool time of the requests' tokens and of the iterations."""
    rates, most = TokenTimes.of(option), option.max_batch
    # In a mixture of experts a step touches more weights the more sequences share it: concave, so
    # never below the chord.
    growth_s = (rates.full_s - rates.one_s) / (most - 1) if most > 1 else 0.0
    compute[steps] = rates.overhead_s
    memory[steps] = rates.overhead_s + rates.one_s - growth_s
    for column, demand in served:
        prompt, count = demand.input_tokens, demand.steps
        context = count * (prompt + 1) + count * (count - 1) / 2
        pairs = prompt * prompt / 2 + context
        # Neither arithmetic nor memory: an iteration takes it besides the larger of the two.
        beside_s = (
            (prompt + count) * rates.traffic_s
            + count * rates.sequence_s
            + math.ceil(prompt / PREFILL_CHUNK_TOKENS) * rates.prompt_s
        )
        compute[column] = beside_s + (prompt + count) * rates.token_s + pairs * rates.pair_s
        memory[column] = beside_s + context * rates.kv_s + count * growth_s
