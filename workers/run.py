"""`shunter worker`, put together."""

import asyncio
from typing import NoReturn

from mode import Service

from policies import Option, compile_options
from streams import CancellationFollower, Cancellations, Clock, Scribe, SystemClock
from streams.declarations import load_fleet, load_policy
from streams.host import FollowerService, StageService, TelemetryService, run_app
from streams.notary import Notary
from streams.run import check_topics, make_notary, notary_services, transactor
from streams.telemetry import from_environment
from topics import Catalogue, Settings
from topics.access import worker as worker_role
from workers.backend import Backend
from workers.ending import Ending
from workers.heartbeat import Heartbeat
from workers.host import read_host
from workers.runtime import Worker
from workers.simulated import SimulatedBackend


class UnknownPoolError(LookupError):
    """The fleet has no such pool, or one that this version can't serve."""


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

    def __init__(self, worker: Worker, settings: Settings, notary: Notary) -> None:
        super().__init__(transactor(settings, worker, notary), "worker")
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


def make_backend(kind: str, options: tuple[Option, ...], clock: Clock) -> Backend:
    """Return the backend that a pool declares.

    Raises:
        UnknownPoolError: this version has no such backend.
    """
    if kind == "simulated":
        return SimulatedBackend(options, clock)
    raise UnknownPoolError(
        f"pools.{options[0].pool}.backend.type: {kind!r} has no runtime in this version;"
        " use 'simulated'"
    )


def run_worker(pool: str, settings: Settings) -> NoReturn:
    """Serve a pool until told to stop.

    Raises:
        AdminError: Kafka can't be reached, or topics are missing.
        DeclarationError: fleet or policy can't be used.
        UnknownPoolError: the fleet has no such pool.
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
    backend = make_backend(fleet.pools[pool].backend.type, served, clock)
    telemetry = from_environment("worker", settings.instance)
    writer = f"worker/{pool}/{settings.instance}"
    notary = make_notary(settings, writer, clock)
    scribe = Scribe(catalogue, writer, notary.digests, policy.version, options.version)
    cancellations = Cancellations(clock)
    worker = Worker(
        pool,
        served,
        backend,
        scribe,
        Ending(scribe, telemetry, policy.attempts_max, read_host()),
        clock,
        cancellations,
        in_flight_max=settings.in_flight_max,
    )
    run_app(
        f"worker-{pool}",
        settings,
        [
            TelemetryService(telemetry),
            *notary_services(settings, notary),
            BackendService(backend),
            FollowerService(CancellationFollower(settings, cancellations)),
            DrainingService(worker, settings, notary),
            Heartbeat(settings, served[0], worker, backend, clock, options.version),
        ],
    )
