"""Pooling: combine the measurements of a pool's workers."""

from collections.abc import Sequence
from math import exp, fsum, log

Told = tuple[float, float]
"""A mean as one worker tells it, and its ``known``, 0 to 1: the part of it that was measured. The
rest is what was taken for true before anything was."""


def pooled(told: Sequence[Told], before: float) -> float:
    """Return the mean of the workers' measurements, weighted by how much each has measured.

    A pool that is scaled up keeps its knowledge: the initial values of new workers don't count. If
    all workers together have measured less than one can know, the prior fills the rest.

    Args:
        told: each worker's measurement, at least one.
        before: the prior that each worker started with.
    """
    if len(told) == 1:
        return told[0][0]
    # fsum is exact, so the order in which workers were heard of makes no difference.
    return before + fsum(value - before for value, _ in told) / max(1.0, known_of(told))


def pooled_share(told: Sequence[Told], before: float) -> float:
    """Return the weighted mean of shares, kept within 0 to 1 since heartbeats round."""
    return min(1.0, max(0.0, pooled(told, before)))


def pooled_speed(told: Sequence[Told]) -> float | None:
    """Return the weighted mean of speeds in the log; None if nothing was measured.

    An impossible speed is ignored.
    """
    believed = [each for each in told if each[0] > 0]
    if not known_of(believed):
        return None
    if len(believed) == 1:
        return believed[0][0]
    return round(exp(pooled([(log(speed), known) for speed, known in believed], 0.0)), 6)


def known_of(told: Sequence[Told]) -> float:
    """Return how much all workers measured, in units of what one worker can know."""
    return fsum(min(1.0, max(0.0, known)) for _, known in told)
