"""Roofline: a model's time on a device is the larger of its compute time and its memory time.

Symbols of the formulas: F peak FLOP/s and BW peak bytes/s of the replica, MFU and MBU the share of
them that is reached.
"""

import math
from dataclasses import dataclass, field

# vLLM's default `gpu_memory_utilization`: weights and KV cache get this share of the memory.
MEMORY_UTILIZATION = 0.9

# Kernel launches and other work that no roofline sees, per layer and step (vllm-sr-sim's profiles),
# where a device declares no constants of its servers.
LAYER_OVERHEAD_S = 3e-6

# Context of a sequence of unknown length; the mean of the open trace.
TYPICAL_CONTEXT_TOKENS = 1700

# Where no key and value are kept (an encoder), nothing limits the tokens that fit.
UNLIMITED_TOKENS = 2**62


@dataclass(frozen=True, slots=True)
class Roofline:
    """One model variant on one replica (its tensor-parallel devices taken together).

    An iteration that pushes n tokens through the model takes

        max(FLOPs / (F * MFU), bytes / (BW * MBU)) + overhead + traffic + sequences + prompts

    because compute and memory traffic overlap (LLM-Viewer, GenZ and vllm-sr-sim use this form),
    while kernel launches, the exchange between the devices of a replica, and the server's work
    for each sequence and prompt do not. Without the last three, which are 0 where nothing was
    measured, decode is off by 2x on several devices (docs/hardware.md).

    Attributes:
        weights_bytes: all stored weights.
        active_weights_bytes: the weights one token touches; `weights_bytes` for a dense model.
        active_parameters: the parameters one token touches.
        kv_bytes_per_token: 2 * kv_heads * head_dim * layers * bytes per value; 0: an encoder.
        layers: transformer layers.
        attention_width: query heads * head_dim; 0 leaves attention FLOPs out.
        flops: peak dense FLOP/s at the precision of the variant.
        bandwidth_bytes_per_s: peak memory bandwidth.
        memory_bytes: memory of the replica.
        compute_efficiency: MFU, the share of `flops` reached.
        bandwidth_efficiency: MBU, the share of `bandwidth_bytes_per_s` reached.
        step_overhead_s: seconds of each iteration outside both; `layers * LAYER_OVERHEAD_S` where
            nothing was measured. Latency of the exchange between devices is part of it.
        traffic_token_s: seconds of exchange between devices for each token computed.
        sequence_overhead_s: seconds that each decoding sequence adds to an iteration.
        prompt_overhead_s: seconds that each prompt, or chunk of one, adds to an iteration.

    Raises:
        ValueError: a figure that must be positive is not, or more weights are active than stored.
    """

    weights_bytes: float
    active_weights_bytes: float
    active_parameters: float
    kv_bytes_per_token: float
    layers: int
    attention_width: int
    flops: float
    bandwidth_bytes_per_s: float
    memory_bytes: float
    compute_efficiency: float
    bandwidth_efficiency: float
    step_overhead_s: float
    traffic_token_s: float = 0.0
    sequence_overhead_s: float = 0.0
    prompt_overhead_s: float = 0.0

    alone_s: float = field(init=False, repr=False, compare=False)
    """A decode step that streams the weights for one sequence of no length, in seconds."""

    # Derived once, because a router asks for every candidate of every request.
    token_s: float = field(init=False, repr=False, compare=False)
    """To compute a token, in seconds, without its attention."""
    pair_s: float = field(init=False, repr=False, compare=False)
    """To compute the attention of a (query, key) pair, in seconds."""
    weights_s: float = field(init=False, repr=False, compare=False)
    """To stream all weights, in seconds."""
    kv_token_s: float = field(init=False, repr=False, compare=False)
    """To read the keys and values of a token, in seconds."""
    untouched_share: float = field(init=False, repr=False, compare=False)
    """Share of the weights that one token does not touch; 0 for a dense model."""
    sequence_s: float = field(init=False, repr=False, compare=False)
    """Overhead and traffic of a sequence in a decode step, in seconds."""
    prefill_overhead_s: float = field(init=False, repr=False, compare=False)
    """Overhead of a pass that computes one prompt, in seconds."""

    def __post_init__(self) -> None:
        for name in (
            "weights_bytes",
            "active_weights_bytes",
            "active_parameters",
            "flops",
            "bandwidth_bytes_per_s",
            "memory_bytes",
            "compute_efficiency",
            "bandwidth_efficiency",
        ):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"Roofline.{name} is {getattr(self, name)}: give a positive number"
                )
        for name in (
            "kv_bytes_per_token",
            "layers",
            "attention_width",
            "step_overhead_s",
            "traffic_token_s",
            "sequence_overhead_s",
            "prompt_overhead_s",
        ):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"Roofline.{name} is {getattr(self, name)}: give zero or more")
        if self.active_weights_bytes > self.weights_bytes:
            raise ValueError(
                f"Roofline.active_weights_bytes ({self.active_weights_bytes}) exceeds "
                f"weights_bytes ({self.weights_bytes}): give the weights that one token touches"
            )
        reached_flops = self.flops * self.compute_efficiency
        reached_bytes_per_s = self.bandwidth_bytes_per_s * self.bandwidth_efficiency
        derived = {
            "token_s": 2.0 * self.active_parameters / reached_flops,
            "pair_s": 4.0 * self.attention_width * self.layers / reached_flops,
            "weights_s": self.weights_bytes / reached_bytes_per_s,
            "kv_token_s": self.kv_bytes_per_token / reached_bytes_per_s,
            "untouched_share": 1.0 - self.active_weights_bytes / self.weights_bytes,
            "sequence_s": self.sequence_overhead_s + self.traffic_token_s,
            "prefill_overhead_s": self.step_overhead_s + self.prompt_overhead_s,
        }
        for name, value in derived.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "alone_s", self.step_s(1, 0))

    def iteration_s(
        self,
        tokens: float,
        kv_tokens: float,
        attention_pairs: float,
        sequences: float = 0,
        prompts: int = 0,
    ) -> float:
        """Seconds of one pass of `tokens` through the model.

        FLOPs are 2 * active parameters * tokens + 4 * attention_width * layers * pairs
        (vllm-sr-sim). Bytes are the touched weights and `kv_tokens` of cached keys and values.
        A dense model touches all weights; for a mixture of experts the expected share is
        1 - (1 - active/total)^tokens. That is exact for one token; for more it is an approximation
        that treats all weights as experts which tokens pick independently, so it leaves out the
        layers that every token uses and routing that favours some experts.

        Args:
            tokens: tokens computed, of prompts and of decodes alike.
            kv_tokens: tokens whose keys and values are read from the cache.
            attention_pairs: (query, key) pairs of all tokens computed.
            sequences: those of the tokens that are decodes, one of a sequence.
            prompts: prompts, or chunks of them, that the other tokens are of.
        """
        compute_s = tokens * self.token_s + attention_pairs * self.pair_s
        memory_s: float = (
            self.weights_s * (1.0 - self.untouched_share**tokens) + kv_tokens * self.kv_token_s
        )
        overhead_s = (
            self.step_overhead_s
            + tokens * self.traffic_token_s
            + sequences * self.sequence_overhead_s
            + prompts * self.prompt_overhead_s
        )
        return max(compute_s, memory_s) + overhead_s

    def prefill_s(self, tokens: int, cached_tokens: int = 0) -> float:
        """Seconds until the first token of a prompt, computed alone and in one pass.

        With n = tokens - cached, causal attention has n * (n/2 + cached) pairs (vllm-sr-sim).
        Requests without output, such as embeddings, are this and nothing more. The last token is
        always computed, cached or not.

        Args:
            tokens: the whole prompt, cached part included.
            cached_tokens: the part of it whose keys and values are in the cache.
        """
        if tokens > 0 and not cached_tokens:
            # `iteration_s` as it is here, which a router asks for every candidate of every request.
            compute_s = tokens * self.token_s + tokens * (0.5 * tokens) * self.pair_s
            memory_s = self.weights_s
            if self.untouched_share:
                memory_s *= 1.0 - self.untouched_share**tokens
            overhead_s = tokens * self.traffic_token_s + self.prefill_overhead_s
            return overhead_s + max(memory_s, compute_s)
        computed = tokens - cached_tokens
        if computed < 1:
            computed, cached_tokens = 1, max(tokens - 1, 0)
        return self.iteration_s(
            computed, cached_tokens, computed * (0.5 * computed + cached_tokens), prompts=1
        )

    def step_s(self, sequences: float, context_tokens: float, prefill_tokens: int = 0) -> float:
        """Seconds of one iteration of continuous batching.

        Args:
            sequences: sequences that decode one token each; a mean need not be a whole number.
            context_tokens: their contexts, all together.
            prefill_tokens: prompt tokens computed beside them, taken as the beginning of one
                prompt. For later chunks of a long prompt use `iteration_s`.
        """
        if prefill_tokens or not sequences:
            return self.iteration_s(
                sequences + prefill_tokens,
                context_tokens,
                context_tokens + 0.5 * prefill_tokens * prefill_tokens,
                sequences,
                1 if prefill_tokens else 0,
            )
        # `iteration_s` as it is here, like the one in `prefill_s`.
        compute_s, memory_s = self.sequences_s(sequences)
        compute_s += context_tokens * self.pair_s
        memory_s += context_tokens * self.kv_token_s
        return max(compute_s, memory_s) + self.step_overhead_s

    def sequences_s(self, sequences: float) -> tuple[float, float]:
        """Seconds of compute and of memory of a decode step, without the sequences' contexts.

        Both hold the time that the sequences take beside either.
        """
        memory_s = self.weights_s
        if self.untouched_share:
            memory_s *= 1.0 - self.untouched_share**sequences
        beside_s = sequences * self.sequence_s
        return sequences * self.token_s + beside_s, memory_s + beside_s

    def decode_s(self, output_tokens: int, sequences: int, context_tokens_each: int) -> float:
        """Seconds from the first output token to the last, in a steady batch.

        The prefill yields the first token, so there are `output_tokens - 1` steps.

        Args:
            output_tokens: output of each sequence.
            sequences: sequences that decode together.
            context_tokens_each: prompt tokens of each.
        """
        return self.decode_run_s(
            sequences, sequences * (context_tokens_each + 1), output_tokens - 1
        )

    def decode_run_s(self, sequences: int, context_tokens: int, steps: int) -> float:
        """Seconds of `steps` decode steps in a row: the sum of `step_s`, in constant time.

        Each step adds one token to each context, so compute time and memory time are linear in the
        step and change places at most once: the sum is two arithmetic series at most.

        Args:
            sequences: sequences that decode together.
            context_tokens: their contexts at the first step, all together.
            steps: how many steps; 0 or less takes no time.
        """
        if steps <= 0:
            return 0.0
        compute_s = sequences * self.token_s + context_tokens * self.pair_s
        compute_growth_s = sequences * self.pair_s
        memory_s = (
            self.weights_s * (1.0 - self.untouched_share**sequences)
            + context_tokens * self.kv_token_s
        )
        memory_growth_s = sequences * self.kv_token_s
        gap_s = compute_s - memory_s
        gap_growth_s = compute_growth_s - memory_growth_s
        first, then = (compute_s, compute_growth_s), (memory_s, memory_growth_s)
        if gap_s < 0 or (gap_s == 0 and gap_growth_s < 0):
            first, then = then, first
        flip = steps
        if gap_s * gap_growth_s < 0:
            flip = min(steps, math.ceil(-gap_s / gap_growth_s))
        roof_s = _series(*first, 0, flip) + _series(*then, flip, steps)
        return roof_s + steps * (self.step_overhead_s + sequences * self.sequence_s)

    def kv_capacity_tokens(self, resident_weights_bytes: float) -> int:
        """Tokens whose keys and values fit beside all resident weights, this variant's included.

        vLLM's rule: 0.9 of the memory, less the weights. Activations live in the tenth left free.
        """
        free_bytes = max(0.0, MEMORY_UTILIZATION * self.memory_bytes - resident_weights_bytes)
        if self.kv_bytes_per_token == 0:
            return UNLIMITED_TOKENS
        return int(free_bytes // self.kv_bytes_per_token)


def _series(first: float, growth: float, start: int, stop: int) -> float:
    """Sum of first + growth * i over start <= i < stop."""
    return (stop - start) * (first + growth * 0.5 * (start + stop - 1))
