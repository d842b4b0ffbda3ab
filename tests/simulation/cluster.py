"""The cluster in memory with what a simulation adds: history, waking, sessions, rebalances."""

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context
from typing import Any, Protocol

from memory_cluster import MemoryCluster, Outcome, Transaction
from memory_log import MemoryLog

from streams.engine.log import Membership, Outgoing, Partition, Record

# A silent member's partitions go to others after this; a rebalance waits no longer for one.
SESSION_S = 6.0
REBALANCE_S = 4.0
TRANSACTION_S = 10.0
# A poll without news takes this long at least, or a seed would be all looking: a worker looks
# for finished requests every 10 ms.
POLL_S_MIN = 0.2


class Home(Protocol):
    """The process that a log belongs to."""

    is_dead: bool

    @property
    def is_silent(self) -> bool:
        """Whether it sends no heartbeats: it is dead, or stands still."""
        ...

    def spawn(self, coro: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        """Run something in the process."""
        ...

    async def rejoin(self, after_s: float) -> None:
        """Join again where the group has gone on without this process."""
        ...


class SimCluster(MemoryCluster):
    """Remembers every record with its transaction, and wakes who waits for records."""

    def __init__(self, *args: Any, tell: Callable[[str], None], **options: Any) -> None:
        super().__init__(*args, **options)
        self.history: list[tuple[Record, Transaction | None]] = []
        self.begun_at_s: dict[str, float] = {}
        self.on_begin: Callable[[str], None] = lambda _id: None
        self.on_fence: Callable[[str], None] = lambda _id: None
        self.on_end: Callable[[Transaction], None] = lambda _transaction: None
        self.on_commit: Callable[[Record], None] = lambda _record: None
        self._tell = tell
        self._written: dict[tuple[Transaction, Partition], list[Record]] = {}
        self._waiting: dict[str, list[asyncio.Future[None]]] = {}

    def begin(self, transactional_id: str) -> Transaction:
        self.begun_at_s[transactional_id] = asyncio.get_running_loop().time()
        self.on_begin(transactional_id)
        return super().begin(transactional_id)

    def fence(self, transactional_id: str) -> int:
        self.on_fence(transactional_id)
        return super().fence(transactional_id)

    def end(self, transactional_id: str, state: Outcome) -> None:
        transaction = self._transactions[transactional_id]
        del self.begun_at_s[transactional_id]
        super().end(transactional_id, state)
        self._tell(f"{state} {transactional_id}")
        for partition in transaction.unmarked():
            self._tell(f"... of which no marker stands on {partition}")
        self.on_end(transaction)

    def mark(self, transactional_id: str, partition: Partition, outcome: Outcome) -> None:
        ended = [t for t in self.logs[partition].open if t.transactional_id == transactional_id]
        super().mark(transactional_id, partition, outcome)
        for transaction in ended:
            for record in self._written.pop((transaction, partition), ()):
                if outcome == "committed":
                    self.on_commit(record)
        self._wake(partition.topic)

    def append(
        self,
        partition: Partition,
        record: Outgoing,
        transaction: Transaction | None,
        timestamp_ms: int | None = None,
    ) -> Record:
        found = super().append(partition, record, transaction, timestamp_ms)
        self.history.append((found, transaction))
        if transaction is None:
            self._wake(partition.topic)
        else:
            self._written.setdefault((transaction, partition), []).append(found)
        return found

    async def wait(self, seconds: float) -> None:
        """Wait for news of the current task's topics, or for the time to pass."""
        topics: Sequence[str] = getattr(asyncio.current_task(), "topics", ())
        if not topics:
            await asyncio.sleep(seconds)
            return
        loop = asyncio.get_running_loop()
        news: asyncio.Future[None] = loop.create_future()
        timer = loop.call_later(seconds and max(seconds, POLL_S_MIN), _end, news)
        for topic in topics:
            self._waiting.setdefault(topic, []).append(news)
        try:
            await news
        finally:
            timer.cancel()

    def _wake(self, topic: str) -> None:
        for news in self._waiting.pop(topic, ()):
            _end(news)


def _end(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class SimLog(MemoryLog):
    """A client that its group's coordinator knows."""

    def __init__(self, groups: "Groups", name: str, home: Home) -> None:
        super().__init__(groups.cluster, name)
        self.home = home
        self.group = ""
        self._groups = groups

    async def join(self, group: str, topics: Sequence[str], membership: Membership) -> None:
        await super().join(group, topics, membership)
        self.group = group
        self._groups.of(group).joined(self)

    async def leave(self) -> None:
        if not self.group:
            await super().leave()
            return
        # One that was thrown out has nothing to leave; it ends all the same.
        self.cluster.members[self.group].setdefault(self.name, self)
        await super().leave()
        self._groups.of(self.group).left(self)


class Groups:
    """The group coordinator."""

    def __init__(self, cluster: SimCluster, spawn: Callable[..., asyncio.Task[Any]]) -> None:
        self.cluster = cluster
        self.spawn = spawn
        self._groups: dict[str, Group] = {}

    def of(self, name: str) -> "Group":
        return self._groups.setdefault(name, Group(self, name))

    def names(self) -> list[str]:
        return sorted(self._groups)


class Group:
    """One consumer group: eager rebalances, sessions, static membership."""

    def __init__(self, groups: Groups, name: str) -> None:
        self._groups = groups
        self._name = name
        self._lock = asyncio.Lock()
        self._shares: dict[str, list[Partition]] = {}
        self._owners: dict[str, SimLog] = {}

    @property
    def members(self) -> dict[str, SimLog]:
        return self._groups.cluster.members.setdefault(self._name, {})  # type: ignore[return-value]

    def joined(self, log: SimLog) -> None:
        """A member is there; one that was away for a moment has its partitions back at once."""
        self._groups.spawn(self._welcome(log))

    def left(self, log: SimLog) -> None:
        """A member has said goodbye."""
        self._shares.pop(log.name, None)
        self._groups.spawn(self.rebalance())

    def died(self, log: SimLog) -> None:
        """A member is silent: its session ends unless its successor is back before."""
        # The coordinator's timer, not one of the process that may have called this.
        loop = asyncio.get_running_loop()
        loop.call_later(SESSION_S, self._expire, log, context=Context())

    async def rebalance(self) -> None:
        """Take all partitions from all members and give them out anew."""
        async with self._lock:
            losing = {
                name: log.home.spawn(log.lose_all())
                for name, log in sorted(self.members.items())
                if not log.home.is_dead
            }
            if losing:
                await asyncio.wait(losing.values(), timeout=REBALANCE_S)
            for name in sorted(self.members):
                if name not in losing or not losing[name].done():
                    log = self.members.pop(name)
                    if not log.home.is_dead:
                        # As Kafka does, it is told with its next heartbeat.
                        log.home.spawn(log.home.rejoin(1.0))
            topics = sorted({topic for log in self.members.values() for topic in log.topics})
            counts = self._groups.cluster.topics
            wanted = [Partition(topic, n) for topic in topics for n in range(counts[topic])]
            names = sorted(self.members)
            self._owners = {}
            self._shares = {name: wanted[at :: len(names)] for at, name in enumerate(names)}
            for name in names:
                self._give(self.members[name])

    async def _welcome(self, log: SimLog) -> None:
        async with self._lock:
            is_back = log.name in self._shares and self.members.get(log.name) is log
            if is_back and self._owners.get(log.name) is not log:
                self._give(log)
        if not is_back:
            await self.rebalance()

    def _give(self, log: SimLog) -> None:
        if not log.home.is_dead:
            self._owners[log.name] = log
            log.home.spawn(log.gain(self._shares[log.name]))

    def _expire(self, log: SimLog) -> None:
        # One that woke before its session ended has sent heartbeats since.
        if log.home.is_silent and self.members.get(log.name) is log:
            del self.members[log.name]
            self._shares.pop(log.name, None)
            self._groups.spawn(self.rebalance())
