"""Services beside the stage in a worker's process, and their shutdown."""

import asyncio
from collections.abc import Callable, Sequence

from mode import Service

from streams.engine.signer import Signer
from streams.engine.stage import Observer
from streams.hosting.assembly import transactor
from streams.hosting.services import StageService
from streams.metrics import Metrics
from streams.service import QuietService
from topics import Settings
from workers.backends.base import Backend
from workers.resilience.circuit_breaker import Breakers
from workers.stage.worker import Worker

LOOK_EVERY_S = 1.0
# Of the notice of its end, the part in which a worker finishes what it has.
NOTICE_SHARE = 0.9


class BackendService(QuietService):
    """Starts the backend first and stops it last."""

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    async def on_start(self) -> None:
        """Start the backend."""
        await self._backend.start()

    async def on_stop(self) -> None:
        """Stop the backend."""
        await self._backend.stop()


class DrainingService(StageService):
    """A stage that finishes running requests before it leaves, within the grace period."""

    def __init__(
        self,
        worker: Worker,
        settings: Settings,
        signer: Signer,
        metrics: Metrics,
        observers: Sequence[Observer] = (),
        before_step: Callable[[], None] = lambda: None,
        notice_s: float = 0.0,
    ) -> None:
        """Drain for as long as the settings say, or the notice of the pool's end lasts.

        Args:
            worker: whose work it is.
            settings: of the process.
            signer: of its evidence.
            metrics: of its transactions.
            observers: of what it commits.
            before_step: called before each step.
            notice_s: how long before its end the pool is told of it; 0: it isn't.
        """
        steps = transactor(settings, worker, signer, metrics, observers, before_step)
        super().__init__(steps, "worker")
        self._worker = worker
        # A part is left for what is under way to be committed.
        self.drain_s_max = NOTICE_SHARE * notice_s or settings.drain_s_max
        """How long it goes on with what it has, in seconds."""

    @Service.task  # type: ignore[untyped-decorator]
    async def _look(self) -> None:
        """Measure the unread backlog in the background; neither steps nor heartbeats wait."""
        while not self.should_stop:
            lag = await self._transactor.lag()
            if lag is not None:
                self._worker.backlog.looked(lag)
            await self.sleep(LOOK_EVERY_S)

    async def on_stop(self) -> None:
        """Take no more, commit requests that finish in time, leave the rest uncommitted."""
        self._worker.is_draining = True
        loop = asyncio.get_running_loop()
        end_at = loop.time() + self.drain_s_max
        while self._worker.has_open and loop.time() < end_at:
            await self._transactor.step()
        await super().on_stop()


class BreakerService(QuietService):
    """Probes failed variants until they answer again."""

    def __init__(self, breakers: Breakers) -> None:
        super().__init__()
        self._breakers = breakers

    async def on_start(self) -> None:
        """Block calls of each variant until it has answered a probe."""
        self._breakers.distrust()

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch(self) -> None:
        await self._breakers.watch()
