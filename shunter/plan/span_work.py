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
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from policies import Option, Options
from shunter.backtest.bound_work import add_work
from shunter.backtest.demand import Demand
from shunter.backtest.programme import Programme
from shunter.plan.busy_spans import BusySpan

ANY = ""
"""The class of a miss of any class."""


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
    def of(
        cls,
        span: BusySpan,
        options: Options,
        demands: Sequence[Demand],
        able_by_id: Mapping[str, Sequence[Option]],
    ) -> "SpanWork":
        """Return the programme of these requests, all of which count in the span.

        Args:
            span: of time.
            options: the pools that are left.
            demands: the requests.
            able_by_id: the options that could serve each of them in time.
        """
        work, programme = cls(span, options), Programme()
        served: dict[tuple[str, str], list[tuple[int, Demand]]] = {}
        busy = {pool: programme.variable() for pool in options.by_pool}
        for demand in demands:
            mine = []
            for option in able_by_id[demand.profile.id]:
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

    def least(self, duals: Duals) -> Any:
        """Return the least that each request comes to over its choices at these dual values."""
        most, equal = self.matrices
        reduced = -(most.T @ duals.at_most) - (equal.T @ duals.equal)
        columns = np.concatenate([np.asarray(each) for each in self.choices])
        ends = np.cumsum([len(each) for each in self.choices])
        return np.minimum.reduceat(reduced[columns], np.concatenate([[0], ends[:-1]]))

    def weights(self, duals: Duals) -> dict[str, float]:
        """Return what a replica of each pool is worth at these dual values."""
        return {
            pool: max(0.0, -float(duals.at_most[row])) * self.span.length_s
            for pool, row in self.capacity_rows.items()
        }
