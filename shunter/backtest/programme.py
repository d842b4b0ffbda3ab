"""A linear programme under construction, solved with HiGHS through scipy."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Row = tuple[dict[int, float], float]
"""Coefficients by variable, and the right-hand side."""

# The status of scipy's linprog for a programme without any solution.
INFEASIBLE = 2
_NO_SCIPY = "it needs scipy: pip install 'shunter[backtest]'"


class NoBoundError(Exception):
    """There is no lower bound; the message says why."""


class Whole(NamedTuple):
    """A solution with whole numbers where they were asked for.

    Attributes:
        values: by variable.
        cost: of these values.
        bound: no solution costs less.
    """

    values: Sequence[float]
    cost: float
    bound: float


@dataclass(slots=True)
class Programme:
    """Minimise the sum of price x variable over variables of zero or more, under sparse rows."""

    prices: list[float] = field(default_factory=list)
    at_most: list[Row] = field(default_factory=list)
    equal: list[Row] = field(default_factory=list)
    limits: dict[int, float] = field(default_factory=dict)
    """Upper bounds of variables."""
    integers: set[int] = field(default_factory=set)
    """Variables that are whole numbers."""

    def variable(self, price: float = 0.0, limit: float | None = None) -> int:
        """Add a variable and return its index."""
        self.prices.append(price)
        if limit is not None:
            self.limits[len(self.prices) - 1] = limit
        return len(self.prices) - 1

    def whole(self, price: float, limit: float) -> int:
        """Add a variable that is a whole number and return its index."""
        index = self.variable(price, limit)
        self.integers.add(index)
        return index

    def solve(self, method: str = "highs") -> float:
        """Return the least cost; ``method`` is one of scipy's for HiGHS.

        A solution that is not quite the best would be no lower bound. Its dual is below all. The
        solver has the dearest variable cost 1: its tolerances are not of prices of a thousandth.

        Raises:
            NoBoundError: scipy is missing, or there is no solution.
        """
        try:
            from scipy.optimize import linprog  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise NoBoundError(_NO_SCIPY) from error
        unit = max(self.prices, default=0.0) or 1.0
        found = linprog(
            [price / unit for price in self.prices],
            A_ub=self._matrix(self.at_most),
            b_ub=[limit for _, limit in self.at_most],
            A_eq=self._matrix(self.equal),
            b_eq=[limit for _, limit in self.equal],
            bounds=[(0.0, self.limits.get(index)) for index in range(len(self.prices))],
            method=method,
        )
        if found.status == INFEASIBLE:
            raise NoBoundError("no schedule serves all of it in time: the fleet is too small")
        if found.status != 0:
            raise NoBoundError(f"the solver found none: {found.message}")
        dual = sum(
            float(price) * limit
            for prices, rows in (
                (found.ineqlin.marginals, self.at_most),
                (found.eqlin.marginals, self.equal),
            )
            for price, (_, limit) in zip(prices, rows, strict=True)
        )
        dual += sum(float(found.upper.marginals[at]) * limit for at, limit in self.limits.items())
        return unit * min(float(found.fun), dual)

    def solve_whole(self, seconds: float) -> Whole:
        """Return the best solution that is found within so many seconds, and the bound by then.

        Raises:
            NoBoundError: scipy is missing, there is no solution, or none was found in time.
        """
        try:
            from scipy.optimize import Bounds, LinearConstraint, milp  # noqa: PLC0415 - an extra
        except ImportError as error:
            raise NoBoundError(_NO_SCIPY) from error
        count = len(self.prices)
        limits = [self.limits.get(index, math.inf) for index in range(count)]
        constraints = []
        if self.at_most:
            most = [limit for _, limit in self.at_most]
            constraints.append(LinearConstraint(self._matrix(self.at_most), -math.inf, most))
        if self.equal:
            sides = [side for _, side in self.equal]
            constraints.append(LinearConstraint(self._matrix(self.equal), sides, sides))
        found = milp(
            self.prices,
            integrality=[int(index in self.integers) for index in range(count)],
            bounds=Bounds([0.0] * count, limits),
            constraints=constraints,
            options={"time_limit": seconds},
        )
        if found.status == INFEASIBLE:
            raise NoBoundError("no fleet that may be rented serves all of it in time")
        if found.x is None:
            raise NoBoundError(f"the solver found none in {seconds:g} s: {found.message}")
        return Whole(found.x, float(found.fun), float(found.mip_dual_bound))

    def matrices(self) -> tuple[Any, Any]:
        """Return the coefficients of both kinds of rows, sparse, by row."""
        return self._matrix(self.at_most), self._matrix(self.equal)

    def _matrix(self, rows: Sequence[Row]) -> Any:
        from scipy.sparse import csr_array  # noqa: PLC0415 - an extra

        data = [value for row, _ in rows for value in row.values()]
        columns = [column for row, _ in rows for column in row]
        ends = [0]
        for row, _ in rows:
            ends.append(ends[-1] + len(row))
        return csr_array((data, columns, ends), shape=(len(rows), len(self.prices)))
