"""Backend for a removed pool: requests in its lanes go to other pools, or end."""

from collections.abc import Sequence

from policies import Option
from topics import VariantStatus
from workers.backends.base import Call, CallError, Load, Outcome


class Evacuation:
    """Runs nothing. Its worker sends each request back to the routers, which decide again.

    They decide under the same constraints and without this pool. Requests that are late, cancelled
    or out of attempts end as at any worker.
    """

    def __init__(self, options: Sequence[Option]) -> None:
        self._load = Load(0.0, {option.variant: VariantStatus() for option in options})

    async def start(self) -> None:
        """Do nothing."""

    async def execute(self, call: Call) -> Outcome:
        """Raise the error that sends a request elsewhere."""
        message = f"{call.placement.pool} is being evacuated"
        raise CallError("unavailable", message, retry="elsewhere")

    async def probe(self, variant: str) -> None:
        """Do nothing: no failure here opens a circuit."""

    def load(self) -> Load:
        """Return no load."""
        return self._load

    async def stop(self) -> None:
        """Do nothing: there is nothing to release."""
