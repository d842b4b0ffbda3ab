"""A tail that Kafka loses in a simulation, and the operator who resolves what comes of it."""

import asyncio
import random
from typing import TYPE_CHECKING

from memory_log import MemoryLog
from stream_cases import make_key, make_signer

from simulation.requests import PARTITIONS
from streams.engine.broken_log_recovery import RecoveryError, carry_out, plan
from streams.engine.log import LogError, Partition, Record

if TYPE_CHECKING:
    from simulation.world import World

KIND = "tail"
# The same of a pool's lane; struck where it is asked for.
LANE_KIND = "lane tail"
# On one seed in so many; not more records than so many.
ONE_IN, RECORDS_MAX = 4, 6
OPERATOR = "recover/operator"
# An operator reads what a process says, and does it.
LOOK_S = 3.0


class LostTail:
    """Loses the newest records of a partition once, as an unclean election does.

    It is one of the ingest topic, or of a pool's lane if that is asked for.
    """

    def __init__(self, world: "World", until_s: float) -> None:
        self._world = world
        self._rng = rng = random.Random(world.seed * 122_949_823 + 7)
        strikes = world.rules.strikes
        self.is_of_lane = strikes is not None and LANE_KIND in strikes
        is_drawn = rng.randrange(ONE_IN) == 0 if strikes is None else KIND in strikes
        is_drawn = is_drawn or self.is_of_lane
        self.at_s = rng.uniform(1.0, until_s) if is_drawn else None
        self.records: list[Record] = []
        """What was lost."""
        self.recoveries = 0

    @property
    def names(self) -> set[str]:
        """The requests whose records they were."""
        return {(record.key or b"").decode() for record in self.records}

    async def strike(self) -> None:
        """Lose the tail when it is time, and be the operator from then on."""
        if self.at_s is None:
            return
        await asyncio.sleep(self.at_s)
        while True:
            if await self._lose_one():
                return
            # No request has come to any lane yet.
            await asyncio.sleep(LOOK_S / 10)

    async def _lose_one(self) -> bool:
        world, rng = self._world, self._rng
        topics = [world.catalogue.requests]
        if self.is_of_lane:
            topics = [t.name for p in world.options.by_pool for t in world.catalogue.pool_topics(p)]
        partitions = [Partition(topic, n) for topic in topics for n in range(PARTITIONS)]
        for partition in rng.sample(partitions, len(partitions)):
            if tail := self._tail(partition, rng.randint(1, RECORDS_MAX)):
                self.records = tail
                world.cluster.lose_tail(partition, tail[0].offset)
                world.tell(f"fault: {partition} loses its end at {tail[0].offset}")
                await self._recover(partition)
                return True
        return not self.is_of_lane

    def _tail(self, partition: Partition, most: int) -> list[Record]:
        """Return the last records, as far back as they are requests."""
        tail: list[Record] = []
        for entry in reversed(self._world.cluster.logs[partition].entries):
            record = entry.record
            if record is None:
                # The end of a transaction.
                continue
            if len(tail) == most or not self._is_request(record):
                break
            tail.insert(0, record)
        return tail

    def _is_request(self, record: Record) -> bool:
        world, name = self._world, (record.key or b"").decode()
        is_bad = (*record.partition, record.offset) in world.bad
        return name in world.workload.expected and not is_bad

    async def _recover(self, partition: Partition) -> None:
        """Do what the error of a process says, as soon as there is something to recover."""
        world = self._world
        log, group = MemoryLog(world.cluster, "operator"), world.catalogue.router_group
        for pool in world.options.by_pool if self.is_of_lane else ():
            if partition.topic in {t.name for t in world.catalogue.pool_topics(pool)}:
                group = world.catalogue.worker_group(pool)
        key = make_key(world.new_key())
        signer = make_signer(world.catalogue, world, key=key, writer=OPERATOR)
        world.keys.append(signer.publish())
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                found = await plan(log, world.catalogue, signer, group, partition, None)
                await carry_out(log, world.catalogue, signer, OPERATOR, found, world.now())
            except (LogError, RecoveryError) as error:
                world.tell(f"the operator gives up for now: {error}")
                continue
            except Exception as error:  # noqa: BLE001 - nobody else would hear of it
                world.defect(f"the operator met {error!r}")
                return
            self.recoveries += 1
            world.tell(f"the operator: {found.message}")
