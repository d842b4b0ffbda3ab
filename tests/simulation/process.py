"""Processes of a simulation: router with batcher, and worker, as ``run_router`` makes them."""

import asyncio
from collections.abc import Awaitable, Coroutine
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

from policies import situation
from simulation.cluster import SESSION_S, SimLog
from streams import Clock, Scribe
from streams.batcher import Batcher
from streams.cancellations import Cancellations
from streams.router import Router
from streams.stage import Stage
from streams.transactor import Transactor
from topics import PoolStatus, Response, StreamPiece, Usage
from workers import Attempts, Breakers, Call, CallError, Load, Outcome
from workers.backend import Retry
from workers.ending import Ending
from workers.streaming import Streams

if TYPE_CHECKING:
    from simulation.world import World

PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)

HEARTBEAT_S = 1.0
HELD_MAX = 8
IN_FLIGHT_MAX = 6
POLL_RECORDS_MAX = 4
POLL_S_MAX = 1.0
TRANSACTION_S_MAX = 15.0
# What may fail at a backend: the share of calls that another pool may serve, and of those none can.
ELSEWHERE, NOWHERE = 0.08, 0.04


class Process:
    """Some stages that live and die together."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.is_dead = False
        self.is_leaving = False
        self.paused_until_s = 0.0
        self.tasks: list[asyncio.Task[Any]] = []
        self.logs: list[SimLog] = []
        self._context = copy_context()
        self._context.run(PROCESS.set, self)

    def start(self) -> None:
        """Start everything that the process does."""
        raise NotImplementedError

    def spawn(self, coro: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run something that ends with the process."""
        return asyncio.get_running_loop().create_task(coro, context=self._context)

    def own(self, task: asyncio.Task[Any]) -> None:
        """Count a task as of this process."""
        if len(self.tasks) > 64:
            self.tasks = [t for t in self.tasks if not t.done()]
        self.tasks.append(task)

    def kill(self, why: str) -> None:
        """End at once, wherever the process is."""
        if self.is_dead:
            return
        self.world.tell(f"{self.name} dies: {why}")
        self.is_dead = True
        current = asyncio.current_task()
        for log in self.logs:
            log.is_dead = True
            if log.group:
                self.world.groups.of(log.group).died(log)
        for task in self.tasks:
            if task is not current:
                task.cancel()
        self.world.died(self)

    async def pause(self, seconds: float) -> None:
        """Stand still, perhaps for so long that the group goes on without this process."""
        loop = asyncio.get_running_loop()
        self.world.tell(f"{self.name} sleeps for {seconds:.2f} s")
        self.paused_until_s = loop.time() + seconds
        if seconds > SESSION_S:
            for log in self.logs:
                if log.group:
                    self.world.groups.of(log.group).died(log)
        self.spawn(self.rejoin(seconds + self.world.rng.uniform(0.0, 2.0)))

    async def rejoin(self, after_s: float) -> None:
        """Find out, a while after waking, that the group has gone on."""
        await asyncio.sleep(after_s)
        await self.awake()
        for log in self.logs:
            group = self.world.groups.of(log.group)
            if log.group and group.members.get(log.name) is not log and not self.is_leaving:
                await log.lose_all()
                group.members[log.name] = log
                group.joined(log)

    async def awake(self) -> None:
        """Wait while the process stands still."""
        loop = asyncio.get_running_loop()
        while self.paused_until_s > loop.time():  # noqa: ASYNC110 - a pause may be prolonged
            await asyncio.sleep(self.paused_until_s - loop.time())

    def run(self, stage: Stage) -> None:
        """Run a stage until the process ends, which it does with any error of the stage."""
        log = self.world.make_log(self)
        self.logs.append(log)
        transactor = self.world.rules.transactor(
            log,
            stage,
            progress_topic=self.world.catalogue.progress,
            poll_s_max=POLL_S_MAX,
            poll_records_max=POLL_RECORDS_MAX,
            transaction_s_max=TRANSACTION_S_MAX,
        )
        task = self.spawn(self._run(transactor, stage))
        task.topics = stage.topics  # type: ignore[attr-defined]

    async def _run(self, transactor: Transactor, stage: Stage) -> None:
        try:
            await transactor.start()
            while not self.is_leaving:
                await transactor.step()
                self.check(stage)
            await self.drain(transactor)
            await transactor.stop()
            self.kill("has left")
        except Exception as error:  # noqa: BLE001 - rule 5
            self.kill(f"{type(error).__name__}: {error}")

    async def drain(self, transactor: Transactor) -> None:
        """Finish what runs, before leaving."""

    def check(self, stage: Stage) -> None:
        """Look at the memory of a stage between two transactions."""


