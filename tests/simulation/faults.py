"""What goes wrong in a simulation, and when: drawn from the seed before anything begins."""

import asyncio
import random
from typing import TYPE_CHECKING

from streams.log import LogError, Outgoing, Partition

if TYPE_CHECKING:
    from simulation.process import Process
    from simulation.world import World

# Faults strike at the nth call of Kafka, of all calls of all processes.
CALLS_MAX = 900
STRIKES_MAX = 7
KINDS = {
    "kill": 6,
    "pause": 4,
    "rebalance": 3,
    "abort": 2,
    "error": 2,
    "clock": 1,
    "compact": 1,
    "leave": 1,
}


class Faults:
    """The faults of one run."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._rng = rng = random.Random(world.seed * 7919 + 1)
        self._calls = 0
        self._is_over = False
        self._dead_pool = rng.choice((None, None, *world.options.by_pool))
        kinds = rng.choices(list(KINDS), KINDS.values(), k=rng.randint(0, STRIKES_MAX))
        self._strikes = {rng.randint(1, CALLS_MAX): kind for kind in kinds}
        self._offsets_lost = rng.choice((0.0, 0.0, 0.3, 1.0))
        cluster, catalogue = world.cluster, world.catalogue
        self._carriers = {catalogue.held, catalogue.reroutes, catalogue.results} | {
            catalogue.pool_lane(pool, lane)
            for pool in world.options.by_pool
            for lane in ("direct", "batch")
        }
        cluster.lose_offset = self._loses_offset
        if rng.random() < 0.5:
            cluster.refuse = self._refuses
        else:
            cluster.oversized = self._refuses

    async def strike(self, process: "Process") -> None:
        """Let happen what is due at this call."""
        self._calls += 1
        kind = None if self._is_over else self._strikes.get(self._calls)
        world, rng = self._world, self._rng
        if kind is None:
            return
        world.tell(f"fault: {kind} at call {self._calls}, of {process.name}")
        if kind == "kill":
            process.kill("killed")
        elif kind == "pause":
            await process.pause(rng.choice((0.3, 3.0, 9.0, 20.0)) * rng.uniform(0.5, 1.0))
        elif kind == "rebalance":
            group = rng.choice(world.groups.names())
            world.spawn(world.groups.of(group).rebalance())
        elif kind == "abort":
            for name in list(world.cluster.begun_at_s)[:1]:
                world.cluster.time_out(name)
        elif kind == "error":
            raise LogError("the broker has closed the connection")
        elif kind == "clock":
            world.clock_offset_s += rng.choice((-100.0, -1.0, 1.0, 20.0))
        elif kind == "compact":
            world.cluster.compact(world.catalogue.held)
            world.cluster.compact(world.catalogue.progress)
        else:
            process.is_leaving = True

    async def outside(self) -> None:
        """Let a pool be slow for a while, and one die for a while."""
        world, rng = self._world, self._rng
        await asyncio.sleep(rng.uniform(0.0, 8.0))
        for pool in world.options.by_pool:
            world.slowness[pool] = rng.choice((1.0, 1.0, 8.0))
        for process in list(world.processes.values()):
            if self._is_of_dead_pool(process) and not self._is_over:
                process.kill("its pool dies")

    def heal(self) -> None:
        """End all faults. What was lost or refused before stays so."""
        self._is_over = True
        self._world.slowness = dict.fromkeys(self._world.slowness, 1.0)
        self._world.tell("faults are over")

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

    def _refuses(self, record: Outgoing) -> bool:
        """Refuse a marked request on its way, and its answer; not the word that it has failed."""
        expected = self._world.workload.expected.get((record.key or b"").decode())
        if expected is None or not expected.is_refused or record.topic not in self._carriers:
            return False
        if record.topic == self._world.catalogue.results:
            return b'"completed"' in (record.value or b"")
        return record.value is not None
