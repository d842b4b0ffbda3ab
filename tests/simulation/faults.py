"""Faults of a simulation and their times: drawn from the seed before anything begins."""

import asyncio
import random
from typing import TYPE_CHECKING

from memory_cluster import CutOffError, Transaction

from simulation.lost_tails import KIND, LANE_KIND
from streams.engine.log import LogError, Outgoing, Partition

if TYPE_CHECKING:
    from simulation.process import Process
    from simulation.world import World

# A fault strikes at the nth step of all processes, or some steps after the nth transaction began.
STEPS_MAX = 2800
BEGINS_MAX = 80
STEPS_WITHIN_MAX = 25
STRIKES_MAX = 7
CUTS_MAX = 3
# A call of Kafka that takes so long, while its group is rebalanced: what one step waits for its
# commits is a second (streams/engine/transactor.py), a rebalance waits for four.
LATE_S = (1.5, 6.0)
LATE_MAX = 2
KINDS = {
    "kill": 6,
    "pause": 4,
    "rebalance": 3,
    "broker": 3,
    "abort": 2,
    "error": 2,
    "clock": 2,
    "compact": 1,
    "leave": 1,
}


class Faults:
    """The faults of one run."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = rng = random.Random(world.seed * 7919 + 1)
        self._steps = self._begins = 0
        self._is_over = False
        pools = list(world.options.by_pool)
        self._dead_pool = rng.choice((None, None, *pools))
        self._silent_pool = rng.choice((None, None, None, *pools))
        self._silent_from_s = rng.uniform(0.0, 8.0)
        self._at_step: dict[int, str] = {}
        self._within: dict[int, str] = {}
        asked = [kind for kind in world.rules.strikes or () if kind not in {KIND, LANE_KIND}]
        kinds = dict.fromkeys(asked, 1) or KINDS
        for kind in rng.choices(list(kinds), kinds.values(), k=rng.randint(0, STRIKES_MAX)):
            if rng.random() < 0.5:
                self._at_step[rng.randint(1, STEPS_MAX)] = kind
            else:
                self._within[rng.randint(1, BEGINS_MAX)] = kind
        if world.rules.strikes is None:
            # Of a generator of its own, so that the others are those of earlier runs.
            self._cuts = random.Random(world.seed * 7919 + 2)
            for _ in range(self._cuts.choice((0, 0, self._cuts.randint(1, CUTS_MAX)))):
                self._within.setdefault(self._cuts.randint(1, BEGINS_MAX), "cut")
            self._late = random.Random(world.seed * 7919 + 3)
            for _ in range(self._late.choice((0, 0, self._late.randint(1, LATE_MAX)))):
                self._within.setdefault(self._late.randint(1, BEGINS_MAX), "late")
        else:
            self._cuts = self._late = rng
        self._offsets_lost = rng.choice((0.0, 0.0, 0.3, 1.0))
        self._is_broker_dying = self._is_broker_dead = False
        self._doomed: dict[str, str] = {}
        self._carriers = {world.catalogue.held, world.catalogue.reroutes, world.catalogue.results}
        for pool in pools:
            self._carriers |= {
                world.catalogue.pool_lane(pool, lane) for lane in ("direct", "batch")
            }
        cluster = world.cluster
        cluster.lose_offset = self._loses_offset
        cluster.lose_marker = self._loses_marker
        cluster.on_begin = cluster.on_fence = self._watch
        cluster.on_end = self._end
        if rng.random() < 0.5:
            cluster.refuse = self._refuses
        else:
            cluster.oversized = self._refuses

    def step(self, process: "Process") -> None:
        """Be told that a process is about to take a step; what is due strikes it first."""
        self._steps += 1
        if process.fuse is not None:
            left, kind, transactional_id = process.fuse
            process.fuse = (left - 1, kind, transactional_id) if left else None
            if not left:
                self._strike(kind, process, transactional_id)
        kind_now = self._at_step.get(self._steps)
        if kind_now is not None:
            self._strike(kind_now, process)

    def _watch(self, transactional_id: str) -> None:
        """Be told of each transaction and each fencing."""
        self._begins += 1
        kind = self._within.get(self._begins) or self._doomed.pop(transactional_id, None)
        if kind is not None:
            self._light(kind, transactional_id)

    def _light(self, kind: str, transactional_id: str = "") -> None:
        from simulation.process import PROCESS

        process = PROCESS.get()
        if process is not None and not self._is_over:
            process.fuse = (self._rng.randint(0, STEPS_WITHIN_MAX), kind, transactional_id)

    def _strike(self, kind: str, process: "Process", transactional_id: str | None = None) -> None:
        if self._is_over:
            return
        self._world.tell(f"fault: {kind} at step {self._steps}, of {process.name}")
        rng = self._rng
        if kind in ("pause", "clock"):
            self._world.unsteady.add(process.name)
        if kind == "kill":
            process.kill("killed")
        elif kind == "pause":
            process.pause(rng.choice((0.3, 3.0, 9.0, 20.0)) * rng.uniform(0.5, 1.0))
        elif kind == "error":
            process.error = LogError("the broker has closed the connection")
        elif kind == "cut":
            # Before the broker does what it is asked for, or after it has committed.
            if self._cuts.random() < 0.5:
                process.error = CutOffError("the broker is gone")
            else:
                process.is_unanswered = True
        elif kind == "clock":
            offset_s = rng.choice((-100.0, -1.0, 1.0, 20.0, 100.0))
            self._world.clock_offsets_s[process.name] = offset_s
        elif kind == "leave":
            process.leave("told to")
        else:
            self._strike_kafka(kind, process, transactional_id)

    def _strike_kafka(self, kind: str, process: "Process", transactional_id: str | None) -> None:
        world = self._world
        if kind == "rebalance":
            self._rebalance(self._rng)
        elif kind == "late":
            process.late_s = self._late.uniform(*LATE_S)
            self._rebalance(self._late)
        elif kind == "broker":
            self._is_broker_dying = True
        elif kind == "abort":
            is_open = world.cluster.begun_at_s
            name = transactional_id if transactional_id in is_open else next(iter(is_open), None)
            if name is not None:
                world.cluster.time_out(name)
        elif kind == "compact":
            world.cluster.compact(world.catalogue.held)
            world.cluster.compact(world.catalogue.progress)
        else:
            raise ValueError(f"no such fault: {kind}")

    def _rebalance(self, rng: random.Random) -> None:
        group = rng.choice(self._world.groups.names() or [""])
        self._world.spawn(self._world.groups.of(group).rebalance())

    async def outside(self) -> None:
        """Let a pool be slow for a while, and one die for a while."""
        world, rng = self._world, self._rng
        await asyncio.sleep(rng.uniform(0.0, 8.0))
        for pool in world.options.by_pool:
            world.slowness[pool] = rng.choice((1.0, 1.0, 8.0))
        for process in list(world.processes.values()):
            if self._is_of_dead_pool(process) and not self._is_over:
                process.kill("its pool dies")

    def is_silent(self, pool: str) -> bool:
        """Tell whether a pool takes calls now and never answers."""
        is_now = self._world.loop.at_s >= self._silent_from_s
        return pool == self._silent_pool and is_now and not self._is_over

    def heal(self) -> None:
        """End all faults. What was lost or refused before stays so."""
        world = self._world
        self._is_over = True
        self._is_broker_dying = False
        world.slowness = dict.fromkeys(world.slowness, 1.0)
        world.clock_offsets_s.clear()
        world.healed.set()
        for process in world.processes.values():
            process.wake()
            process.hear_time()
            process.late_s = 0.0
        world.tell("faults are over")

    def restart_s(self, process: "Process") -> float:
        """Return how long it takes until a process is there again."""
        if not self._is_over and self._is_of_dead_pool(process):
            return self._rng.uniform(10.0, 40.0)
        return self._rng.choice((0.2, 2.0, 8.0)) * self._rng.uniform(0.5, 1.0)

    def _is_of_dead_pool(self, process: "Process") -> bool:
        return self._dead_pool is not None and getattr(process, "pool", None) == self._dead_pool

    def _loses_offset(self, partition: Partition, _offset: int) -> bool:
        stage = self._world.rules.lose_offsets_of
        if stage is not None:
            return partition.topic in self._world.topics_of(stage)
        return not self._is_over and self._rng.random() < self._offsets_lost

    def _loses_marker(self, _partition: Partition) -> bool:
        """Lose some of the first transaction that ends once the broker is to die."""
        return self._is_broker_dying and self._rng.random() < 0.5

    def _end(self, transaction: Transaction) -> None:
        """Let the broker die right after that; some open transactions time out until it is back.

        Whoever goes on over missing markers does harm where its next transaction is aborted.
        """
        if not self._is_broker_dying or self._is_broker_dead:
            return
        self._is_broker_dead = True
        world, rng = self._world, self._rng
        fate = rng.choice((None, "kill", "abort"))
        if fate is not None:
            self._doomed[transaction.transactional_id] = fate
        for name in [n for n in world.cluster.begun_at_s if rng.random() < 0.3]:
            world.cluster.time_out(name)
        self._is_broker_dying = self._is_broker_dead = False
        world.cluster.restart()
        world.tell("the broker has died and is back")

    def _refuses(self, record: Outgoing) -> bool:
        """Refuse a marked request on its way, and its answer; not the word that it has failed."""
        expected = self._world.workload.expected.get((record.key or b"").decode())
        if expected is None or not expected.is_refused or record.topic not in self._carriers:
            return False
        if record.topic == self._world.catalogue.results:
            is_refused = b'"completed"' in (record.value or b"")
        else:
            is_refused = record.value is not None
        if is_refused and self._rng.random() < 0.2:
            self._light(self._rng.choice(("kill", "pause", "pause")))
        return is_refused
