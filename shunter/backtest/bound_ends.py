"""The end of a trace in the bound: long replies go on while nobody comes who could share steps.

The time after the last arrival is cut into spans. In each, a pool has as many iterations of a
variant as any single sequence has steps there, only those requests share them that may still run
then, and who shares them makes them longer. docs/bound.md derives the rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from heapq import nlargest
from itertools import pairwise
from math import floor, inf
from operator import itemgetter

from policies import Option
from shunter.backtest.bound_times import (
    Iterations,
    Served,
    TokenTimes,
    chunks_of,
    context_tokens,
    memory_share,
)
from shunter.backtest.demand import Demand, latest_end_s, latest_first_token_s
from shunter.backtest.programme import Programme

# The spans begin so many seconds after the last arrival.
SPANS_AT_S = (0.0, 10.0, 20.0, 40.0, 80.0, 160.0)
# Requests of an option whose steps are told apart by spans, and the least steps that such a one has
# after the last arrival.
LONG_MAX = 12
LONG_STEPS = 100

PROMPT_AMOUNTS = ("count", "prompt_s")
AMOUNTS = ("steps", "reserved", "read", *PROMPT_AMOUNTS)
"""What of requests is bounded in the spans: attributes of `Iterations`."""


@dataclass(frozen=True, slots=True)
class LateSpan:
    """The iterations of a variant that end in a span of time after the last arrival.

    Attributes:
        from_s: the span's beginning.
        to_s: its end.
        chunked: those with a chunk of a prompt.
        others: those without.
    """

    from_s: float
    to_s: float
    chunked: Iterations
    others: Iterations

    def of(self, amount: str) -> list[int]:
        """Return the variables of an amount; iterations count where they have prompts."""
        kinds = (self.chunked,) if amount in PROMPT_AMOUNTS else (self.chunked, self.others)
        return [getattr(kind, amount) for kind in kinds]


def spans_after(
    programme: Programme, option: Option, served: Served, last_s: float
) -> Sequence[LateSpan]:
    """Return the spans of an option; none where no reply goes on for long after ``last_s``."""
    long = _long(option, served, last_s)
    end_s = max((latest_end_s(demand) for _, demand in long), default=last_s)
    begins = [last_s + at for at in SPANS_AT_S if last_s + at < end_s]
    return [
        LateSpan(from_s, to_s, Iterations.new(programme), Iterations.new(programme))
        for from_s, to_s in pairwise((*begins, inf))
    ]


def limit_spans(
    programme: Programme,
    option: Option,
    served: Served,
    before: Sequence[Iterations],
    spans: Sequence[LateSpan],
    forced: Mapping[int, int],
) -> None:
    """Bound what is done in the spans, by what may still run and what must.

    Args:
        programme: gets the rows.
        option: what serves.
        served: the requests.
        before: the iterations that end before the spans.
        spans: one after the other, the last without an end.
        forced: variables of iterations, and prompt tokens in each, of requests that don't count.
    """
    _limit_from_above(programme, option, served, spans, forced)
    shortest = min(demand.input_tokens for _, demand in served if demand.steps) + 1
    periods = [Period(0.0, spans[0].from_s, before)]
    periods += [Period(span.from_s, span.to_s, (span.chunked, span.others)) for span in spans]
    rows = [
        ({kind.steps: -1.0 for kind in each.kinds}, {kind.read: -1.0 for kind in each.kinds})
        for each in periods
    ]
    for column, demand in _long(option, served, spans[0].from_s):
        split = {column: -float(demand.steps)}
        for period, (steps, read) in zip(periods, rows, strict=True):
            mine = period.add_long(programme, option, column, demand, shortest)
            split[mine] = steps[mine] = 1.0
            read[mine] = (demand.input_tokens + 1) / 1000
        programme.equal.append((split, 0.0))
    programme.at_most += [(row, 0.0) for both in rows for row in both]


@dataclass(frozen=True, slots=True)
class Period:
    """A span of time, or the time before all of them, with its kinds of iterations."""

    from_s: float
    to_s: float
    kinds: Sequence[Iterations]

    def add_long(
        self, programme: Programme, option: Option, column: int, demand: Demand, shortest: int
    ) -> int:
        """Return the variable of the steps that a long reply has here.

        Args:
            programme: gets it.
            option: what serves.
            column: the variable of the request's share.
            demand: the request.
            shortest: the shortest context of any step.
        """
        times, others_max = TokenTimes.of(option), float(option.max_batch - 1)
        beside_s = times.traffic_s + times.sequence_s
        alone_s = times.one_s + times.overhead_s + beside_s
        alone_s += (demand.input_tokens + 1) * times.kv_s
        with_s = beside_s + shortest * times.kv_s
        begun_s = demand.profile.created_at + option.roofline.prefill_s(demand.input_tokens)
        length_s = min(self.to_s, latest_end_s(demand)) - max(self.from_s, begun_s)
        if self.from_s > begun_s:
            # The first iteration that ends here may have begun before.
            length_s += alone_s + others_max * with_s
        steps, company = programme.variable(), programme.variable()
        counts = {kind.count: -1.0 for kind in self.kinds}
        places = {kind.count: -1.0 - others_max for kind in self.kinds}
        places |= {kind.steps: 1.0 for kind in self.kinds}
        programme.at_most += [
            (counts | {steps: 1.0}, 0.0),
            ({steps: alone_s, company: with_s, column: -max(0.0, length_s)}, 0.0),
            ({company: 1.0, steps: -others_max}, 0.0),
            (places | {steps: others_max, company: -1.0}, 0.0),
        ]
        return steps


def _limit_from_above(
    programme: Programme,
    option: Option,
    served: Served,
    spans: Sequence[LateSpan],
    forced: Mapping[int, int],
) -> None:
    """Bound what is done from each span's beginning on, by what may still run then."""
    times = TokenTimes.of(option)
    # What may run in the last span as in the first has one variable of each amount for all spans.
    free = {name: programme.variable() for name in AMOUNTS}
    sums = {name: {column: 1.0} for name, column in free.items()}
    some = []
    for column, demand in served:
        if not _is_free(demand, option, spans[-1].from_s):
            some.append((column, demand))
            continue
        for name, value in _after(demand, option, times, spans[-1].from_s).items():
            sums[name][column] = -value
    programme.at_most += [(row, 0.0) for row in sums.values()]
    for at, first in enumerate(spans):
        rows = {
            name: {free[name]: -1.0} | {each: 1.0 for span in spans[at:] for each in span.of(name)}
            for name in AMOUNTS
        }
        for column, tokens in forced.items():
            rows["count"][column] = -1.0
            rows["prompt_s"][column] = -tokens * times.token_s
        for column, demand in some:
            for name, value in _after(demand, option, times, first.from_s).items():
                rows[name][column] = -value
        programme.at_most += [(row, 0.0) for row in rows.values()]


