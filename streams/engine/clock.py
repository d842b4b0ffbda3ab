"""Time, passed in everywhere; only this module reads the machine's clock."""

import logging
import time
from typing import Protocol

logger = logging.getLogger(__name__)

# Clocks that NTP keeps are closer to each other than this, and on a busy machine the measured
# broker time is about as uncertain. A smaller difference is ignored, so that processes of one host
# share one clock.
TOLERANCE_S = 0.1


class Clock(Protocol):
    """Provides ``now`` in epoch seconds; it may step when the machine's clock does."""

    def now(self) -> float:
        """Return epoch seconds."""
        ...


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        """Return epoch seconds."""
        return time.time()


class BrokerClock:
    """The machine's clock, corrected to the broker's where the two differ.

    Deadlines, heartbeats and rates are written by one process and judged by another, on another
    host: all use the one clock that each of them can read.
    """

    def __init__(self, machine: Clock) -> None:
        self.machine = machine
        self._behind_s = 0.0

    def now(self) -> float:
        """Return epoch seconds."""
        return self.machine.now() + self._behind_s

    def told(self, broker_s: float, sent_at: float, heard_at: float) -> bool:
        """Learn the broker's clock; return whether that has changed this one.

        Args:
            broker_s: its time, epoch seconds, at some moment between the two.
            sent_at: when it was asked, by the machine's clock.
            heard_at: when its answer was there, by the same.
        """
        least, most = broker_s - heard_at, broker_s - sent_at
        if least > most:
            # The machine's clock was set back meanwhile.
            return False
        if least - TOLERANCE_S <= self._behind_s <= most + TOLERANCE_S:
            return False
        self._behind_s = min(max(self._behind_s, least), most)
        logger.warning(
            "the clock of this host is %.1f s %s that of the broker, which counts",
            abs(self._behind_s),
            "behind" if self._behind_s > 0 else "ahead of",
        )
        return True
