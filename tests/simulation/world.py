"""One run of one seed: processes, clients, faults, and the wait until all has settled."""

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from dataclasses import dataclass
from typing import Any

from memory_log import CutOffError, MemoryWriter, ProcessKilledError
from stream_cases import FLEET, START, make_options, make_policy

from policies import parse_fleet
from simulation.aftermath import Aftermath, source_of
from simulation.budgets import BUDGETS, THRIFTY_REQUESTS, add_thrifty
from simulation.checker import check, held
from simulation.cluster import TRANSACTION_S, Groups, SimCluster, SimLog
from simulation.faults import Faults
from simulation.loop import Step, VirtualLoop
from simulation.lost_tails import LostTail
from simulation.process import PROCESS, Process, RouterProcess, WorkerProcess
from simulation.quotes import publish_quotes
from simulation.requests import (
    BOUND,
    DEADLINES_S,
    PARTITIONS,
    POOLS,
    Workload,
    make_workload,
)
from streams.batcher.stage import Batcher
from streams.cancellation.stage import Canceller
from streams.config.declarations import text_of
from streams.engine.clock import BrokerClock
from streams.engine.log import LogError, Outgoing, Record
from streams.engine.transactor import Transactor
from streams.router.stage import Router
from streams.tracing.telemetry import Telemetry
from topics import (
    Catalogue,
    Declared,
    PolicyChange,
    PolicyEntry,
    PublishedKey,
    Settings,
    encode,
    entry_key,
)
from workers.stage.worker import Worker

REQUESTS = 20
BOUND_REQUESTS = 4
# That are published once more, when all processes are new.
AGAIN_REQUESTS = 12
# Faults fall into the first seconds; what is left after SETTLED_S_MAX more will never end.
FAULTS_S = 12.0
SETTLED_S_MAX = 250.0
FINAL_S = 2.0
AGAIN_S_MAX = 20.0
"""Longest wait for what is published again to be known as that; some of it is served again."""
SKEW_S_MAX = 60.0
# By then every process has read a cancellation.
KNOWN_S = 1.0

POLICY = """
classes:
  chat:
    {latency_sensitive: true, batchable: false, ttft_ms: 1500, deadline_s: 40,
     longest_wait_s: 12, output_tokens: 100}
  summarization:
    {latency_sensitive: false, batchable: true, deadline_s: 60, window_s: 4,
     longest_wait_s: 15, output_tokens: 100}
data_classes:
  regulated: {regions: [eu-west]}
tenants:
  hurried: {rate_per_s: 0.5}
  bound: {bound: {regions: [eu-west]}}
@BUDGETS
windows: {members_max: 4, margin_s: 2.0, length_buckets_tokens: [512, 2048], prior_rate_per_s: 0.5}
""".replace("@BUDGETS\n", BUDGETS)

# What may be in force for a while: other groups, smaller batches, other chances, other bounds.
OTHER_POLICY = (
    POLICY.replace("members_max: 4", "members_max: 2")
    .replace("[512, 2048]", "[100]")
    .replace("ttft_ms: 1500", "ttft_ms: 400")
    .replace("bound: {regions: [eu-west]}", "bound: {regions: [us-east]}")
)

_SETTINGS = Settings(instance="simulation", topic_prefix="yard", partitions=PARTITIONS)
# Energy is known of all devices, since a budget of it admits no others.
_POWERED = FLEET.replace("    usd_per_hour: 4.0\n", "    usd_per_hour: 4.0\n    power_w: 700\n")
_POWERED = _POWERED.replace("    usd_per_hour: 0.4\n", "    usd_per_hour: 0.4\n    power_w: 300\n")
_OPTIONS = make_options(_POWERED)
_POLICY = make_policy(POLICY)
_FLEET = parse_fleet(_POWERED, "fleet of the simulation")
_POLICIES = {p.version: p for p in (_POLICY, make_policy(OTHER_POLICY))}


