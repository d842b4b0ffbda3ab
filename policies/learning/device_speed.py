"""The measured speed of a pool: predicted over actual device time, per variant."""

from dataclasses import dataclass

from policies.config.options import Option
from policies.hardware.iteration import Job
from policies.hardware.roofline import TYPICAL_CONTEXT_TOKENS, Roofline
from policies.learning.device_constants import DeviceConstants, Measured

# Weight of the newest execution: the last fifty or so count.
NEWEST = 0.04
# One execution that is off by more than this is an outlier, and counts as this much.
RATIO_MAX = 4.0


def shared_by(elapsed_s: float, share_s: float) -> int:
    """Return the mean number of sequences that shared the steps of one.

    Their number at its begin would make a filling pool look faster than it is, by a factor of two
    and more, since later ones take their share of the steps.

    Args:
        elapsed_s: time from its begin to its end.
        share_s: its share of that (`policies.hardware.device_time`).
    """
    return max(1, round(elapsed_s / share_s)) if share_s > 0 else 1


@dataclass(frozen=True, slots=True)
class _Usual:
    """A job of a variant as they have lately been: means."""

    option: Option
    input_tokens: float
    cached_tokens: float
    output_tokens: float
    sequences: float

    def device_s(self, roofline: Roofline) -> float:
        """Return its share of device time."""
        tokens, cached = round(self.input_tokens), round(self.cached_tokens)
        reply, sequences = round(self.output_tokens), max(1, round(self.sequences))
        decode_s = roofline.decode_s(reply, sequences, tokens) / sequences
        return roofline.prefill_s(tokens, cached) + decode_s

    def towards(self, other: "_Usual") -> "_Usual":
        """Return the means with one more."""
        return _Usual(
            other.option,
            self.input_tokens + NEWEST * (other.input_tokens - self.input_tokens),
            self.cached_tokens + NEWEST * (other.cached_tokens - self.cached_tokens),
            self.output_tokens + NEWEST * (other.output_tokens - self.output_tokens),
            self.sequences + NEWEST * (other.sequences - self.sequences),
        )


class Pace:
    """A pool's speed by its executed requests.

    Latencies say it of each constant of the device (`DeviceConstants`). Per variant there is an
    exponentially weighted mean of predicted over charged device time, in the log.
    """

    def __init__(self) -> None:
        self._constants = DeviceConstants()
        self._speed: dict[str, float] = {}
        self._usual: dict[str, _Usual] = {}
        self._known: dict[str, float] = {}

    def speed(self, variant: str) -> float:
        """Return the speed that is left beside the learned constants; 1.0 before any measurement.

        It is measured against what was declared, and told against what was learned since, for a
        job as they usually are: a mean against constants that move would lag behind them.
        """
        usual = self._usual.get(variant)
        if usual is None:
            return 1.0
        learned_s = usual.device_s(self._constants.roofline(usual.option))
        return self.charged(variant) * learned_s / usual.device_s(usual.option.roofline)

    def charged(self, variant: str) -> float:
        """Return declared over charged device time; 1.0 before any measurement."""
        return self._speed.get(variant, 1.0)

    def known(self, variant: str) -> float:
        """Return the measured part of the speed, 0 to 1; the rest is the roofline's."""
        return round(self._known.get(variant, 0.0), 3)

    @property
    def factors(self) -> tuple[float, ...]:
        """The learned factors on the constants of the device, as a heartbeat has them."""
        return tuple(self._constants.factors)

    @property
    def factors_known(self) -> float:
        """The measured part of the factors, 0 to 1."""
        return self._constants.known

    def prefill_s(self, option: Option, tokens: int) -> float:
        """Return the time that a prompt is computed in, by what was learned."""
        return self._constants.roofline(option).prefill_s(tokens)

    def step_s(self, option: Option, sequences: int) -> float:
        """Return a decode step of sequences of usual length, by what was learned; 0 for none."""
        if not sequences:
            return 0.0
        roofline = self._constants.roofline(option)
        return roofline.step_s(sequences, sequences * TYPICAL_CONTEXT_TOKENS)

    def learn(self, option: Option, job: Job, took: Measured, device_s: float) -> None:
        """Learn from one execution.

        Args:
            option: the hardware it ran on.
            job: the executed job.
            took: its measured times; the sequences of its variant that shared its steps, itself
                included, are a mean (`shared_by`).
            device_s: its share of busy device time.
        """
        self._constants.learn(option, job.input_tokens, job.cached_tokens, job.output_tokens, took)
        if device_s <= 0:
            return
        sequences = min(took.sequences, option.max_batch)
        here = _Usual(option, job.input_tokens, job.cached_tokens, job.output_tokens, sequences)
        ratio = min(max(here.device_s(option.roofline) / device_s, 1 / RATIO_MAX), RATIO_MAX)
        before = self.charged(job.variant)
        usual = self._usual.get(job.variant)
        self._usual[job.variant] = here if usual is None else usual.towards(here)
        self._speed[job.variant] = before ** (1 - NEWEST) * ratio**NEWEST
        known = self._known.get(job.variant, 0.0)
        self._known[job.variant] = known + NEWEST * (1 - known)
