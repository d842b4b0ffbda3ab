"""The terms of an option's time and memory that requests take, by its roofline."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from policies import Option
from policies.hardware.chunks import PREFILL_CHUNK_TOKENS
from shunter.backtest.demand import Demand
from shunter.backtest.programme import Programme

Served = Sequence[tuple[int, Demand]]
"""The requests that an option may serve, each with the variable of its share."""


def chunks_of(demand: Demand) -> int:
    """Return in how many iterations its prompt is computed at least."""
    return math.ceil(demand.input_tokens / PREFILL_CHUNK_TOKENS)


def memory_share(demand: Demand, option: Option) -> float:
    """Return the share of a replica's memory for keys and values that it has while it runs."""
    return (demand.input_tokens + demand.output_tokens) / option.kv_capacity_tokens


def context_tokens(demand: Demand) -> float:
    """Return the tokens that all decode steps of a request read together."""
    return context_beyond(demand, 0)


def context_beyond(demand: Demand, tokens: int) -> float:
    """Return what its decode steps read together, each without so many tokens."""
    count = demand.steps
    least = demand.input_tokens + 1 - tokens
    if least < 1:
        # The first steps read no more than that.
        count, least = max(0, count - 1 + least), 1
    return count * least + count * (count - 1) / 2


@dataclass(frozen=True, slots=True)
class StepTimes:
    """Variables that the time of some iterations of a variant follows from.

    Attributes:
        count: how many.
        seconds: their time, without what prompts take beside arithmetic and memory.
        steps: decode steps of sequences in them.
        read: thousands of tokens whose keys and values those steps read.
        prompt_s: arithmetic of the prompts in them.
    """

    count: int
    seconds: int
    steps: int
    read: int
    prompt_s: int

    def add_seconds(self, programme: Programme, option: Option) -> None:
        """Have iterations take at least as long as their arithmetic and as their memory traffic."""
        times, most = TokenTimes.of(option), option.max_batch
        beside_s = times.traffic_s + times.sequence_s
        # In a mixture of experts a step touches more weights the more sequences share it: concave,
        # so never below the chord.
        growth_s = (times.full_s - times.one_s) / (most - 1) if most > 1 else 0.0
        compute = {
            self.seconds: -1.0,
            self.count: times.overhead_s,
            self.steps: beside_s + times.token_s,
            self.read: 1000 * times.pair_s,
            self.prompt_s: 1.0,
        }
        memory = {
            self.seconds: -1.0,
            self.count: times.overhead_s + times.one_s - growth_s,
            self.steps: beside_s + growth_s,
            self.read: 1000 * times.kv_s,
        }
        programme.at_most += [(compute, 0.0), (memory, 0.0)]


@dataclass(frozen=True, slots=True)
class Iterations(StepTimes):
    """Variables of one kind of iterations of a variant.

    Attributes:
        reserved: shares of the memory that their sequences have, summed over their steps.
    """

    reserved: int

    @classmethod
    def new(cls, programme: Programme) -> "Iterations":
        """Add the variables to a programme."""
        return cls(*(programme.variable() for _ in range(6)))


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
