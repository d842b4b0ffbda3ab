"""The measured speed of a pool: predicted over actual device time, per variant."""

from policies.config.options import Option
from policies.hardware.iteration import Job

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


class Pace:
    """An exponentially weighted mean of predicted / actual, in the log, per variant."""

    def __init__(self) -> None:
        self._speed: dict[str, float] = {}
        self._known: dict[str, float] = {}

    def speed(self, variant: str) -> float:
        """Return the measured speed; 1.0, the roofline's, before any measurement."""
        return self._speed.get(variant, 1.0)

    def known(self, variant: str) -> float:
        """Return the measured part of the speed, 0 to 1; the rest is the roofline's."""
        return round(self._known.get(variant, 0.0), 3)

    def learn(self, option: Option, job: Job, sequences: int, device_s: float) -> None:
        """Learn from one execution.

        Args:
            option: the hardware it ran on.
            job: the executed job.
            sequences: sequences of the variant that shared its steps, itself included, on the
                mean (`shared_by`).
            device_s: its share of busy device time.
        """
        if device_s <= 0:
            return
        roofline = option.roofline
        sequences = min(sequences, option.max_batch)
        predicted_s = roofline.prefill_s(job.input_tokens, job.cached_tokens)
        predicted_s += roofline.decode_s(job.output_tokens, sequences, job.input_tokens) / sequences
        ratio = min(max(predicted_s / device_s, 1 / RATIO_MAX), RATIO_MAX)
        before = self.speed(job.variant)
        self._speed[job.variant] = before ** (1 - NEWEST) * ratio**NEWEST
        known = self._known.get(job.variant, 0.0)
        self._known[job.variant] = known + NEWEST * (1 - known)
