"""The demo's state, followed on the topics: for the live view and to detect the end."""

import time
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from streams.engine.log import Record
from streams.live import LiveView
from topics import Catalogue, PoolStatus, Result, decode


@dataclass(slots=True)
class Watch:
    """Running totals over the requests of the trace, and the live view of the system.

    ``warm`` has the others, which came before: when each was done, in epoch seconds. ``moved_at``
    is monotonic, in seconds. ``page`` is the address of the router's page.
    """

    catalogue: Catalogue
    names: Collection[str]
    live: LiveView
    page: str = ""
    published: int = 0
    finished: set[str] = field(default_factory=set)
    warm: dict[str, float] = field(default_factory=dict)
    statuses: Counter[str] = field(default_factory=Counter)
    moved_at: float = field(default_factory=time.monotonic)
    last_result_at: float = 0.0

    @property
    def topics(self) -> list[str]:
        """The topics to read, from their beginning."""
        names = self.catalogue
        return [names.results, names.dead_letters, *self.live.topics]

    @property
    def total(self) -> int:
        """Requests of the trace that are sent."""
        return len(self.names)

    @property
    def cost_usd(self) -> float:
        """The cost of those that ended, in US dollars."""
        return self.live.total.usd

    @property
    def cost_all_premium_usd(self) -> float:
        """Their cost on premium GPUs, as `shunter top` and the page tell it."""
        return self.live.total.premium_usd

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
        return record.partition.topic == self.catalogue.evidence and key not in self.names

    def _result(self, result: Result) -> None:
        if result.id in self.names:
            self._end(result.id, result.status)
        else:
            self.warm[result.id] = result.timing.finished_at or time.time()

    def _end(self, name: str, status: str) -> None:
        """Count the end of a request, once."""
        if name in self.finished or name not in self.names:
            return
        self.finished.add(name)
        self.statuses[status] += 1
        self.last_result_at = time.time()
