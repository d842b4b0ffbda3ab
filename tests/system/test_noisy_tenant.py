"""A tenant that sends a hundred times as much as another, and came first: router and worker."""

import asyncio
from itertools import count

from memory_log import MemoryLog
from simulation.loop import VirtualLoop
from stream_cases import FLEET, START, FakeClock, Yard, make_signer, make_transactor
from worker_cases import POOL, ScriptedBackend, make_worker

from policies.learning.feedback import Experience
from streams.engine.stage import Stage
from streams.router.stage import Router
from topics import PoolStatus, Response, Result, Usage, VariantStatus, decode
from workers.backends.base import Call, Load, Outcome
from workers.heartbeat import Heartbeat
from workers.resilience.attempts import service_s
from workers.resilience.circuit_breaker import Breakers

# One pool, at the pace of its hardware: 4 places, 12 chats a second.
SMALL = FLEET.split("  premium-us:", maxsplit=1)[0].replace("20.0", "1.0")
NOISY_PER_S, QUIET_PER_S = 50.0, 0.5
ALONE_S, BOTH_S = 15.0, 20.0
# What waits when the quiet one comes is 30 s of work, and it wants its first token in 1.5 s.
WAIT_S_MAX = 1.0
# Between two steps of a stage.
STEP_S = 0.05


class LoopClock(FakeClock):
    """The time of the loop."""

    def now(self) -> float:
        return START + asyncio.get_running_loop().time()


class RooflineBackend(ScriptedBackend):
    """Takes as long as the hardware is expected to."""

    def __init__(self, yard: Yard) -> None:
        super().__init__()
        self._yard = yard
        self._running = 0

    def load(self) -> Load:
        return Load(0.0, {"yard-8b-fp8": VariantStatus(running=self._running)})

    async def execute(self, call: Call) -> Outcome:
        began_at = self._yard.clock.now()
        self._running += 1
        try:
            await asyncio.sleep(service_s(call.profile, self._yard.options.by_pool[POOL][0]))
        finally:
            self._running -= 1
        return Outcome(
            Response(200, {}),
            Usage(20, 100),
            started_at=began_at,
            first_token_at=began_at,
            finished_at=self._yard.clock.now(),
            device_s=0.1,
        )


class System:
    """A router and a worker; the router hears the worker's heartbeats at once."""

    def __init__(self) -> None:
        self.yard = yard = Yard(fleet=SMALL, clock=LoopClock())
        self.situation = yard.situation()
        self.router = Router(
            *(self.situation, yard.evidence_writer(), yard.clock, yard.telemetry),
            request_bytes_max=100_000,
            duplicate_window_records=0,
        )
        backend, served = RooflineBackend(yard), yard.options.by_pool[POOL]
        self.worker = make_worker(yard, backend, in_flight_max=1024)
        self.heartbeat = Heartbeat(
            *(yard.settings, POOL, self.worker, backend),
            Breakers(POOL, [option.variant for option in served], backend, yard.clock),
            *(Experience(0.0), yard.clock),
        )

    async def beat(self) -> None:
        while True:
            _, value = self.heartbeat._report("up")
            self.situation.view.report(decode(PoolStatus, value))
            await asyncio.sleep(1.0)

    async def drive(self, stage: Stage) -> None:
        yard = self.yard
        signer = make_signer(yard.catalogue, yard.clock, yard.digests)
        log = MemoryLog(yard.cluster, stage.group)
        transactor = make_transactor(
            log, stage, yard.catalogue.progress, signer=signer, poll_s_max=0.05, records_max=100
        )
        await transactor.start()
        await yard.cluster.rebalance(stage.group)
        while True:
            await transactor.step()
            await asyncio.sleep(STEP_S)

    async def publish(self, tenant: str, per_s: float, for_s: float) -> int:
        loop = asyncio.get_running_loop()
        end = loop.time() + for_s
        for n in count():
            if loop.time() >= end:
                return n
            now = self.yard.clock.now()
            self.yard.publish(n % 4, id=f"{tenant}-{n}", tenant=tenant, created_at=now)
            await asyncio.sleep(1 / per_s)
        raise AssertionError("it never ends by itself")


async def run() -> tuple[int, dict[str, Result]]:
    """Return how many the quiet one published, and all results."""
    system = System()
    loop = asyncio.get_running_loop()
    work = (system.beat(), system.drive(system.router), system.drive(system.worker))
    tasks = [loop.create_task(each) for each in work]
    noisy = loop.create_task(system.publish("noisy", NOISY_PER_S, ALONE_S + BOTH_S))
    await asyncio.sleep(ALONE_S)
    published = await system.publish("quiet", QUIET_PER_S, BOTH_S)
    await noisy
    await asyncio.sleep(WAIT_S_MAX)
    assert system.worker.queued > 100, "it was no overload"
    for task in tasks:
        task.cancel()
    return published, system.yard.results()


def test_a_noisy_tenant_that_came_first_keeps_no_other_waiting() -> None:
    published, results = VirtualLoop().finish(run())
    quiet = [r for name, r in results.items() if name.startswith("quiet")]
    assert {r.status for r in quiet} == {"completed"}
    assert len(quiet) == published
    waits = [(r.timing.started_at or 0.0) - r.timing.created_at for r in quiet]
    assert max(waits) < WAIT_S_MAX
    # While it is alone it may take all; after that, until its queue is gone, nothing more.
    turned_away = sum(r.status == "rejected" for r in results.values())
    assert turned_away > 0.9 * NOISY_PER_S * BOTH_S
    completed = sum(r.status == "completed" for r in results.values()) - len(quiet)
    assert completed > 0.8 * 12 * (ALONE_S + BOTH_S), "its own work stood still"
