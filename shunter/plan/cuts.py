"""Cuts of spans that share the requests which may miss: prices of misses first, then each span."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from shunter.backtest.programme import NoBoundError
from shunter.plan.span_work import ANY, Cut, Duals, SpanWork

# Requests whose programme is solved at once, of one span and of all; a cut is of all of them.
SAMPLE = 1_500
SAMPLE_OF_ALL = 4_000
# Dual values are feasible to the solver's tolerance, which counts for each iteration: a cut is less
# by this part of what its requests come to.
SLACK = 1e-5
# What is less than this lacks nothing, by the solver's tolerance.
NOTHING = 1e-7


@dataclass(frozen=True, slots=True)
class Misses:
    """The number of requests that may miss their SLO: of all, and of each class."""

    of_all: int
    of_class: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SpanSet:
    """Spans without a request in common, and how many of their requests may miss.

    ``usd_per_hour`` is the price of a replica of each pool, by which is weighed what is lacking.
    """

    works: Sequence[SpanWork]
    misses: Misses
    usd_per_hour: Mapping[str, float]

    def cut(self, replicas: Mapping[str, float]) -> Cut | None:
        """Return a cut that these replicas break; None if none was found.

        Raises:
            NoBoundError: scipy is missing, or the solver found no optimum.
        """
        total = sum(len(work.choices) for work in self.works)
        if not total:
            return None
        found = self._lacking(replicas, max(1, total // SAMPLE_OF_ALL))
        if found is None:
            return None
        duals, missed = found
        if len(self.works) > 1:
            duals = [_missing(work, replicas, missed) for work in self.works]
        return self._cut(duals)

    def _cut(self, duals: Sequence[Duals]) -> Cut:
        """Return the cut of these dual values, which may be any.

        Those requests are missed that come to most.
        """
        weights, least, tasks = Counter[str](), [np.zeros(0)], list[str]()
        for work, values in zip(self.works, duals, strict=True):
            if work.choices:
                least.append(work.least(values))
                tasks += work.tasks
                weights.update(work.weights(values))
        each = np.concatenate(least)
        all_of_them = float(each.sum()) - self._missed(each, np.array(tasks))
        return Cut(dict(weights), all_of_them - SLACK * float(np.abs(each).sum()))

    def _missed(self, least: Any, tasks: Any) -> float:
        """Return the most that as many requests come to together as may miss."""
        dearest = [
            np.sort(least[tasks == task])[::-1][:allowed]
            for task, allowed in self.misses.of_class.items()
        ]
        both = np.sort(np.concatenate([*dearest, np.zeros(1)]))[::-1]
        return float(np.maximum(both[: self.misses.of_all], 0.0).sum())

    def _lacking(
        self, replicas: Mapping[str, float], every: int
    ) -> tuple[list[Duals], dict[str, float]] | None:
        """Return dual values and prices of misses; None where nothing is lacking.

        Of a sample of the requests, each of which stands for ``every``.
        """
        from scipy import sparse  # noqa: PLC0415 - an extra

        parts = [_Part.of(work, every) for work in self.works]
        pools, tasks = list(self.usd_per_hour), sorted({t for part in parts for t in part.tasks})
        misses = sparse.hstack([part.missed_by([ANY, *tasks]) for part in parts])
        lacking = sparse.vstack([part.capacity_of(pools) for part in parts])
        limits = [self.misses.of_all, *(self.misses.of_class.get(task, 0) for task in tasks)]
        work = sparse.block_diag([part.at_most for part in parts])
        none = sparse.csr_array((len(limits), len(pools)))
        found = _solved(
            np.concatenate([[self.usd_per_hour[pool] for pool in pools], np.zeros(work.shape[1])]),
            sparse.vstack([sparse.hstack([-lacking, work]), sparse.hstack([none, misses])]),
            np.concatenate([*(part.have(replicas) for part in parts), np.array(limits) / every]),
            sparse.hstack(
                [
                    sparse.csr_array((sum(part.equal.shape[0] for part in parts), len(pools))),
                    sparse.block_diag([part.equal for part in parts]),
                ]
            ),
            np.concatenate([part.served for part in parts]),
        )
        if found.fun <= NOTHING:
            return None
        of_most, of_equal = np.minimum(found.ineqlin.marginals, 0.0), found.eqlin.marginals
        duals, row, other = [], 0, 0
        for part in parts:
            duals.append(
                Duals(of_most[row : row + part.rows], of_equal[other : other + part.equal_rows])
            )
            row, other = row + part.rows, other + part.equal.shape[0]
        of_all = -float(of_most[row])
        of_class = {t: of_all - float(of_most[row + 1 + n]) for n, t in enumerate(tasks)}
        return duals, {ANY: of_all} | of_class


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of a span's work for a sample of its requests, each with a variable to miss."""

    work: SpanWork
    every: int
    tasks: Sequence[str]
    at_most: Any
    equal: Any
    rows: int
    equal_rows: int

    @classmethod
    def of(cls, work: SpanWork, every: int) -> "_Part":
        """Return the rows; work comes first among them, and serving each request last."""
        from scipy import sparse  # noqa: PLC0415 - an extra

        sampled = range(every // 2, len(work.choices), every)
        columns = np.concatenate(
            [work.others, *(np.asarray(work.choices[number]) for number in sampled)]
        ).astype(int)
        most, equal = work.matrices
        owners = [n for n, number in enumerate(sampled) for _ in work.choices[number]]
        places = range(len(work.others), len(columns))
        serve = sparse.coo_array(
            (np.ones(len(owners)), (owners, list(places))), shape=(len(sampled), len(columns))
        )
        none = sparse.csr_array((most.shape[0], len(sampled)))
        return cls(
            work,
            every,
            [work.tasks[number] for number in sampled],
            sparse.hstack([most[:, columns], none]),
            sparse.vstack(
                [
                    sparse.hstack(
                        [equal[:, columns], sparse.csr_array((equal.shape[0], len(sampled)))]
                    ),
                    sparse.hstack([serve, sparse.eye_array(len(sampled))]),
                ]
            ),
            most.shape[0],
            equal.shape[0],
        )

    @property
    def served(self) -> Any:
        """The right-hand sides of the equal rows: each request is served, or missed."""
        return np.concatenate([np.zeros(self.equal_rows), np.ones(len(self.tasks))])

    def missed_by(self, classes: Sequence[str]) -> Any:
        """Return rows that sum up the misses of each of these classes."""
        from scipy import sparse  # noqa: PLC0415 - an extra

        first = self.at_most.shape[1] - len(self.tasks)
        places = [
            (row, first + number)
            for row, name in enumerate(classes)
            for number, task in enumerate(self.tasks)
            if name in (ANY, task)
        ]
        found = sparse.lil_array((len(classes), self.at_most.shape[1]))
        for row, column in places:
            found[row, column] = 1.0
        return found

    def capacity_of(self, pools: Sequence[str]) -> Any:
        """Return, by row of work and pool, the seconds of a replica that the row gets."""
        from scipy import sparse  # noqa: PLC0415 - an extra

        found = sparse.lil_array((self.rows, len(pools)))
        for pool, row in self.work.capacity_rows.items():
            found[row, pools.index(pool)] = self.work.span.length_s / self.every
        return found

    def have(self, replicas: Mapping[str, float]) -> Any:
        """Return the right-hand sides of the rows of work with these replicas."""
        found = np.zeros(self.rows)
        for pool, row in self.work.capacity_rows.items():
            found[row] = replicas.get(pool, 0.0) * self.work.span.length_s / self.every
        return found


def _missing(work: SpanWork, replicas: Mapping[str, float], missed: Mapping[str, float]) -> Duals:
    """Return the dual values at which these replicas miss the least in a span, by its price."""
    part = _Part.of(work, max(1, len(work.choices) // SAMPLE))
    prices = np.zeros(part.at_most.shape[1])
    if part.tasks:
        prices[-len(part.tasks) :] = [missed.get(task, missed[ANY]) for task in part.tasks]
    found = _solved(prices, part.at_most, part.have(replicas), part.equal, part.served)
    of_most = np.minimum(found.ineqlin.marginals, 0.0)
    return Duals(of_most, found.eqlin.marginals[: part.equal_rows])


def _solved(prices: Any, at_most: Any, limits: Any, equal: Any, sides: Any) -> Any:
    try:
        from scipy.optimize import linprog  # noqa: PLC0415 - an extra
    except ImportError as error:
        raise NoBoundError("it needs scipy: pip install 'shunter[backtest]'") from error
    found = linprog(
        prices, A_ub=at_most.tocsr(), b_ub=limits, A_eq=equal.tocsr(), b_eq=sides, method="highs-ds"
    )
    if found.status != 0:
        raise NoBoundError(f"the solver found none: {found.message}")
    return found
