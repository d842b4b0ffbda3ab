"""Time, passed in everywhere; this is the one module that asks the machine for it."""

import time
from typing import Protocol


class Clock(Protocol):
    """Callers may rely on ``now`` being epoch seconds; it may step when the machine's does."""

    def now(self) -> float:
        """Return epoch seconds."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return epoch seconds."""
        return time.time()
