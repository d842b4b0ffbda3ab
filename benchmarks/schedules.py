"""Closed loops as schedules: which iterations a replica runs, whatever each of them takes.

With one variant and clients that answer at once, an iteration holds the same sequences and prompts
however long it takes. So a configuration is simulated once, and its means by other constants are
sums of the times of the same iterations: a fit asks for thousands of those.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from policies.hardware.closed_loop import Means, served
from policies.hardware.roofline import Roofline

Array = NDArray[np.float64]

Run = tuple[float, float, float, float, float, float]
"""Tokens, cached tokens read, attention pairs, sequences, prompts, steps (0 where prompts are)."""

# Of a roofline, what the time of an iteration depends on.
_TERMS = (
    "token_s",
    "pair_s",
    "weights_s",
    "untouched_share",
    "kv_token_s",
    "step_overhead_s",
    "traffic_token_s",
    "sequence_overhead_s",
    "prompt_overhead_s",
)


@dataclass(frozen=True)
class _Ticks(Roofline):
    """A variant whose every run of iterations takes a second: times are counts of runs."""

    runs: list[Run] = field(default_factory=list)

    def iteration_s(
        self,
        tokens: float,
        kv_tokens: float,
        attention_pairs: float,
        sequences: float = 0,
        prompts: int = 0,
    ) -> float:
        """Note an iteration with prompts."""
        self.runs.append((tokens, kv_tokens, attention_pairs, sequences, prompts, 0))
        return 1.0

    def decode_run_s(self, sequences: int, context_tokens: int, steps: int) -> float:
        """Note decode steps in a row; they are asked for twice, planned and settled."""
        run = (sequences, context_tokens, context_tokens, sequences, 0, steps)
        if self.runs[-1] != run:
            self.runs.append(run)
        return 1.0


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """The runs of iterations of a closed loop, and how often each counts in either mean."""

    runs: Array
    of_ttft: Array
    of_tpot: Array


def schedule(roofline: Roofline, lengths: Sequence[tuple[int, int]], clients: int) -> Schedule:
    """Simulate a closed loop once. Raises ValueError as `served` does."""
    given = {each.name: getattr(roofline, each.name) for each in fields(roofline) if each.init}
    ticks = _Ticks(**given)
    requests = list(served(ticks, lengths, clients))
    replies = sum(each.output_tokens > 1 for each in requests)
    ttft, tpot = [0.0] * (len(ticks.runs) + 1), [0.0] * (len(ticks.runs) + 1)
    for each in requests:
        sent, first, finished = map(int, each[:3])
        ttft[sent] += 1 / len(requests)
        ttft[first] -= 1 / len(requests)
        if each.output_tokens > 1:
            share = 1 / (each.output_tokens - 1) / replies
            tpot[first] += share
            tpot[finished] -= share
    weights = [np.array(list(accumulate(each))[:-1]) for each in (ttft, tpot)]
    return Schedule(np.array(ticks.runs, dtype=float), *weights)


class Schedules:
    """The schedules of many configurations, for one pass over all of them."""

    def __init__(self, schedules: Sequence[Schedule]) -> None:
        runs = np.concatenate([each.runs for each in schedules])
        self._runs = tuple(runs.T)
        self._ttft = np.concatenate([each.of_ttft for each in schedules])
        self._tpot = np.concatenate([each.of_tpot for each in schedules])
        self._counts = [len(each.runs) for each in schedules]
        self._starts = np.cumsum([0, *self._counts[:-1]])

    def means(self, rooflines: Sequence[Roofline], latency_s: float) -> list[Means]:
        """Return what `closed_loop` finds for each configuration by these constants.

        Args:
            rooflines: of each configuration, in order; memory and weights as when simulated.
            latency_s: what each first token takes beside the replica.
        """
        terms = np.array([[getattr(each, name) for name in _TERMS] for each in rooflines])
        run_s = _run_s(self._runs, tuple(np.repeat(terms, self._counts, axis=0).T))
        ttft_s, tpot_s = (
            np.add.reduceat(run_s * weights, self._starts) for weights in (self._ttft, self._tpot)
        )
        return [Means(latency_s + a, b) for a, b in zip(ttft_s, tpot_s, strict=True)]


def _run_s(runs: tuple[Array, ...], terms: tuple[Array, ...]) -> Array:
    """Return the seconds of runs: `Roofline.iteration_s` and `decode_run_s`, of arrays."""
    tokens, kv_tokens, pairs, sequences, prompts, steps = runs
    token_s, pair_s, weights_s, untouched, kv_token_s, step_s, traffic_s, sequence_s, prompt_s = (
        terms
    )
    compute_s = tokens * token_s + pairs * pair_s
    memory_s = weights_s * (1.0 - untouched**tokens) + kv_tokens * kv_token_s
    beside_s = step_s + tokens * traffic_s + sequences * sequence_s + prompts * prompt_s
    # A step of decoding adds a token to each context; an iteration with prompts is a single step.
    compute_growth_s = np.where(steps, sequences * pair_s, 0.0)
    memory_growth_s = np.where(steps, sequences * kv_token_s, 0.0)
    steps = np.maximum(steps, 1.0)
    gap_s, gap_growth_s = compute_s - memory_s, compute_growth_s - memory_growth_s
    is_compute = (gap_s > 0) | ((gap_s == 0) & (gap_growth_s >= 0))
    crosses = gap_s * gap_growth_s < 0
    at = np.ceil(-gap_s / np.where(crosses, gap_growth_s, 1.0))
    flip = np.where(crosses, np.minimum(steps, at), steps)
    first_s, first_growth_s = np.where(
        is_compute, (compute_s, compute_growth_s), (memory_s, memory_growth_s)
    )
    then_s, then_growth_s = np.where(
        is_compute, (memory_s, memory_growth_s), (compute_s, compute_growth_s)
    )
    before_s = flip * (first_s + first_growth_s * 0.5 * (flip - 1))
    after_s = (steps - flip) * (then_s + then_growth_s * 0.5 * (flip + steps - 1))
    run_s: Array = before_s + after_s + steps * beside_s
    return run_s
