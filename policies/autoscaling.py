"""The autoscaling signal: how much hardware a pool's unfinished work needs to be in time."""

from collections.abc import Iterable, Sequence
from itertools import accumulate

from policies.options import Option
from topics import Profile
from topics.status import DUE_S

# However many are held alike, a group's first members tell what the others take.
SAMPLED_MAX = 200


def device_s(profile: Profile, option: Option, speed: float = 1.0) -> float:
    """Return the device time that a request takes in a full batch, in seconds of one replica."""
    roofline, limit = option.roofline, option.max_batch
    prefill_s = roofline.prefill_s(profile.input_tokens)
    decode_s = roofline.decode_s(profile.output_tokens, limit, profile.input_tokens) / limit
    return (prefill_s + decode_s) / (speed * option.time_scale)


def demand(work: Iterable[tuple[float, float]], now: float) -> tuple[float, ...]:
    """Return device time by when it is due: seconds for each bound of ``DUE_S``.

    What is due before one bound and after the one below it counts there; what is due later than
    the last counts with the last.

    Args:
        work: (device time in seconds, deadline in epoch seconds) of each request.
        now: epoch seconds.
    """
    found = [0.0] * len(DUE_S)
    for seconds, deadline in work:
        left_s = deadline - now
        index = next((i for i, due_s in enumerate(DUE_S) if left_s <= due_s), len(DUE_S) - 1)
        found[index] += seconds
    return tuple(found)


def total(demands: Iterable[Sequence[float]]) -> tuple[float, ...]:
    """Return the sum of demands. One with other bounds, of another version, counts as due last."""
    found = [0.0] * len(DUE_S)
    for each in demands:
        if len(each) == len(DUE_S):
            found = [a + b for a, b in zip(found, each, strict=True)]
        else:
            found[-1] += sum(each)
    return tuple(found)


def replicas_needed(due: Sequence[float]) -> float:
    """Return how many replicas must run from now on so that each deadline can be kept.

    For each bound, all that is due by then must fit in the time until then; the tightest decides.
    That is the processor demand criterion for earliest deadline first (Baruah, Rosier, Howell,
    1990): a second of work weighs as much as its slack is short.
    """
    return max((s / t for s, t in zip(accumulate(due), DUE_S, strict=True)), default=0.0)
