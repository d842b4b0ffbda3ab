"""Processes of a simulation: ``shunter router`` and ``shunter worker``, put together as they are.

They are killed and stopped as by the kernel, between any two steps of any of their tasks: the loop
asks the world before each step (``loop.py``), and the world asks the process.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Collection, Coroutine
from contextvars import Context, ContextVar, copy_context
from itertools import count
from typing import TYPE_CHECKING, Any
from zlib import crc32

from memory_cluster import MemoryCluster
from stream_cases import make_digests, make_key, make_signer

from policies import situation
from simulation.backend import SimBackend
from simulation.cluster import SESSION_S, SimLog
from simulation.loop import Step
from simulation.quotes import SECRET
from streams.cancellation.index import CancellationFollower, Cancellations
from streams.config.active_policy import ActivePolicy, DecisionContext
from streams.config.declarations import Declarations
from streams.config.policy_follower import PolicyFollower
from streams.config.token_counting import TokenCounter
from streams.engine.clock import Clock
from streams.engine.stage import Stage
from streams.engine.transactor import TOGETHER_S, Transactor
from streams.evidence.records import EvidenceWriter
from streams.router.quote_stage import QuoteStage
from topics import PoolStatus, Settings, StreamPiece
from workers.resilience.attempts import Attempts
from workers.resilience.circuit_breaker import Breakers
from workers.stage.chunks import Streams
from workers.stage.outcomes import OutcomeWriter

if TYPE_CHECKING:
    from simulation.world import World

PROCESS: ContextVar["Process | None"] = ContextVar("process", default=None)

HEARTBEAT_S = 1.0
FOLLOW_S = 0.5
# Every 10 s, as by default.
HEADS_EACH = 20
HELD_MAX = 4
HELD_BYTES_MAX = 3000
IN_FLIGHT_MAX = 4
# Requests as they reach a worker have about 1 kB: three of the longer ones are enough.
IN_FLIGHT_BYTES_MAX = 3050
POLL_RECORDS_MAX = 3
POLL_S_MAX = 1.0
# A supervisor kills what has not ended so long after it was told to.
GRACE_S = 15.0
TRANSACTION_S_MAX = 15.0


class _Machine:
    """The clock of a host, which may be wrong."""

    def __init__(self, world: "World", name: str) -> None:
        self._world = world
        self._name = name

    def now(self) -> float:
        world = self._world
        moved_s = world.clock_offsets_s.get(self._name, 0.0)
        return world.now() + world.skews_s.get(self._name, 0.0) + moved_s


class Process:
    """Some stages that live and die together. It is also their clock."""

    def __init__(self, world: "World", name: str) -> None:
        self.world = world
        self.name = name
        self.is_dead = False
        self.is_leaving = False
        self.parked: deque[Step] | None = None
        """While the process is stopped: what would have run."""
        self.fuse: tuple[int, str, str] | None = None
        """So many steps until a fault strikes, which, and in what transaction."""
        self.error: Exception | None = None
        """What the next call of Kafka will raise."""
        self.late_s = 0.0
        """Seconds that the next call of Kafka will take."""
        self.is_unanswered = False
        """Whether the next commit will be made, and its answer lost."""
        self.logs: list[SimLog] = []
        self.machine = _Machine(world, name)
        self._clock = world.rules.clock(self.machine)
        self.hear_time()
        self.cancellations = Cancellations(self)
        self._stages_left = 0
        self._digests = make_digests(world.catalogue)
        key = make_key(world.new_key())
        self.signer = make_signer(world.catalogue, self, self._digests, key=key, writer=name)
        world.keys.append(self.signer.publish())
        self._context = copy_context()
        self._context.run(PROCESS.set, self)

    def now(self) -> float:
        return self._clock.now()

    def hear_time(self) -> None:
        """Hear from the brokers what time it is, as with each entry of the keys topic."""
        at = self.machine.now()
        self._clock.told(self.world.now(), at, at)

    def start(self) -> None:
        """Start everything that the process does."""
        self.spawn(self._follow())

    def run_stages(self) -> None:
        """Start the stages; what is followed is known by now."""
        raise NotImplementedError

    @property
    def is_silent(self) -> bool:
        """Whether it sends no heartbeats."""
        return self.is_dead or self.parked is not None

    def spawn(self, coro: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run something that ends with the process."""
        return asyncio.get_running_loop().create_task(coro, context=self._context)

    def kill(self, why: str) -> None:
        """End at once: nothing of the process runs any more."""
        if self.is_dead:
            return
        self.world.tell(f"{self.name} dies: {why}")
        self.is_dead = True
        self.parked = None
        for log in self.logs:
            log.is_dead = True
            if log.group:
                self.world.groups.of(log.group).died(log)
        self.world.died(self)

    def pause(self, seconds: float) -> None:
        """Stand still, perhaps for so long that the group goes on without this process."""
        self.world.tell(f"{self.name} stands still for {seconds:.2f} s")
        self.parked = deque()
        self.world.loop.call_later(seconds, self.wake, context=Context())
        for log in self.logs:
            if log.group and seconds > SESSION_S:
                self.world.groups.of(log.group).died(log)
        self.spawn(self.rejoin(self.world.rng.uniform(0.0, 2.0)))

    def wake(self) -> None:
        """Go on, with whatever has become due."""
        if self.parked is not None:
            self.world.tell(f"{self.name} wakes")
            parked, self.parked = self.parked, None
            self.world.loop.resume(parked)

    async def rejoin(self, after_s: float) -> None:
        """Find out, a while after waking, that the group has gone on."""
        await asyncio.sleep(after_s)
        for log in self.logs:
            group = self.world.groups.of(log.group)
            if log.group and group.members.get(log.name) is not log and not self.is_leaving:
                await log.lose_all()
                group.members[log.name] = log
                group.joined(log)

    def leave(self, why: str) -> None:
        """End as after SIGTERM."""
        if not self.is_leaving:
            self.world.tell(f"{self.name} leaves: {why}")
            self.is_leaving = True
            self.world.loop.call_later(GRACE_S, self.kill, "its grace is over", context=Context())

    def log(self) -> SimLog:
        """Return a log that dies with the process."""
        log = self.world.rules.log(self.world.groups, self.name, self)
        log.writer = self.world.rules.writer
        self.logs.append(log)
        return log

    def run(self, stage: Stage, before_step: Callable[[], None] = lambda: None) -> None:
        """Run a stage until the process ends, which it does with any error of the stage."""
        log = self.log()
        transactor = self.world.rules.transactor(
            log,
            stage,
            signer=self.signer,
            progress_topic=self.world.catalogue.progress,
            poll_s_max=POLL_S_MAX,
            poll_records_max=POLL_RECORDS_MAX,
            transaction_s_max=TRANSACTION_S_MAX,
            before_step=before_step,
            together_s=self._together_s,
        )
        self._stages_left += 1
        task = self.spawn(self._run(transactor, stage))
        task.topics = stage.topics  # type: ignore[attr-defined]

    @property
    def _together_s(self) -> float:
        """How long partitions wait for each other's commits: in some processes not at all."""
        told = f"{self.world.seed} {self.name}".encode()
        return TOGETHER_S if crc32(told) % 2 else 0.0

    async def _follow(self) -> None:
        follower = SimFollower(self.world.cluster, self.world.settings, self.cancellations)
        try:
            await follower.start()
            self.run_stages()
            await self.take_policies()
            for number in count(1):
                await asyncio.sleep(FOLLOW_S)
                if number % HEADS_EACH == 0:
                    self.hear_time()
                await follower.step(0.0)
                self.look()
                await self.take_policies()
        except Exception as error:  # noqa: BLE001 - rule 5
            self.fail(error)

    async def _run(self, transactor: Transactor, stage: Stage) -> None:
        try:
            await transactor.start()
            while not self.is_leaving:
                await transactor.step()
                self.check(stage)
            await self.drain(transactor)
        except Exception as error:  # noqa: BLE001 - rule 5
            self.fail(error)
        try:
            await transactor.stop()
        except Exception as error:  # noqa: BLE001 - it is leaving anyway
            self.world.died_of(error)
            self.world.tell(f"{self.name} fails to leave: {error}")
        self._stages_left -= 1
        if not self._stages_left:
            self.kill("has left")

    def fail(self, error: Exception) -> None:
        """End because of an error: at once, or as a supervisor does, who lets the others stop."""
        self.world.died_of(error)
        why = f"{type(error).__name__}: {error}"
        if self.world.rng.random() < 0.5:
            self.kill(why)
        else:
            self.leave(why)

    async def drain(self, transactor: Transactor) -> None:
        """Finish what runs, before leaving."""

    def look(self) -> None:
        """Look at what others report, every FOLLOW_S."""

    async def take_policies(self) -> None:
        """Learn what policy is in force."""

    def check(self, stage: Stage) -> None:
        """Look at the memory of a stage between two transactions."""


