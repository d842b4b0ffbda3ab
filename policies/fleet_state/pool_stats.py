"""Pooling: what the workers of a pool have measured, each for itself, as one."""

from collections.abc import Sequence
from math import exp, fsum, log

Told = tuple[float, float]
"""A mean as one worker tells it, and its ``known``, 0 to 1: the part of it that was measured. The
rest is what was taken for true before anything was."""


def pooled(told: Sequence[Told], before: float) -> float:
    """Return the mean of what the workers measured; those that measured little count for little.

    A pool that is scaled up knows as much as it did: what its new workers start with is no
    knowledge. Where all of them together have not measured what one could know, the rest is what
    was taken for true before.

    Args:
        told: of each worker, at least one.
        before: what each of them started with.
    """
    if len(told) == 1:
        return told[0][0]
    # fsum is exact, so the order in which workers were heard of makes no difference.
    return before + fsum(value - before for value, _ in told) / max(1.0, known_of(told))


def pooled_share(told: Sequence[Told], before: float) -> float:
    """Return the same of shares, 0 to 1 though heartbeats round what they tell."""
    return min(1.0, max(0.0, pooled(told, before)))


def pooled_speed(told: Sequence[Told]) -> float | None:
    """Return the same of speeds, which are means in the log; None where nothing was measured.

    A speed that can't be is not believed.
    """
    believed = [each for each in told if each[0] > 0]
    if not known_of(believed):
        return None
    if len(believed) == 1:
        return believed[0][0]
    return round(exp(pooled([(log(speed), known) for speed, known in believed], 0.0)), 6)


def known_of(told: Sequence[Told]) -> float:
    """Return how much was measured by all, in units of what one worker can know."""
    return fsum(min(1.0, max(0.0, known)) for _, known in told)
