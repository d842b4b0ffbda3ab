"""The order in which a policy wants pools used, beside their price."""

from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from policies.config.options import Option
from policies.config.schema import Declaration


class PoolGroup(Declaration):
    """Pools by name, region or label; one that is in all that is given belongs to the group."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,62}$")]
    pools: tuple[str, ...] | None = None
    regions: tuple[str, ...] | None = None
    labels: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _says_which(self) -> Self:
        if self.pools is None and self.regions is None and not self.labels:
            raise ValueError("must name pools, regions or labels; a group of all says nothing")
        return self

    def has(self, option: Option) -> bool:
        """Return whether an option's pool is in the group."""
        has: dict[str, Any] = dict(option.labels)
        return (
            (self.pools is None or option.pool in self.pools)
            and (self.regions is None or option.region in self.regions)
            and all(has.get(name) == value for name, value in self.labels.items())
        )


def rank(order: Sequence[PoolGroup], option: Option) -> int:
    """Return the place of an option's pool in an order; a pool of no group comes last."""
    for number, group in enumerate(order):
        if group.has(option):
            return number
    return len(order)


def ranks_of(order: Sequence[PoolGroup], options: Sequence[Option]) -> list[int] | None:
    """Return the place of each option, or None where nothing is ordered."""
    return [rank(order, option) for option in options] if order else None
