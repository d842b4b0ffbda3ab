"""A linear programme under construction, solved with HiGHS through scipy."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

Row = tuple[dict[int, float], float]
"""Coefficients by variable, and the right-hand side."""

# The status of scipy's linprog for a programme without any solution.
INFEASIBLE = 2


class NoBoundError(Exception):
    """There is no lower bound; the message says why."""


@dataclass(slots=True)
class Programme:
    """Minimise the sum of price x variable over variables of zero or more, under sparse rows."""

    prices: list[float] = field(default_factory=list)
    at_most: list[Row] = field(default_factory=list)
    equal: list[Row] = field(default_factory=list)
    limits: dict[int, float] = field(default_factory=dict)
    """Upper bounds of variables."""

    def variable(self, price: float = 0.0, limit: float | None = None) -> int:
        """Add a variable and return its index."""
        self.prices.append(price)
        if limit is not None:
            self.limits[len(self.prices) - 1] = limit
        return len(self.prices) - 1

    def solve(self, method: str = "highs") -> float:
        """Return the least cost; ``method`` is one of scipy's for HiGHS.

        Raises:
            NoBoundError: scipy is missing, or there is no solution.
        """
        try:
            from scipy.optimize import linprog  # noqa: PLC0415 - an extra
            from scipy.sparse import csr_array  # noqa: PLC0415
        except ImportError as error:
            raise NoBoundError("it needs scipy: pip install 'shunter[backtest]'") from error

        def matrix(rows: Sequence[Row]) -> Any:
            data = [value for row, _ in rows for value in row.values()]
            columns = [column for row, _ in rows for column in row]
            ends = [0]
            for row, _ in rows:
                ends.append(ends[-1] + len(row))
            return csr_array((data, columns, ends), shape=(len(rows), len(self.prices)))

        found = linprog(
            self.prices,
            A_ub=matrix(self.at_most),
            b_ub=[limit for _, limit in self.at_most],
            A_eq=matrix(self.equal),
            b_eq=[limit for _, limit in self.equal],
            bounds=[(0.0, self.limits.get(index)) for index in range(len(self.prices))],
            method=method,
        )
        if found.status == INFEASIBLE:
            raise NoBoundError("no schedule serves all of it in time: the fleet is too small")
        if found.status != 0:
            raise NoBoundError(f"the solver found none: {found.message}")
        return float(found.fun)
