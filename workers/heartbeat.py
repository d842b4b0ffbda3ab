"""Heartbeats: a worker's reports to routers."""

from dataclasses import replace

from mode import Service

from policies.autoscaling import demand
from policies.learning.feedback import Experience
from streams.engine.clock import Clock
from streams.kafka.announcer import Announcer
from streams.service import QuietService
from topics import Catalogue, PoolStatus, Settings, encode, status_key
from topics.records.heartbeat import State
from workers.backends.base import Backend
from workers.resilience.circuit_breaker import Breakers
from workers.stage.worker import Worker


class Heartbeat(QuietService):
    """Reports a worker's load at a fixed interval, circuit changes at once, and its end."""

    def __init__(
        self,
        settings: Settings,
        pool: str,
        worker: Worker,
        backend: Backend,
        breakers: Breakers,
        experience: Experience,
        clock: Clock,
        *,
        state: State = "up",
    ) -> None:
        """Report ``state`` until the worker drains."""
        super().__init__()
        self._state = state
        self._settings = settings
        # Heartbeats are no part of a transaction: a lost one is followed by the next.
        self._announcer = Announcer(settings, Catalogue(settings).pool_status)
        self._pool = pool
        self._worker = worker
        self._backend = backend
        self._breakers = breakers
        self._experience = experience
        self._clock = clock
        self._key = status_key(pool, settings.instance)

    async def on_start(self) -> None:
        """Report at once, so that routers send work."""
        await self._announcer.start()
        await self._announcer.publish(*self._report(self._state))

    @Service.task  # type: ignore[untyped-decorator]
    async def _beat(self) -> None:
        while not self.should_stop:
            await self.wait(self._breakers.changed, timeout=self._settings.heartbeat_s)
            if not self.should_stop:
                self._breakers.changed.clear()
                state: State = "draining" if self._worker.is_draining else self._state
                await self._announcer.tell(*self._report(state))

    async def on_stop(self) -> None:
        """Report that no more work should come, and delete this instance's record.

        Its name may never recur, and the topic keeps the last record of each.
        """
        await self._announcer.stop(self._report("down"), (self._key, None))

    def _report(self, state: State) -> tuple[bytes, bytes]:
        """Return the key and the value of a heartbeat."""
        load, now = self._backend.load(), self._clock.now()
        fleet, option = self._worker.fleet, self._worker.option
        unread = self._worker.backlog.unread(now)
        precisions = self._worker.precisions
        variants = {
            variant: replace(
                status,
                # A router takes what it sent for running until it hears of it again.
                queued=status.queued + self._worker.queued_of(variant),
                circuit=self._breakers.state(variant),
                ttft_error=self._experience.ttft_error(variant),
                tpot_error=self._experience.tpot_error(variant),
                reuse=self._experience.reuse(variant),
                reuse_known=self._experience.reuse_known(variant),
                precision=precisions.get(variant, ""),
            )
            for variant, status in load.variants.items()
        }
        status = PoolStatus(
            pool=self._pool,
            instance=self._settings.instance,
            at=now,
            state=state,
            interval_s=self._settings.heartbeat_s,
            device=option.device,
            region=option.region,
            slots=self._worker.slots,
            running=self._worker.running,
            queued=self._worker.queued,
            backlog_s=load.backlog_s + self._worker.queued_prefill_s,
            variants=variants,
            fleet_version="" if fleet is None else fleet.version,
            server=load.server,
            replicas=option.replicas,
            demand_s=demand(self._worker.unfinished(), now),
            output_lengths=self._experience.lengths.told(),
            failure_rate=self._experience.failure_rate,
            unread=None if unread is None else unread.requests,
            unread_s=() if unread is None else unread.due,
            failure_known=self._experience.failure_known,
            factors=load.factors,
            factors_known=load.factors_known,
            transport_s=self._worker.backlog.transport.usual_s,
            transport_known=self._worker.backlog.transport.known,
            idle_replicas=load.idle_replicas,
            urgent=self._worker.urgent,
            pool_version="" if fleet is None else fleet.pool_versions.get(self._pool, ""),
        )
        return self._key, encode(status)
