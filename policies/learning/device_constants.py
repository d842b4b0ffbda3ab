"""Constants of a pool's device, learned from executed requests.

Each request is one or two measurements: its time to the first token, and its time per token after
that. Which part of a roofline took how much of the predicted time says how much each constant can
have to do with the difference. That is Kalman's filter, linear in the logarithms: constants start
from the declared ones as a prior, and those that no measurement tells apart stay near it.
"""

from dataclasses import dataclass
from math import exp, log, sqrt

from policies.config.options import Option
from policies.hardware.constants import AS_DECLARED, FACTOR_MAX, Factors, corrected
from policies.hardware.roofline import Roofline

# Variance of the logarithm of each factor before anything was measured: servers on devices without
# measurements differ by about this, and what is slow in one way by more.
PRIOR = 0.7**2
# Of a measurement's logarithm, where nothing else ran; and what it grows by with each: about the
# last hundred measurements count.
NOISE = 0.2**2
DRIFT = 4e-5
# A measurement that is off by more than this counts as this much.
RATIO_MAX = 4.0
# The most that a measurement counts as longer: so many deviations of what is not learned yet, and
# of its noise. Prompts that come beside a reply make some measurements much longer, and none
# shorter; a promise is to be what most requests get.
UNLEARNED, LONGER = 2.0, 0.5
# The decode of a short reply has so much more variance, over its steps: a prompt beside it makes
# one of two tokens many times as long, and is lost in one of hundreds. None from so many steps on.
SHORT, STEPS_MANY = 8.0, 16
# Of the larger of compute and memory time, and the smaller: to which the difference is put down.
SHARPNESS = 4
# Measurements of which the weight of the prior falls to a third.
USUAL = 25.0


@dataclass(frozen=True, slots=True)
class Measured:
    """An executed request as it was measured; seconds of the device's own clock.

    Attributes:
        first_s: from its begin to its first token; None where it was not streamed.
        total_s: from its begin to its end.
        sequences: of its variant, that shared its replica on the mean, itself included.
        ahead_s: predicted time of what had to be computed first.
        others_s: a round of the other variants that ran on its replica.
    """

    first_s: float | None
    total_s: float
    sequences: int = 1
    ahead_s: float = 0.0
    others_s: float = 0.0


@dataclass(slots=True)
class _Parts:
    """A predicted time in seconds, by the constant that it comes from; ``fixed`` from none."""

    compute: float = 0.0
    memory: float = 0.0
    step: float = 0.0
    prompt: float = 0.0
    first_token: float = 0.0
    fixed: float = 0.0

    def add(self, times: float, compute_s: float, memory_s: float) -> None:
        """Add the larger of the two, so many times, divided among what may explain it."""
        larger_s = max(compute_s, memory_s)
        if larger_s <= 0:
            return
        both = (compute_s / larger_s) ** SHARPNESS, (memory_s / larger_s) ** SHARPNESS
        self.compute += times * larger_s * both[0] / sum(both)
        self.memory += times * larger_s * both[1] / sum(both)

    def constants(self) -> tuple[float, float, float, float, float]:
        return self.compute, self.memory, self.step, self.prompt, self.first_token


