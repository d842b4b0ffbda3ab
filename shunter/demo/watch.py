"""The demo's state, followed on the topics: for the live view and to detect the end."""

import time
from collections import Counter
from dataclasses import dataclass, field

from streams.engine.log import Record
from streams.live import LiveView
from topics import Catalogue, PoolStatus, Result, decode


@dataclass(slots=True)
class Watch:
    """Running totals over the requests of the trace, and the live view of the system.

    ``moved_at`` is monotonic, in seconds.
    """

    catalogue: Catalogue
    premium_usd: dict[str, float]
    total: int
    live: LiveView
    published: int = 0
    finished: set[str] = field(default_factory=set)
    warm: set[str] = field(default_factory=set)
    statuses: Counter[str] = field(default_factory=Counter)
    cost_usd: float = 0.0
    cost_all_premium_usd: float = 0.0
    moved_at: float = field(default_factory=time.monotonic)
    last_result_at: float = 0.0

    @property
    def topics(self) -> list[str]:
        """The topics to read, from their beginning."""
        names = self.catalogue
        return [names.results, names.dead_letters, *self.live.topics]

    @property
    def held(self) -> int:
        """Requests that wait for a batch."""
        return len(self.live.holds)

    def silent_pools(self) -> list[str]:
        """Return the pools without a report from any worker."""
        return [pool for pool in self.live.options.by_pool if self._newest(pool) is None]

    def pools_up(self) -> bool:
        """Return whether every pool has a worker that reports."""
        newest = map(self._newest, self.live.options.by_pool)
        return all(status is not None and status.state == "up" for status in newest)

    def idle(self) -> bool:
        """Return whether each worker has reported since the last result, and is idle."""
        newest = map(self._newest, self.live.options.by_pool)
        return all(
            status is not None
            and status.at > self.last_result_at
            and status.running + status.queued == 0
            for status in newest
        )

    def acknowledged(self, _id: str) -> None:
        """Count an acknowledged request."""
        self.published += 1
        self.moved_at = time.monotonic()

    def take(self, record: Record) -> None:
        """Process a record of one of the topics."""
        topic = record.partition.topic
        if topic != self.catalogue.pool_status:
            self.moved_at = time.monotonic()
        if topic == self.catalogue.results:
            self._result(decode(Result, record.value or b""))
        elif topic == self.catalogue.dead_letters:
            if record.key is not None:
                self._end(record.key.decode("utf-8", "replace"), "dead_lettered")
        elif not self._is_warm_up(record):
            self.live.take(record, time.time())

    def _newest(self, pool: str) -> PoolStatus | None:
        return self.live.workers.newest(pool)

    def _is_warm_up(self, record: Record) -> bool:
        key = (record.key or b"").decode("utf-8", "replace")
        return record.partition.topic == self.catalogue.evidence and key not in self.premium_usd

    def _result(self, result: Result) -> None:
        if result.id not in self.premium_usd:
            self.warm.add(result.id)
        elif self._end(result.id, result.status):
            self.cost_usd += result.cost.usd if result.cost else 0.0

    def _end(self, name: str, status: str) -> bool:
        """Count the end of a request, once; return whether this was it."""
        if name in self.finished or name not in self.premium_usd:
            return False
        self.finished.add(name)
        self.statuses[status] += 1
        self.cost_all_premium_usd += self.premium_usd[name]
        self.last_result_at = time.time()
        return True