class RouterProcess(Process):
    """Router, batcher and canceller over one view of the fleet."""

    def run_stages(self) -> None:
        world, rules = self.world, self.world.rules
        shared = situation(world.options, world.policy)
        self._reports_seen = 0
        evidence_writer = EvidenceWriter(
            world.catalogue,
            self.name,
            self._digests,
            world.policy.version,
            world.options.version,
        )
        active_policy = ActivePolicy(DecisionContext(shared, evidence_writer, TokenCounter({})))
        self._report = active_policy.report
        self.look()
        own = Declarations(world.fleet, world.policy)
        self._policies = PolicyFollower(world.settings, active_policy, own, _no_new_pools, self)
        self._policies_seen = 0
        given = (shared, evidence_writer, self, world.telemetry)
        self.router = rules.router(
            *given,
            request_bytes_max=100_000,
            duplicate_window_records=world.window_records,
            quote_secret=SECRET,
        )
        self.batcher = rules.batcher(
            *given,
            self.cancellations,
            held_records_max=HELD_MAX,
            held_payload_bytes_max=HELD_BYTES_MAX,
        )
        self.held_before: tuple[list[Any], int] = ([], 0)
        self.spawn(self.batcher.read_ahead(self.log()))
        self.run(self.router, active_policy.keep(self.router.take_context))
        self.run(self.batcher, active_policy.keep(self.batcher.take_context))
        self.run(rules.canceller(evidence_writer, self))
        if rules.with_quotes:
            desk = QuoteStage(
                active_policy.terms, self, request_bytes_max=100_000, quote_secret=SECRET
            )
            self.run(desk, active_policy.keep(desk.take_context))

    async def take_policies(self) -> None:
        records = self.world.cluster.records(self.world.catalogue.policies)
        for record in records[self._policies_seen :]:
            self._policies.take(record)
        self._policies_seen = len(records)
        await self._policies.settle()

    def look(self) -> None:
        for status in self.world.heartbeats[self._reports_seen :]:
            self._report(status)
        self._reports_seen = len(self.world.heartbeats)

    def check(self, stage: Stage) -> None:
        if stage is self.router:
            for partition in self.router._ingest:
                known = self.router._duplicates.known(partition)
                if known > self.world.window_records:
                    self.world.problem(f"{self.name} remembers {known} ids of {partition}")
        if stage is not self.batcher:
            return
        held = self.batcher._partitions
        memories, count = list(held.values()), sum(len(h.windows) for h in held.values())
        # What is restored is held whatever the limit; only what is polled can exceed it.
        if HELD_MAX <= self.held_before[1] < count and memories == self.held_before[0]:
            self.world.problem(f"{self.name} holds {count} requests, and has polled for more")
        self.held_before = memories, count
        if self.batcher.room.bytes_used > HELD_BYTES_MAX and not count:
            self.world.problem(f"{self.name} keeps payloads of what it does not hold")
        for partition, memory in held.items():
            entries = self.world.cluster.logs[partition].entries
            for member in memory.windows.members():
                transaction = entries[member.offset].transaction
                if transaction is not None and not transaction.is_visible_on(partition):
                    self.world.problem(f"{member.profile.id} is held in memory only")


