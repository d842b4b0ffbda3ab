"""The end of a fault: direct requests are served in time again."""

import asyncio
import time
from dataclasses import dataclass

from ledger import Ledger
from load import Load

# A direct request that takes longer is one that the fault delayed.
SLOW_S = 1.0
# What was served in time may still be on its way to the reader.
MARGIN_S = 1.5
# So long nothing was slow, until the next fault.
QUIET_S = 3.0
LOOK_EVERY_S = 0.25


@dataclass(frozen=True)
class Span:
    """A fault: when it began and ended, and until when requests count to it (epoch seconds).

    ``is_calm`` tells whether they were served in time again by then.
    """

    name: str
    began: float
    ended: float
    until: float
    is_calm: bool = True


async def calm_after(ended: float, ledger: Ledger, load: Load, s_max: float) -> tuple[float, bool]:
    """Wait until direct requests are served in time, but for no more than ``s_max`` of them.

    Returns until when they have been judged, and whether they were in time at last.
    """
    while True:
        until = time.time() - SLOW_S - MARGIN_S
        is_calm = is_quiet(ledger, load, ended, until)
        if is_calm or until - ended >= s_max:
            return until, is_calm
        await asyncio.sleep(LOOK_EVERY_S)


def is_quiet(ledger: Ledger, load: Load, ended: float, until: float) -> bool:
    """Tell whether direct requests came in the last seconds before ``until``, all served in time.

    While nothing can be published, nothing is in time.
    """
    since = until - QUIET_S
    took = [took_s for _, took_s in ledger.took_s(load, since, until)]
    return since >= ended and max(took, default=SLOW_S + 1) <= SLOW_S
