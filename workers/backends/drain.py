"""A backend for a pool that is gone: what stands in its lanes goes to other pools, or ends."""

from collections.abc import Sequence

from policies import Option
from topics import VariantStatus
from workers.backends.base import Call, CallError, Load, Outcome


class Evacuation:
    """Runs nothing. A worker on it sends each request back to the routers, which decide again.

    They do so under the same constraints and without this pool. What is late, cancelled or out of
    attempts ends as it does at any worker.
    """

    def __init__(self, options: Sequence[Option]) -> None:
        self._load = Load(0.0, {option.variant: VariantStatus() for option in options})

    async def start(self) -> None:
        """Nothing to start."""

    async def execute(self, call: Call) -> Outcome:
        """Send a request elsewhere."""
        message = f"{call.placement.pool} is being evacuated"
        raise CallError("unavailable", message, retry="elsewhere")

    async def probe(self, variant: str) -> None:
        """Nothing to see: no failure here opens a circuit."""

    def load(self) -> Load:
        """Return no load."""
        return self._load

    async def stop(self) -> None:
        """Nothing to release."""
