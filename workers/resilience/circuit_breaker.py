"""Circuit breakers: one for each model variant of a pool, and the probes that close them."""

import asyncio
import logging
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from streams.engine.clock import Clock
from streams.engine.log import LogError
from streams.engine.unexpected_errors import log_unexpected
from topics.records.heartbeat import Circuit
from workers.backends.base import Backend, CallError

# So many failures one after the other open a circuit; so does half of the last LAST_CALLS.
FAILURES_MAX = 3
LAST_CALLS = 20
FAILED_SHARE_MAX = 0.5
# The first probe comes after this, each further one after twice the time, up to the longest.
PROBE_AFTER_S = 1.0
PROBE_AFTER_S_MAX = 10.0
PROBE_S_MAX = 10.0

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class Breaker:
    """The state of one variant. Times are epoch seconds.

    While it is open nothing is sent to the server; while half open, one probe is.
    """

    state: Circuit = "closed"
    probe_at: float = 0.0
    probe_after_s: float = PROBE_AFTER_S
    last: deque[bool] = field(default_factory=lambda: deque(maxlen=LAST_CALLS))

    def take(self, now: float, *, is_failure: bool) -> bool:
        """Count a finished call; return whether that opens the circuit."""
        if self.state != "closed":
            return False
        self.last.append(is_failure)
        if not is_failure:
            self.probe_after_s = PROBE_AFTER_S
        newest = list(self.last)[-FAILURES_MAX:]
        is_row = len(newest) == FAILURES_MAX and all(newest)
        is_share = len(self.last) == LAST_CALLS and sum(self.last) >= LAST_CALLS * FAILED_SHARE_MAX
        if is_row or is_share:
            self.reopen(now)
        return self.state != "closed"

    def reopen(self, now: float) -> None:
        """Send nothing until the next probe; the delay grows each time."""
        self.state = "open"
        self.probe_at = now + self.probe_after_s
        self.probe_after_s = min(self.probe_after_s * 2, PROBE_AFTER_S_MAX)

    def is_due(self, now: float) -> bool:
        """Return True if a probe is due."""
        # None is set so far ahead, unless the clock was set back since then.
        return not 0.0 < self.probe_at - now <= 2 * PROBE_AFTER_S_MAX

    def close(self) -> None:
        """Close the circuit. A server that answers only probes is tried less and less often."""
        self.state = "closed"
        self.last.clear()


class Breakers:
    """The circuit breakers of a worker. ``changed`` is set whenever one of them changes."""

    def __init__(self, pool: str, variants: Iterable[str], backend: Backend, clock: Clock) -> None:
        self._pool = pool
        self._breakers = {variant: Breaker() for variant in variants}
        self._backend = backend
        self._clock = clock
        self.changed = asyncio.Event()
        self._opened = asyncio.Event()

    def state(self, variant: str) -> Circuit:
        """Return the state of a variant's circuit."""
        return self._breakers[variant].state

    def states(self) -> dict[str, Circuit]:
        """Return the state of each variant's circuit."""
        return {variant: breaker.state for variant, breaker in self._breakers.items()}

    @property
    def is_any_closed(self) -> bool:
        """Return True if any variant can be served."""
        return any(breaker.state == "closed" for breaker in self._breakers.values())

    def distrust(self) -> None:
        """Open all circuits with a probe due at once: a server may still be loading its model."""
        now = self._clock.now()
        for breaker in self._breakers.values():
            breaker.state, breaker.probe_at = "open", now

    def succeeded(self, variant: str) -> None:
        """Count a call that the server answered, even with an error of the request."""
        if self._breakers[variant].take(self._clock.now(), is_failure=False):
            self._tell_open(variant)

    def failed(self, variant: str) -> None:
        """Count a call that failed by the server's fault."""
        if self._breakers[variant].take(self._clock.now(), is_failure=True):
            self._tell_open(variant)

    async def watch(self) -> None:
        """Probe each open circuit when due, forever."""
        while True:
            now = self._clock.now()
            opened = {v: b for v, b in self._breakers.items() if b.state == "open"}
            due = [variant for variant, breaker in opened.items() if breaker.is_due(now)]
            await asyncio.gather(*(self._probe(variant) for variant in due))
            if due:
                continue
            self._opened.clear()
            waits = [breaker.probe_at - now for breaker in opened.values()]
            try:
                async with asyncio.timeout(min(waits, default=None)):
                    await self._opened.wait()
            except TimeoutError:
                continue

    async def _probe(self, variant: str) -> None:
        breaker = self._breakers[variant]
        breaker.state = "half_open"
        self.changed.set()
        try:
            async with asyncio.timeout(PROBE_S_MAX):
                await self._backend.probe(variant)
        except (CallError, TimeoutError):
            breaker.reopen(self._clock.now())
        except LogError:
            raise
        except Exception as defect:  # noqa: BLE001 - no probe ends a worker
            log_unexpected(defect, f"the backend of {self._pool} failed on a probe")
            breaker.reopen(self._clock.now())
        else:
            breaker.close()
            logger.info("%s/%s answers again; its circuit is closed", self._pool, variant)
        self.changed.set()

    def _tell_open(self, variant: str) -> None:
        logger.warning("%s/%s fails; its circuit is open", self._pool, variant)
        self.changed.set()
        self._opened.set()
