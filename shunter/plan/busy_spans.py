"""Spans of time, and those of a trace that ask the most of a fleet."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import floor
from typing import Any

import numpy as np

from policies import Option
from shunter.backtest.demand import Demand, latest_end_s

SHORTEST_S = 0.5
# Each length of spans is so many times the one before.
RATIO = 1.5
# Moments at which a span of a length may begin, for each such length.
GRAIN = 16


@dataclass(frozen=True, slots=True)
class BusySpan:
    """A span of time, in seconds since the trace's start."""

    from_s: float
    to_s: float

    @property
    def length_s(self) -> float:
        """Its length in seconds."""
        return self.to_s - self.from_s

    def counts(self, demand: Demand) -> bool:
        """Return whether a request comes in the span, and something of it must be done there.

        What comes at its end is the next one's.
        """
        created_s = demand.profile.created_at
        return self.from_s <= created_s < self.to_s and due_s(demand) <= self.to_s

    def part_of(self, demand: Demand, option: Option) -> Demand:
        """Return what of a request that counts is done within the span at least.

        Args:
            demand: the request.
            option: the option that serves it.
        """
        profile = demand.profile
        late_s = latest_end_s(demand) - self.to_s
        if late_s <= 0:
            return demand
        # No step is shorter than one alone with the first context; one may be under way at the end.
        alone_s = option.roofline.step_s(1, demand.input_tokens + 1)
        steps = max(0, demand.steps - floor(late_s / alone_s) - 1)
        # The limit is on the mean of all steps, so that the first of them have none of their own.
        free = replace(profile, tpot_s=None)
        return replace(demand, profile=free, output_tokens=min(demand.output_tokens, 1 + steps))


def due_s(demand: Demand) -> float:
    """Return when something of a request must have been done: its prompt, or all of it."""
    profile, end_s = demand.profile, latest_end_s(demand)
    return end_s if profile.ttft_s is None else min(end_s, profile.created_at + profile.ttft_s)


def busiest_spans(
    demands: Sequence[Demand], weights: Sequence[float], may_miss: int, count: int
) -> list[BusySpan]:
    """Return the spans that ask the most for each of their seconds, one of a length at most.

    Args:
        demands: requests.
        weights: what each of them asks of a fleet, about.
        may_miss: how many may miss, the dearest of a span.
        count: of spans.
    """
    if not demands:
        return []
    order = sorted(range(len(demands)), key=lambda n: demands[n].profile.created_at)
    came_s = np.array([demands[n].profile.created_at for n in order])
    dues_s = np.array([due_s(demands[n]) for n in order])
    weighed = np.array([weights[n] for n in order])
    found: dict[BusySpan, float] = {}
    length_s, last_s = SHORTEST_S, float(dues_s.max()) - came_s[0]
    while length_s < RATIO * last_s:
        span = _busiest(came_s, dues_s, weighed, length_s)
        inside = np.sort(weighed[(came_s >= span.from_s) & (dues_s <= span.to_s)])
        asked = float(inside[: max(0, len(inside) - may_miss)].sum())
        if asked > 0:
            found[span] = asked / span.length_s
        length_s *= RATIO
    return sorted(found, key=lambda span: -found[span])[:count]


def _busiest(came_s: Any, dues_s: Any, weighed: Any, length_s: float) -> BusySpan:
    """Return the span of about a length in which most is due of what came in it."""
    best, most = BusySpan(0.0, length_s), 0.0
    for from_s in np.arange(came_s[0], came_s[-1] + length_s / GRAIN, length_s / GRAIN):
        first, end = np.searchsorted(came_s, (from_s, from_s + length_s))
        inside = dues_s[first:end] <= from_s + length_s
        asked = float(weighed[first:end][inside].sum())
        if asked > most:
            most = asked
            # Without what is idle at its ends it is shorter, and asks as much.
            begin_s = came_s[first:end][inside].min()
            best = BusySpan(float(begin_s), float(dues_s[first:end][inside].max()))
    return best