class DeviceConstants:
    """The constants of one pool's device, learned by its worker."""

    def __init__(self) -> None:
        size = len(AS_DECLARED)
        self._logs = [0.0] * size
        self._covariance = [[PRIOR * (i == j) for j in range(size)] for i in range(size)]
        self._known = 0.0
        self._rooflines: dict[str, Roofline] = {}

    @property
    def factors(self) -> Factors:
        """The learned factors; all 1.0 before any measurement."""
        return Factors(*(round(exp(each), 4) for each in self._logs))

    @property
    def known(self) -> float:
        """The measured part of what can be known, 0 to 1; the rest is the declaration's."""
        return round(self._known, 3)

    def roofline(self, option: Option) -> Roofline:
        """Return the roofline of an option of this pool by what was learned."""
        found = self._rooflines.get(option.variant)
        if found is None:
            found = corrected(option.roofline, self.factors)
            self._rooflines[option.variant] = found
        return found

    def learn(
        self,
        option: Option,
        input_tokens: int,
        cached_tokens: int,
        output_tokens: int,
        took: Measured,
    ) -> None:
        """Learn from one executed request.

        Args:
            option: the variant that ran it.
            input_tokens: its whole prompt.
            cached_tokens: the part of it that was in the cache.
            output_tokens: of its reply.
            took: its measured times.
        """
        steps = max(0, output_tokens - 1)
        first = self._first(option, input_tokens, cached_tokens)
        first.fixed = took.ahead_s + took.others_s
        rest = _Parts()
        if steps:
            rest = self._decode(option, steps, input_tokens + output_tokens // 2, took.sequences)
            rest.fixed = steps * took.others_s
        if took.first_s is None:
            both = (a + b for a, b in zip(first.constants(), rest.constants(), strict=True))
            compute, memory, step, prompt, first_token = both
            fixed = first.fixed + rest.fixed
            whole = _Parts(compute, memory, step, prompt, first_token, fixed)
            self._measured(took.total_s, whole)
        else:
            self._measured(took.first_s, first)
            if steps:
                doubt = max(0.0, SHORT / steps - SHORT / STEPS_MANY)
                self._measured(took.total_s - took.first_s, rest, doubt)
        self._rooflines.clear()

    def _first(self, option: Option, input_tokens: int, cached_tokens: int) -> _Parts:
        roofline, known = self.roofline(option), self.factors
        tokens = max(1, input_tokens)
        computed = max(1, tokens - cached_tokens)
        before = tokens - computed
        parts = _Parts(
            compute=computed * roofline.traffic_token_s,
            step=roofline.step_overhead_s,
            prompt=roofline.prompt_overhead_s,
            first_token=option.latency_s * known.first_token,
        )
        pairs = computed * (0.5 * computed + before)
        touched = 1.0 - roofline.untouched_share**computed
        memory_s = roofline.weights_s * touched + before * roofline.kv_token_s
        parts.add(1.0, computed * roofline.token_s + pairs * roofline.pair_s, memory_s)
        return parts

    def _decode(self, option: Option, steps: int, context_tokens: int, sequences: int) -> _Parts:
        roofline = self.roofline(option)
        together = min(sequences, option.max_batch)
        contexts = together * context_tokens
        parts = _Parts(
            compute=steps * together * roofline.traffic_token_s,
            step=steps * (roofline.step_overhead_s + together * roofline.sequence_overhead_s),
        )
        touched = 1.0 - roofline.untouched_share**together
        parts.add(
            steps,
            together * roofline.token_s + contexts * roofline.pair_s,
            roofline.weights_s * touched + contexts * roofline.kv_token_s,
        )
        return parts

    def _measured(self, took_s: float, parts: _Parts, doubt: float = 0.0) -> None:
        """Move the logarithms towards what explains a measurement, the less the more doubtful."""
        by_constant = parts.constants()
        expected_s = sum(by_constant) + parts.fixed
        if took_s <= 0 or expected_s <= 0 or expected_s <= parts.fixed:
            return
        most = log(RATIO_MAX)
        off = min(most, max(-most, log(took_s / expected_s)))
        slopes = [each / expected_s for each in by_constant]
        fixed = parts.fixed / expected_s
        covariance, size = self._covariance, range(len(slopes))
        for i in size:
            covariance[i][i] += DRIFT * max(0.0, 1.0 - covariance[i][i] / PRIOR)
        along = [sum(covariance[i][j] * slopes[j] for j in size) for i in size]
        unknown = max(0.0, sum(slopes[i] * along[i] for i in size))
        noise = NOISE + (2.0 * fixed) ** 2
        spread = unknown + noise + doubt
        off = min(off, UNLEARNED * sqrt(unknown) + LONGER * sqrt(noise))
        limit = log(FACTOR_MAX)
        for i in size:
            moved = self._logs[i] + along[i] / spread * off
            self._logs[i] = min(limit, max(-limit, moved))
        self._covariance = [
            [covariance[i][j] - along[i] * along[j] / spread for j in size] for i in size
        ]
        self._known += (1.0 - self._known) * (1.0 - fixed) / USUAL