class RouterProcess(Process):
    """Router and batcher over one view of the fleet."""

    def start(self) -> None:
        world = self.world
        shared = situation(world.options, world.policy)
        scribe = Scribe(world.catalogue, self.name, world.policy.version, world.options.version)
        given = (shared, scribe, world, world.telemetry)
        self.spawn(self._follow(shared.view.report))
        self.run(Router(*given, request_bytes_max=100_000, duplicate_window_records=0))
        self.batcher = Batcher(
            *given,
            Cancellations(world),
            held_records_max=HELD_MAX,
            held_payload_bytes_max=500,
        )
        self.held_before: tuple[list[Any], int] = ([], 0)
        self.run(self.batcher)

    async def _follow(self, report: Any) -> None:
        at = 0
        while True:
            for status in self.world.heartbeats[at:]:
                report(status)
            at = len(self.world.heartbeats)
            await asyncio.sleep(HEARTBEAT_S / 2)
            await self.awake()

    def check(self, stage: Stage) -> None:
        if stage is not self.batcher:
            return
        held = self.batcher._partitions
        memories, count = list(held.values()), sum(len(h.windows) for h in held.values())
        # What is restored is held whatever the limit; only what is polled can exceed it.
        if HELD_MAX <= self.held_before[1] < count and memories == self.held_before[0]:
            self.world.problem(f"{self.name} holds {count} requests, and has polled for more")
        self.held_before = memories, count
        for partition, memory in held.items():
            entries = self.world.cluster.logs[partition].entries
            for member in memory.windows.members():
                transaction = entries[member.offset].transaction
                if transaction is not None and transaction.state != "committed":
                    self.world.problem(f"{member.profile.id} is held in memory only")


class WorkerProcess(Process):
    """The worker of a pool and its heartbeats."""

    def __init__(self, world: "World", name: str, pool: str) -> None:
        super().__init__(world, name)
        self.pool = pool

    def start(self) -> None:
        world = self.world
        scribe = Scribe(world.catalogue, self.name, world.policy.version, world.options.version)
        ending = Ending(scribe, world.telemetry, world.policy.attempts_max)
        options = world.options.by_pool[self.pool]
        backend = SimBackend(world, self.pool)
        attempts = Attempts(
            backend,
            Breakers(self.pool, [option.variant for option in options], backend, world),
            world,
            attempts_max=world.policy.attempts_max,
            uniform=world.rng.random,
        )
        self.worker = world.rules.worker(
            self.pool, options, attempts, scribe, ending, world,
            Cancellations(world), Streams(NoStreams()), in_flight_max=IN_FLIGHT_MAX,
        )  # fmt: skip
        self.spawn(self._beat())
        self.run(self.worker)

    async def drain(self, transactor: Transactor) -> None:
        self.worker.is_draining = True
        for _ in range(20):
            if not self.worker.has_open:
                break
            await transactor.step()

    async def _beat(self) -> None:
        option = self.world.options.by_pool[self.pool][0]
        while True:
            self.world.heartbeats.append(
                PoolStatus(
                    pool=self.pool,
                    instance=self.name,
                    at=self.world.now(),
                    state="draining" if self.worker.is_draining else "up",
                    interval_s=HEARTBEAT_S,
                    device=option.device,
                    region=option.region,
                    slots=self.worker.slots,
                    running=self.worker.running,
                    queued=self.worker.queued,
                    backlog_s=self.worker.queued_prefill_s,
                )
            )
            await asyncio.sleep(HEARTBEAT_S)
            await self.awake()

    def check(self, stage: Stage) -> None:
        count = sum(len(lane.open) for lane in self.worker._lanes.values())
        if count > IN_FLIGHT_MAX + POLL_RECORDS_MAX:
            self.world.problem(f"{self.name} has taken {count} requests at once")


class NoStreams:
    """No request of the simulation asks for a stream."""

    @property
    def clock(self) -> Clock:
        raise AssertionError("nothing is streamed here")

    async def send(self, piece: StreamPiece) -> Awaitable[object]:
        raise AssertionError("nothing is streamed here")


class SimBackend:
    """Takes a while, fails at times, and answers with the request's id."""

    def __init__(self, world: "World", pool: str) -> None:
        self._world = world
        self._pool = pool

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        """Nothing to stop."""

    async def probe(self, variant: str) -> None:
        """Never asked: no failure here is the pool's fault."""

    def load(self) -> Load:
        return Load(0.0, {})

    async def execute(self, call: Call) -> Outcome:
        world = self._world
        began_at, luck = world.now(), world.rng.random()
        await asyncio.sleep(world.rng.uniform(0.02, 0.8) * world.slowness[self._pool])
        if luck < ELSEWHERE + NOWHERE:
            retry: Retry = "elsewhere" if luck < ELSEWHERE else "never"
            raise CallError("scripted", "as the dice fell", retry=retry)
        return Outcome(
            Response(200, {"id": call.request.id}),
            Usage(20, 10),
            started_at=began_at,
            first_token_at=began_at,
            finished_at=world.now(),
            device_s=0.1,
        )