async def _no_new_pools(pools: Collection[str]) -> None:
    if pools:
        raise AssertionError("no fleet of the simulation has others")


class WorkerProcess(Process):
    """The worker of a pool and its heartbeats."""

    def __init__(self, world: "World", name: str, pool: str) -> None:
        super().__init__(world, name)
        self.pool = pool

    def run_stages(self) -> None:
        world = self.world
        evidence_writer = EvidenceWriter(
            world.catalogue,
            self.name,
            self._digests,
            world.policy.version,
            world.options.version,
        )
        ending = OutcomeWriter(evidence_writer, world.telemetry, world.policy.attempts_max)
        options = world.options.by_pool[self.pool]
        backend = SimBackend(self, self.pool)
        attempts = Attempts(
            backend,
            Breakers(self.pool, [option.variant for option in options], backend, self),
            self,
            attempts_max=world.policy.attempts_max,
            uniform=world.rng.random,
        )
        self.worker = world.rules.worker(
            self.pool, options, attempts, evidence_writer, ending, self,
            self.cancellations, Streams(NoStreams()), in_flight_max=IN_FLIGHT_MAX,
            in_flight_bytes_max=IN_FLIGHT_BYTES_MAX,
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
                    at=self.now(),
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


class SimFollower(CancellationFollower):
    """Reads every cancellation, from memory instead of Kafka."""

    def __init__(
        self, cluster: MemoryCluster, settings: Settings, cancellations: Cancellations
    ) -> None:
        super().__init__(settings, cancellations)
        self._cluster = cluster
        (self._topic,) = self._topics
        self._seen = [0] * cluster.topics[self._topic]

    async def start(self) -> None:
        await self.step(0.0)

    async def step(self, timeout_s: float) -> None:
        await self._cluster.checkpoint()
        for number, seen in enumerate(self._seen):
            records = self._cluster.records(self._topic, number)
            for record in records[seen:]:
                self.take(record)
            self._seen[number] = len(records)