def _long(option: Option, served: Served, last_s: float) -> list[tuple[int, Demand]]:
    """Return the requests that go on for longest after a time, if each began when it came."""
    found = []
    for column, demand in served:
        begun_s = demand.profile.created_at + option.roofline.prefill_s(demand.input_tokens)
        left = demand.steps - max(0.0, last_s - begun_s) / _step_s(demand, option)
        if left >= LONG_STEPS:
            found.append((left, column, demand))
    return [(column, demand) for _, column, demand in nlargest(LONG_MAX, found, itemgetter(0))]


def _is_free(demand: Demand, option: Option, at_s: float) -> bool:
    """Return whether all of a request may be done after a time."""
    return _may_begin_after(demand, at_s) and _steps_after(demand, option, at_s) == demand.steps


def _after(demand: Demand, option: Option, times: TokenTimes, at_s: float) -> dict[str, float]:
    """Return the most of each amount that a request has in iterations which end after a time."""
    if latest_end_s(demand) <= at_s:
        return {}
    steps = _steps_after(demand, option, at_s)
    early = demand.steps - steps
    # The last steps read most.
    read = context_tokens(demand) - early * (demand.input_tokens + 1) - early * (early - 1) / 2
    found = {
        "steps": float(steps),
        "reserved": steps * memory_share(demand, option),
        "read": read / 1000,
    }
    if _may_begin_after(demand, at_s):
        found["count"] = chunks_of(demand)
        found["prompt_s"] = times.prompt_compute_s(demand)
    return found


def _step_s(demand: Demand, option: Option) -> float:
    """Return the least time of a decode step of a request."""
    return option.roofline.step_s(1, demand.input_tokens + 1)


def _may_begin_after(demand: Demand, at_s: float) -> bool:
    """Return whether its first token may come after a time."""
    return latest_first_token_s(demand) > at_s


def _steps_after(demand: Demand, option: Option, at_s: float) -> int:
    """Return the most of its steps that end after a time, the first of which may begin before."""
    left_s = latest_end_s(demand) - at_s
    if left_s <= 0:
        return 0
    return min(demand.steps, floor(left_s / _step_s(demand, option)) + 1)
