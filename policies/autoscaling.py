"""The autoscaling signal: replicas that a pool needs to finish its work by the deadlines."""

import math
from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate

from policies.config.options import Option
from policies.scoring.answers import Answers
from topics import Profile
from topics.records.heartbeat import DUE_S

# A group's first members represent the others, however many are held.
SAMPLED_MAX = 200
# Requests that wait unread are taken to have come at so many moments of the time they came in.
MOMENTS = 4
# To end a request whose deadline is past takes a small part of running it, and is never urgent.
ENDED_PART = 0.01

Work = tuple[float, float]
"""Device time of a request in seconds, and its deadline in epoch seconds."""

Demand = tuple[float, ...]
"""Device time by when it is due: seconds for each bound of ``DUE_S``."""


def device_s(profile: Profile, option: Option, speed: float = 1.0) -> float:
    """Return the device time of a request in a full batch, in seconds of one replica."""
    if profile.answers > 1:
        found = Answers.of(profile)
        prefill_s = found.prefill_s(option.roofline)
        decode_s = _decode_s(profile.prompt_tokens, profile.output_tokens, option)
        return (prefill_s + found.count * decode_s) / (speed * option.time_scale)
    return device_s_of(profile.input_tokens, profile.output_tokens, option, speed)


def device_s_of(input_tokens: int, output_tokens: int, option: Option, speed: float = 1.0) -> float:
    """Return the device time for this many tokens, of one prompt and one reply."""
    prefill_s = option.roofline.prefill_s(input_tokens)
    decode_s = _decode_s(input_tokens, output_tokens, option)
    return (prefill_s + decode_s) / (speed * option.time_scale)


def _decode_s(input_tokens: int, output_tokens: int, option: Option) -> float:
    limit = option.max_batch
    return option.roofline.decode_s(output_tokens, limit, input_tokens) / limit


def alike(seen: Iterable[Work], each: float, since: float, now: float) -> Iterator[Work]:
    """Yield the work of unread requests, assuming they are like those seen.

    They are assumed to have arrived evenly from ``since`` until now, so that of two alike the one
    that came later is due later.

    Args:
        seen: (device time, time from arrival to deadline) of each, in seconds.
        each: unread requests for each of those seen.
        since: earliest arrival, in epoch seconds.
        now: epoch seconds.
    """
    moments = [since + max(0.0, now - since) * (n + 0.5) / MOMENTS for n in range(MOMENTS)]
    for seconds, room_s in seen:
        for came_at in moments:
            yield seconds * each / MOMENTS, came_at + room_s


def unread_demand(work: Iterable[Work], now: float) -> Demand:
    """Return the demand of work not begun; past its deadline it counts as ``ENDED_PART``."""
    return demand(
        (each if each[1] > now else (each[0] * ENDED_PART, math.inf) for each in work), now
    )


def demand(work: Iterable[Work], now: float) -> Demand:
    """Return device time by due time: seconds for each bound of ``DUE_S``.

    Work counts at the first bound that is not before its deadline; later work counts at the last.

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


def total(demands: Iterable[Sequence[float]]) -> Demand:
    """Return the sum of demands. One with another version's bounds counts as due last."""
    found = [0.0] * len(DUE_S)
    for each in demands:
        if len(each) == len(DUE_S):
            found = [a + b for a, b in zip(found, each, strict=True)]
        else:
            found[-1] += sum(each)
    return tuple(found)


def replicas_needed(due: Sequence[float]) -> float:
    """Return the number of replicas that must run from now on to meet each deadline.

    For each bound, all work due by then must fit in the time until then; the tightest decides.
    This is the processor demand criterion for earliest deadline first (Baruah, Rosier, Howell,
    1990): a second of work weighs more the shorter its slack.
    """
    return max(replicas_by_due(due), default=0.0)


def replicas_by_due(due: Sequence[float]) -> tuple[float, ...]:
    """Return the number of replicas that each bound of ``DUE_S`` needs for work due by then.

    Parts of a demand add up bound by bound; together they need the largest of the sums.
    """
    return tuple(s / t for s, t in zip(accumulate(due), DUE_S, strict=True))
