"""Budgets of a tenant or a key: what its requests may use in a window of time."""

from collections.abc import Iterable
from math import floor
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, model_validator

from policies.config.schema import Declaration

_Count = Annotated[int, Field(strict=True, ge=0, le=10**15)]


class Budget(Declaration):
    """The most that requests may use in each window; a unit that is None has no limit.

    Windows follow each other from the epoch on: those of 86,400 s are the days of UTC. A request
    counts in the window in which it was accepted, whenever it ends.
    """

    window_s: Annotated[PositiveFloat, Field(ge=1.0, le=366 * 86_400.0)]
    requests: _Count | None = None
    tokens: _Count | None = None
    """Read and written, those of tries that gave no answer included."""
    usd: Annotated[float, Field(strict=True, ge=0, le=1e6)] | None = None
    """US dollars, as pools and tiers are priced."""
    wh: Annotated[float, Field(strict=True, ge=0, le=1e12)] | None = None
    """Watt hours: device time at busy power, the device's share of its host included."""

    @model_validator(mode="after")
    def _limits_something(self) -> Self:
        if {self.requests, self.tokens, self.usd, self.wh} == {None}:
            raise ValueError("must limit requests, tokens, usd or wh")
        return self


Counted = tuple[str, str, Budget]
"""Place of a budget in the policy, whose it is, and the budget."""


def most_requests(
    budgets: Iterable[Counted], start: float, end: float
) -> tuple[int, Counted] | None:
    """Return the most requests that budgets accept from ``start`` to ``end``, and which sets it.

    None where none limits requests. Nothing but these requests is assumed to use them, so it is a
    bound from above. Times are epoch seconds; both windows that they lie in count.
    """
    found: tuple[int, Counted] | None = None
    for counted in budgets:
        budget = counted[2]
        if budget.requests is None:
            continue
        windows = floor(end / budget.window_s) - floor(start / budget.window_s) + 1
        most = windows * budget.requests
        if found is None or most < found[0]:
            found = most, counted
    return found


def check_windows(budgets: tuple[Budget, ...]) -> tuple[Budget, ...]:
    """Return budgets whose windows differ in length.

    Raises:
        ValueError: two are of the same length.
    """
    if len({budget.window_s for budget in budgets}) != len(budgets):
        raise ValueError("has two budgets of one window_s; write one with all its limits")
    return budgets
