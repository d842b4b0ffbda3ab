"""What is going on, from the topics as they grow: for the live view and for knowing the end."""

import time
from collections import Counter
from dataclasses import dataclass, field

from streams import Record
from topics import Catalogue, Evidence, PoolStatus, Result, decode


@dataclass(slots=True)
class WindowWatch:
    """One class that waits for batches."""

    held: int = 0
    batches: int = 0
    released: int = 0


@dataclass(slots=True)
class PoolWatch:
    """One pool: the newest report of its worker, and what it has finished."""

    status: PoolStatus | None = None
    direct: int = 0
    batch: int = 0
    cost_usd: float = 0.0


@dataclass(slots=True)
class Watch:
    """Running totals over the requests of the trace. ``moved_at`` is monotonic, in seconds."""

    catalogue: Catalogue
    premium_usd: dict[str, float]
    total: int
    pools: dict[str, PoolWatch]
    published: int = 0
    finished: set[str] = field(default_factory=set)
    warm: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    windows: dict[str, WindowWatch] = field(default_factory=dict)
    cost_usd: float = 0.0
    cost_all_premium_usd: float = 0.0
    moved_at: float = field(default_factory=time.monotonic)
    last_result_at: float = 0.0

    @property
    def held(self) -> int:
        """Requests that wait for a batch."""
        return sum(window.held for window in self.windows.values())

    def pools_up(self) -> bool:
        """Tell whether every pool has a worker that reports."""
        return all(p.status is not None and p.status.state == "up" for p in self.pools.values())

    def idle(self) -> bool:
        """Tell whether each worker has reported since the last result, and runs nothing."""
        return all(
            p.status is not None
            and p.status.at > self.last_result_at
            and p.status.running + p.status.queued == 0
            for p in self.pools.values()
        )

    def acknowledged(self, _id: str) -> None:
        """Count a request that Kafka has."""
        self.published += 1
        self.moved_at = time.monotonic()

    def take(self, record: Record) -> None:
        """Take a record of the results, evidence, dead letters or pool status in."""
        topic, value = record.partition.topic, record.value or b""
        if topic == self.catalogue.pool_status:
            status = decode(PoolStatus, value)
            if status.pool in self.pools:
                self.pools[status.pool].status = status
            return
        self.moved_at = time.monotonic()
        if topic == self.catalogue.results:
            self._result(decode(Result, value))
        elif topic == self.catalogue.evidence:
            self._step(decode(Evidence, value))
        elif record.key is not None:
            self._end(record.key.decode("utf-8", "replace"), "dead_lettered")

    def _result(self, result: Result) -> None:
        if result.id not in self.premium_usd:
            self.warm.add(result.id)
            return
        if not self._end(result.id, result.status):
            return
        usd = result.cost.usd if result.cost else 0.0
        self.cost_usd += usd
        placement = result.placement
        if placement is not None and placement.pool in self.pools:
            pool = self.pools[placement.pool]
            pool.cost_usd += usd
            if placement.path == "batch":
                pool.batch += 1
            else:
                pool.direct += 1

    def _end(self, name: str, status: str) -> bool:
        """Count the end of a request, once; tell whether this was it."""
        if name in self.finished or name not in self.premium_usd:
            return False
        self.finished.add(name)
        self.statuses[status] += 1
        self.cost_all_premium_usd += self.premium_usd[name]
        self.last_result_at = time.time()
        return True

    def _step(self, step: Evidence) -> None:
        if step.task is None:
            return
        if step.step == "held":
            self.windows.setdefault(step.task, WindowWatch()).held += 1
        elif step.hold is not None:
            window = self.windows.setdefault(step.task, WindowWatch())
            window.held -= 1
            if step.step == "released":
                window.released += 1
                window.batches += step.batch is None or step.batch.index == 0