@dataclass(frozen=True)
class Rules:
    """What the world is made of; the tests put broken parts in."""

    transactor: type[Transactor] = Transactor
    router: type[Router] = Router
    batcher: type[Batcher] = Batcher
    canceller: type[Canceller] = Canceller
    worker: type[Worker] = Worker
    log: type[SimLog] = SimLog
    clock: type[BrokerClock] = BrokerClock
    writer: type[MemoryWriter] = MemoryWriter
    strikes: Sequence[str] | None = None
    """The faults to strike, in place of all."""
    lose_offsets_of: str | None = None
    """A stage, by the end of its group's name, none of whose group offsets is ever seen."""
    with_quotes: bool = False
    """Whether clients ask for quotes, and take them."""


class World:
    """Everything there is in one run. It is also the clock of its processes."""

    def __init__(self, seed: int, rules: Rules) -> None:
        self.seed = seed
        self.rules = rules
        self.rng = random.Random(seed)
        self.trace: list[str] = []
        self.problems: list[str] = []
        self.defects: list[str] = []
        """Of the problems: errors of the code, which no rule of the checker has found."""
        self.loop = VirtualLoop(self._lets)
        self.skews_s: dict[str, float] = {}
        """How far the clocks of hosts are from that of the brokers, by the process on it."""
        self.clock_offsets_s: dict[str, float] = {}
        """How far they were moved besides, until faults are over."""
        self.unsteady: set[str] = set()
        """The processes that stood still for a while, or whose clocks were moved."""
        self.window_records = self.rng.choice((0, 1, 3, 8, 100))
        self.settings = _SETTINGS
        self.options, self.policy = _OPTIONS, _POLICY
        self.fleet, self.policies = _FLEET, _POLICIES
        self.catalogue = Catalogue(_SETTINGS)
        self.telemetry = Telemetry(None)
        topics = self.catalogue.topics(self.options.by_pool)
        self.cluster = SimCluster(
            {t.name: t.partitions for t in topics},
            tell=self.tell,
            now=self.now,
            checkpoint=self.checkpoint,
            answer=self.answer,
        )
        self.cluster.sleep = self.cluster.wait
        self.cluster.on_commit = self._committed
        self.groups = Groups(self.cluster, self.spawn)
        self.heartbeats: list[Any] = []
        self.keys: list[PublishedKey] = []
        """Of each process that ever started, as the keys topic has them."""
        self.slowness = dict.fromkeys(self.options.by_pool, 1.0)
        self.processes: dict[str, Process] = {}
        self.workload: Workload = make_workload(self.rng, REQUESTS)
        self.bad: set[tuple[str, int, int]] = set()
        self.ended: set[str] = set()
        self.healed = asyncio.Event()
        self.buried: set[tuple[str, int, int]] = set()
        self.questions: set[str] = set()
        self.prices: dict[str, int] = {}
        """What was quoted to requests that took an offer, in nano-dollars."""
        self.questions_left = 0
        """Published, and without evidence yet."""
        self.cancellations_left = 0
        """Published, and without evidence yet."""
        self.again_left = 0
        """Requests that were published again at the end, and are not evidenced as duplicates."""
        self.faults = Faults(self)
        self.lost_tail = LostTail(self, FAULTS_S)
        self.is_settled = False

    def now(self) -> float:
        return START + self.loop.at_s

    def new_key(self) -> int:
        """Return a number of which no other key of this run is made."""
        return 1 + len(self.keys)

    def tell(self, event: str) -> None:
        """Add to the trace."""
        self.trace.append(f"{self.loop.at_s:9.4f} {event}")

    def problem(self, what: str) -> None:
        """Note what must not be."""
        if what not in self.problems:
            self.problems.append(what)

    def died_of(self, error: BaseException) -> None:
        """Note what a process dies of, where it is no error of Kafka."""
        if self.loop.is_closed():
            # The run is over, and its coroutines are closed.
            return
        while isinstance(error, LogError) and error.__cause__ is not None:
            error = error.__cause__
        if not isinstance(error, LogError | CutOffError | ProcessKilledError):
            self.defect(f"a process died of {error!r}")

    def defect(self, what: str) -> None:
        """Note an error of the code itself."""
        if what not in self.defects:
            self.defects.append(what)
        self.problem(what)

    def spawn(self, coro: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run something outside all processes."""
        return self.loop.create_task(coro, context=Context())

    def died(self, process: Process) -> None:
        """Start another in its place, after a while."""
        if not self.is_settled:
            after_s = self.faults.restart_s(process)
            self.loop.call_later(after_s, self._start, process.name, context=Context())

    async def checkpoint(self) -> None:
        """Be called at each call of Kafka, which takes a while and may fail."""
        process = PROCESS.get()
        if process is None:
            return
        if process.error is not None:
            error, process.error = process.error, None
            raise error
        if process.late_s:
            late_s, process.late_s = process.late_s, 0.0
            # It ends with the faults: then everybody is to know of what came a second ago.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(late_s):
                    await self.healed.wait()
        draw = self.rng.random()
        if draw > 0.9:
            await asyncio.sleep((draw - 0.9) / 5)
        elif draw > 0.5:
            await asyncio.sleep(0)

    def answer(self) -> None:
        """Be called when a commit was made, of which the process may never hear."""
        process = PROCESS.get()
        if process is not None and process.is_unanswered:
            process.is_unanswered = False
            raise CutOffError("the broker is gone")

    def _lets(self, step: Step) -> bool:
        """Let a step be taken, unless its process is dead, or stands still, from now on too."""
        process: Process | None = step.context.get(PROCESS)
        if process is None:
            return True
        if not process.is_dead and process.parked is None:
            self.faults.step(process)
        if process.parked is not None:
            process.parked.append(step)
            return False
        return not process.is_dead

    async def main(self) -> None:
        """Publish, suffer, heal, settle, and start everything once more."""
        third = self.rng.choice(("boards-us", "premium-us"))
        self.homes: dict[str, Callable[[], Process]] = {
            "router-1": lambda: RouterProcess(self, "router-1"),
            "router-2": lambda: RouterProcess(self, "router-2"),
            "eu-1": lambda: WorkerProcess(self, "eu-1", "premium-eu"),
            "eu-2": lambda: WorkerProcess(self, "eu-2", "premium-eu"),
            "us-1": lambda: WorkerProcess(self, "us-1", third),
        }
        self._skew_clocks()
        for name in self.homes:
            self._start(name)
        self.spawn(self._time_out())
        self.spawn(self.faults.outside())
        self.spawn(self.lost_tail.strike())
        self.spawn(self._publish_bound())
        self.spawn(self._publish_thrifty())
        if self.rules.with_quotes:
            self.spawn(publish_quotes(self))
        self._plan_policies()
        await self._publish()
        await asyncio.sleep(max(0.0, FAULTS_S - self.loop.at_s))
        self.faults.heal()
        await self._publish_late()
        await self._settle()
        self._look_for_hanging()
        self.is_settled = True
        for process in self.processes.values():
            process.kill("the end")
        for name in self.homes:
            self._start(name)
        self._publish_again()
        await asyncio.sleep(FINAL_S)
        await self._read_again()
        if not self.problems:
            # The second copy of a request may have been on its way back to the hold.
            await self._settle()

    def _skew_clocks(self) -> None:
        """Let hosts be up to a minute apart, on half of the seeds; by a generator of its own."""
        rng = random.Random(self.seed * 32_452_843 + 4)
        if rng.random() < 0.5:
            self.skews_s = {name: rng.uniform(-SKEW_S_MAX, SKEW_S_MAX) for name in self.homes}

    def _plan_policies(self) -> None:
        """Have the policy changed a few times, on half of the seeds; by a generator of its own."""
        rng = random.Random(self.seed * 104_729 + 2)
        times = sorted(rng.uniform(0.0, FAULTS_S) for _ in range(rng.choice((0, 0, 1, 3))))
        for number, at_s in enumerate(times, start=1):
            self.loop.call_later(at_s, self._apply_policy, number, context=Context())

    def _apply_policy(self, number: int) -> None:
        """Let the policies take turns, the other one first."""
        policy = list(self.policies.values())[number % len(self.policies)]
        declared = Declared("policy", policy.version, text_of(policy), self.now(), "the world")
        change = PolicyChange(number, "apply", self.now(), "the world", policy.version)
        self.tell(f"policy {policy.version} is applied")
        for entry in (PolicyEntry(declared=declared), PolicyEntry(change=change)):
            key, value = entry_key(entry), encode(entry)
            self.cluster.publish(Outgoing(self.catalogue.policies, key, value, [], 0))

    async def _publish(self) -> None:
        await asyncio.sleep(self.rng.uniform(0.0, 1.0))
        for kind, name in self.workload.order:
            if kind == "bad":
                self._publish_bad()
            elif kind == "cancel":
                self._cancel(name)
            else:
                is_at_home = self.rng.random() < 0.75
                self._request(name, self.workload.homes[name] ^ (not is_at_home))
            await asyncio.sleep(self.rng.expovariate(2.5))

    async def _publish_late(self) -> None:
        """Cancel two requests that come only when everybody must know."""
        for name, task in (("late-1", "chat"), ("late-2", "summarization")):
            self.workload.add(self.rng, name, {"task": task}, POOLS).is_known_cancelled = True
            self._cancel(name)
        await asyncio.sleep(KNOWN_S)
        for name in ("late-1", "late-2"):
            self._request(name, self.workload.homes[name])

        await self._publish_brief()

    async def _publish_bound(self) -> None:
        """Publish requests of a bound tenant, some of which ask for more than it may have."""
        rng = random.Random(self.seed * 49_979_687 + 5)
        for number in range(BOUND_REQUESTS):
            await asyncio.sleep(rng.uniform(0.0, 2.0 * FAULTS_S / BOUND_REQUESTS))
            fields: dict[str, Any] = {"tenant": BOUND, "task": rng.choice(list(DEADLINES_S))}
            regions = rng.choice((None, ["us-east"], ["us-east", "eu-west"]))
            if regions is not None:
                fields["constraints"] = {"regions": regions}
            self.workload.add(rng, f"bound-{number}", fields, POOLS)
            self._request(f"bound-{number}", self.workload.homes[f"bound-{number}"])

    def _publish_again(self) -> None:
        """Publish requests anew, on half of the seeds; by a generator of its own."""
        rng = random.Random(self.seed * 86_028_121 + 6)
        if rng.random() < 0.5:
            names = sorted({name for kind, name in self.workload.order if kind == "request"})
            self.again_left = AGAIN_REQUESTS
            lost = self.lost_tail.names
            for name in rng.sample(names, AGAIN_REQUESTS):
                if name in lost:
                    # Whoever has read the first of it need not know.
                    self.again_left -= 1
                else:
                    self._request(name, self.workload.homes[name])

    async def _read_again(self) -> None:
        """Wait for it: a router may have to wait for the session of one that died."""
        for _ in range(int(2 * AGAIN_S_MAX)):
            if self.again_left <= 0:
                return
            await asyncio.sleep(0.5)

    async def _publish_thrifty(self) -> None:
        """Publish requests of a tenant with a budget, more than it has room for at times."""
        rng = random.Random(self.seed * 67_867_967 + 6)
        for number in range(THRIFTY_REQUESTS):
            await asyncio.sleep(rng.uniform(0.0, 2.0 * FAULTS_S / THRIFTY_REQUESTS))
            name = add_thrifty(self, rng, number)
            self._request(name, self.workload.homes[name])

    async def _publish_brief(self) -> None:
        """Let requests run when their time is up, on some seeds; by a generator of its own."""
        rng = random.Random(self.seed * 15_485_863 + 3)
        for name in ("brief-1", "brief-2"):
            # Of whole milliseconds, as the record's own time is.
            at, left_s = int(self.now() * 1000) / 1000, rng.uniform(0.2, 1.2)
            self.workload.add(rng, name, {"deadline": at + left_s}, POOLS).deadline_s = left_s
            self._request(name, self.workload.homes[name])
            await asyncio.sleep(rng.uniform(0.0, 0.5))

    def _request(self, name: str, number: int) -> None:
        value = self.workload.expected[name].value
        self.cluster.publish(Outgoing(self.catalogue.requests, name.encode(), value, [], number))

    def _cancel(self, name: str) -> None:
        self.tell(f"a client cancels {name!r}")
        record = self.cluster.publish(Outgoing(self.catalogue.cancellations, name.encode(), None))
        if name:
            self.cancellations_left += 1
        else:
            self.bad.add((*record.partition, record.offset))

    def _publish_bad(self) -> None:
        """Put what nobody can read where somebody reads."""
        c = self.catalogue
        lane = c.pool_lane("premium-eu", self.rng.choice(("direct", "batch")))
        topic = self.rng.choice((c.requests, c.requests, c.reroutes, c.held, lane))
        key = f"bad-{len(self.bad)}".encode()
        number = self.rng.randrange(PARTITIONS)
        record = self.cluster.publish(Outgoing(topic, key, b'{"id": 1, "', [], number))
        self.bad.add((topic, number, record.offset))
        self.tell(f"a bad record on {record.partition}")

    async def _settle(self) -> None:
        end_s = self.loop.at_s + SETTLED_S_MAX
        while self.loop.at_s < end_s:
            has_ended = self._have_ended()
            is_told = self.buried >= self.bad and self.cancellations_left <= 0
            is_told = is_told and self.questions_left <= 0
            if has_ended and is_told and not held(self):
                return
            await asyncio.sleep(0.5)
        for name in sorted(self._certain() - self.ended):
            self.problem(f"{name} has not ended")

    def _have_ended(self) -> bool:
        """Tell whether each request that must has ended; reading the log only where it decides."""
        left = self.workload.expected.keys() - self.ended
        return not left or (left <= self.lost_tail.names and not left & self._certain())

    def _certain(self) -> set[str]:
        """Return the requests that must end: all but what Kafka lost unread."""
        return self.workload.expected.keys() - Aftermath(self).unread

    def _look_for_hanging(self) -> None:
        """Find readers that wait for the end of a transaction that has ended."""
        for partition, log in self.cluster.logs.items():
            for transaction in log.open:
                if transaction.state != "open":
                    self.problem(
                        f"{partition}: readers wait for the end of a transaction of"
                        f" {transaction.transactional_id}, which was {transaction.state}"
                    )

    async def _time_out(self) -> None:
        while True:
            await asyncio.sleep(1.0)
            for name, begun_at_s in list(self.cluster.begun_at_s.items()):
                if self.loop.at_s - begun_at_s > TRANSACTION_S:
                    self.tell(f"the transaction of {name} times out")
                    self.cluster.time_out(name)

    def _committed(self, record: Record) -> None:
        topic = record.partition.topic
        if topic == self.catalogue.results:
            self.ended.add((record.key or b"").decode())
        elif topic == self.catalogue.dead_letters:
            self.buried.add(source_of(record))
        elif b'"cancel_requested"' in (record.value or b""):
            self.cancellations_left -= 1
        elif b'"quoted"' in (record.value or b""):
            self.questions_left -= 1
        elif b'"duplicate"' in (record.value or b""):
            self.again_left -= 1

    def _start(self, name: str) -> None:
        if name in self.processes and not self.processes[name].is_dead:
            return
        self.tell(f"{name} starts")
        process = self.processes[name] = self.homes[name]()
        process.start()

    def topics_of(self, stage: str) -> set[str]:
        """Return what a stage reads."""
        c = self.catalogue
        return {
            "router": {c.requests, c.reroutes},
            "batcher": {c.held},
            "canceller": {c.cancellations},
            "worker": {t.name for pool in self.options.by_pool for t in c.pool_topics(pool)},
        }[stage]


def run(seed: int, rules: Rules | None = None) -> World:
    """Run one seed and return the world as it ends, with all problems found."""
    world = World(seed, rules or Rules())
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        world.loop.finish(world.main())
    finally:
        logging.disable(before)
    for error in world.loop.errors:
        world.defect(f"a callback failed: {error!r}")
    for evidence, _ in Aftermath(world).evidence:
        if evidence.get("reason") == "unhandled":
            world.defect(evidence["message"])
    for problem in check(world):
        world.problem(problem)
    return world


def problems_of(seed: int) -> tuple[int, list[str]]:
    """Run a seed; return it with what was wrong."""
    return seed, run(seed).problems
