"""`shunter worker`, put together."""

import asyncio
import random
from typing import NoReturn

from mode import Service

from policies import Option, Pool, compile_options
from policies.fleet import CPUBackend as DeclaredCPU
from policies.fleet import OpenAIBackend as DeclaredOpenAI
from streams import CancellationFollower, Cancellations, Clock, Scribe, SystemClock
from streams.declarations import load_fleet, load_policy
from streams.host import FollowerService, StageService, TelemetryService, run_app
from streams.run import check_topics, transactor
from streams.telemetry import from_environment
from topics import Catalogue, Settings
from topics.access import worker as worker_role
from workers.attempts import Attempts
from workers.backend import Backend
from workers.breaker import Breakers
from workers.cpu import CPUBackend
from workers.ending import Ending
from workers.heartbeat import Heartbeat
from workers.openai import OpenAIBackend
from workers.runtime import Worker
from workers.simulated import SimulatedBackend
from workers.streaming import StreamPublisher, Streams


class UnknownPoolError(LookupError):
    """The fleet has no such pool."""


class BackendService(Service):  # type: ignore[misc]
    """Starts the backend first and stops it last."""

    mundane_level = "debug"

    def __init__(self, backend: Backend) -> None:
        super().__init__()
        self._backend = backend

    async def on_start(self) -> None:
        """Make the backend ready."""
        await self._backend.start()

    async def on_stop(self) -> None:
        """Stop the backend."""
        await self._backend.stop()


class DrainingService(StageService):
    """A stage that finishes what runs before it leaves, as far as the grace period goes."""

    def __init__(self, worker: Worker, settings: Settings) -> None:
        super().__init__(transactor(settings, worker), "worker")
        self._worker = worker
        self._drain_s_max = settings.drain_s_max

    async def on_stop(self) -> None:
        """Take no more, commit what finishes in time, and leave the rest uncommitted."""
        self._worker.is_draining = True
        loop = asyncio.get_running_loop()
        end_at = loop.time() + self._drain_s_max
        while self._worker.has_open and loop.time() < end_at:
            await self._transactor.step()
        await super().on_stop()


class BreakerService(Service):  # type: ignore[misc]
    """Probes what has failed until it answers again."""

    mundane_level = "debug"

    def __init__(self, breakers: Breakers) -> None:
        super().__init__()
        self._breakers = breakers

    async def on_start(self) -> None:
        """Let nothing be sent before each variant has answered once."""
        self._breakers.distrust()

    @Service.task  # type: ignore[untyped-decorator]
    async def _watch(self) -> None:
        await self._breakers.watch()


def make_backend(pool: Pool, options: tuple[Option, ...], clock: Clock) -> Backend:
    """Return the backend that a pool declares.

    Raises:
        BackendSettingError: it can't be made of what is declared.
    """
    if isinstance(pool.backend, DeclaredOpenAI):
        return OpenAIBackend(pool.backend, options, clock)
    if isinstance(pool.backend, DeclaredCPU):
        return CPUBackend(pool.backend, options, clock)
    return SimulatedBackend(options, clock)


def run_worker(pool: str, settings: Settings) -> NoReturn:
    """Serve a pool until told to stop.

    Raises:
        AdminError: Kafka can't be reached, or topics are missing.
        DeclarationError: fleet or policy can't be used.
        UnknownPoolError: the fleet has no such pool.
        BackendSettingError: its backend can't be made of what it declares.
    """
    fleet = load_fleet(settings.fleet)
    options = compile_options(fleet)
    policy = load_policy(settings.policy)
    if pool not in options.by_pool:
        known = ", ".join(sorted(options.by_pool))
        raise UnknownPoolError(f"the fleet has no pool {pool!r}; it has {known}")
    catalogue = Catalogue(settings)
    # Not those that a worker has no business with: it may not so much as see them.
    own = worker_role(catalogue, pool).topics()
    check_topics(settings, [topic for topic in catalogue.topics([pool]) if topic.name in own])
    served = options.by_pool[pool]
    clock = SystemClock()
    backend = make_backend(fleet.pools[pool], served, clock)
    breakers = Breakers(pool, [option.variant for option in served], backend, clock)
    telemetry = from_environment("worker", settings.instance)
    scribe = Scribe(
        catalogue, f"worker/{pool}/{settings.instance}", policy.version, options.version
    )
    cancellations = Cancellations(clock)
    publisher = StreamPublisher(settings, clock)
    worker = Worker(
        pool,
        served,
        Attempts(
            backend,
            breakers,
            clock,
            attempts_max=policy.attempts_max,
            uniform=random.SystemRandom().random,
        ),
        scribe,
        Ending(scribe, telemetry, policy.attempts_max),
        clock,
        cancellations,
        Streams(publisher),
        in_flight_max=settings.in_flight_max,
    )
    run_app(
        f"worker-{pool}",
        settings,
        [
            TelemetryService(telemetry),
            BackendService(backend),
            FollowerService(CancellationFollower(settings, cancellations)),
            BreakerService(breakers),
            publisher,
            DrainingService(worker, settings),
            Heartbeat(settings, served[0], worker, backend, breakers, clock, options.version),
        ],
    )
