"""Misfits: workers that say to be something else than what the fleet declares of their pool."""

from collections.abc import Sequence
from typing import Literal, NamedTuple

from policies.config.options import Option
from topics import PoolStatus

# A change of the fleet reaches routers and workers within seconds, but not at the same moment.
GRACE_S = 15.0

What = Literal["device", "region", "precision", "fleet_version"]


class Misfit(NamedTuple):
    """A difference between what a worker says of itself and what the fleet declares."""

    what: What
    told: str
    declared: str

    def __str__(self) -> str:
        return f"{self.what} {self.told}, where the fleet declares {self.declared}"


def misfit(status: PoolStatus, options: Sequence[Option], pool_version: str) -> Misfit | None:
    """Return how a worker differs from what is declared for its pool, or None.

    What it doesn't tell is no difference, since earlier versions tell less. A difference of the
    version alone counts only once it has lasted for `GRACE_S`.
    """
    first = options[0]
    if status.device != first.device:
        return Misfit("device", status.device, first.device)
    if status.region != first.region:
        return Misfit("region", status.region, first.region)
    precisions = {option.variant: option.precision for option in options}
    for variant, each in sorted(status.variants.items()):
        declared = precisions.get(variant)
        if each.precision and declared is not None and each.precision != declared:
            return Misfit("precision", f"{each.precision} of {variant}", declared)
    if status.pool_version and pool_version and status.pool_version != pool_version:
        return Misfit("fleet_version", status.pool_version, pool_version)
    return None
