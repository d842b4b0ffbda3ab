"""Terms of quotes: prices, validity, and how sure a promise is."""

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, PositiveFloat, model_validator

from policies.config.schema import Declaration

ANY_CLASS = "any"
"""The name under which errors of classes stand that have none of their own."""

Points = tuple[tuple[float, float], ...]


class PromiseErrors(Declaration):
    """Errors of promises as they were measured, by how a request was to be served.

    Each is a list of points ``[chance, ln]``: of that share of the requests, ln(actual / expected)
    time to the finish is at most this. `shunter policy backtest --quotes` measures them.
    """

    direct: Points = Field(default=(), max_length=32)
    """Of requests that were to go to a pool at once."""
    hold: Points = Field(default=(), max_length=32)
    """Of those that were to wait for company."""

    @model_validator(mode="after")
    def _grow(self) -> Self:
        for name, points in (("direct", self.direct), ("hold", self.hold)):
            if any(not 0 < chance < 1 for chance, _ in points):
                raise ValueError(f"{name}: a chance is not between 0 and 1")
            if any(b[0] <= a[0] or b[1] <= a[1] for a, b in pairwise(points)):
                raise ValueError(f"{name}: both numbers of a point must be above those before it")
        return self


class Quotes(Declaration):
    """Terms on which requests are quoted."""

    margin: Annotated[float, Field(ge=0, le=100)] = 0.25
    """Part of the expected cost that a quoted price has on top of it. Whoever took a quote pays
    what it cost in the end, and this price at most."""
    valid_s: PositiveFloat = 300.0
    """Time in which a quote can be accepted; less where its deadline is near."""
    chances: Annotated[
        tuple[Annotated[float, Field(gt=0.5, lt=1)], ...], Field(min_length=1, max_length=4)
    ] = (0.99, 0.95)
    """Chances that a menu offers, where the question names no deadline."""
    errors: dict[str, PromiseErrors] = Field(default_factory=dict)
    """Measured errors by class, and under ``any`` those of classes that have none of their own.
    Without any, errors are taken as log-normal with the spread of `estimates`."""
