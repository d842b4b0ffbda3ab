"""The work of spans of time: what a fleet must be able to do within them, as cuts of its replicas.

A request that comes within a span and keeps its SLO has some of its work done there, wherever it
runs: all of it where it must end within the span, its prompt where its first token is due there,
and of its decode steps those that could not be done after the span even alone on the device. Some
requests may miss, in all spans together. Whether a fleet bears that is a linear programme
(`shunter.backtest.bound_iterations`).

Its dual values make a cut: an inequality of the replicas that every fleet keeps which bears the
work. No programme of all requests has to be solved for it: for any dual values, the least of each
request over its choices makes a right cut, and good ones give a near one. So a sample of all spans
tells the price of a miss, and then each span by itself the rest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import floor
from typing import Any, NamedTuple

import numpy as np

from policies import Option, Options
from shunter.backtest.bound_work import add_work
from shunter.backtest.demand import Demand, able, latest_end_s
from shunter.backtest.programme import Programme

ANY = ""
"""The class of a miss of any class."""


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
        profile = demand.profile
        if not self.from_s <= profile.created_at < self.to_s:
            return False
        if profile.ttft_s is not None and profile.created_at + profile.ttft_s <= self.to_s:
            return True
        return latest_end_s(demand) <= self.to_s

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


@dataclass(frozen=True, slots=True)
class Cut:
    """An inequality: the sum of weight x replicas over pools is at least ``least``."""

    weights: Mapping[str, float]
    least: float

    def lacks(self, replicas: Mapping[str, float]) -> float:
        """Return by what part of it replicas fall short of it; 0 or less if they don't."""
        have = sum(weight * replicas.get(pool, 0) for pool, weight in self.weights.items())
        return (self.least - have) / max(abs(self.least), 1e-12)


class Duals(NamedTuple):
    """Dual values of the rows of one span's work."""

    at_most: Any
    equal: Any


@dataclass(slots=True)
class SpanWork:
    """The programme of one span, with some pools gone.

    Its variables are the share of each request at each choice, and what work takes of each pool.
    """

    span: BusySpan
    options: Options
    choices: list[list[int]] = field(default_factory=list)
    tasks: list[str] = field(default_factory=list)
    capacity_rows: dict[str, int] = field(default_factory=dict)
    matrices: tuple[Any, Any] = (None, None)
    others: Any = None
    """The variables that are no request's choice."""

    @classmethod
    def of(cls, span: BusySpan, options: Options, demands: Sequence[Demand]) -> "SpanWork":
        """Return the programme of these requests, all of which count in the span."""
        work, programme = cls(span, options), Programme()
        served: dict[tuple[str, str], list[tuple[int, Demand]]] = {}
        busy = {pool: programme.variable() for pool in options.by_pool}
        for demand in demands:
            mine = []
            for option in able(demand, options):
                column = programme.variable()
                mine.append(column)
                part = span.part_of(demand, option)
                served.setdefault((option.pool, option.variant), []).append((column, part))
            if mine:
                work.choices.append(mine)
                work.tasks.append(demand.profile.task)
        add_work(programme, options, served, {pool: [column] for pool, column in busy.items()})
        for pool, column in busy.items():
            work.capacity_rows[pool] = len(programme.at_most)
            programme.at_most.append(({column: 1.0}, 0.0))
        most, equal = programme.matrices()
        work.matrices = (most.tocsc(), equal.tocsc())
        mine_all = {column for each in work.choices for column in each}
        count = len(programme.prices)
        work.others = np.array([column for column in range(count) if column not in mine_all])
        return work

    def least(self, duals: Duals, missed: Mapping[str, float]) -> float:
        """Return the least that all requests come to at these dual values.

        Args:
            duals: of the rows of work.
            missed: the price of a miss, by class.
        """
        most, equal = self.matrices
        reduced = -(most.T @ duals.at_most) - (equal.T @ duals.equal)
        columns = np.concatenate([np.asarray(each) for each in self.choices])
        ends = np.cumsum([len(each) for each in self.choices])
        least = np.minimum.reduceat(reduced[columns], np.concatenate([[0], ends[:-1]]))
        prices = np.array([missed.get(task, missed[ANY]) for task in self.tasks])
        return float(np.minimum(least, prices).sum())

    def weights(self, duals: Duals) -> dict[str, float]:
        """Return what a replica of each pool is worth at these dual values."""
        return {
            pool: max(0.0, -float(duals.at_most[row])) * self.span.length_s
            for pool, row in self.capacity_rows.items()
        }
