"""A stage for the tests of the engine: what it reads it writes, in two topics."""

from collections.abc import Awaitable, Callable, Sequence

from memory_log import MemoryCluster, MemoryLog
from stream_cases import drain, make_transactor

from streams.engine.log import Log, Outgoing, Partition, Record
from streams.engine.stage import Effect, Observer, TransactionPlan
from streams.engine.transactor import Transactor
from topics import Progress

TOPICS = {"in": 2, "out": 2, "audit": 1, "dead": 1, "progress": 2}
P0, P1 = Partition("in", 0), Partition("in", 1)


class Copier:
    """Copies each record of ``in`` to ``out`` and ``audit``."""

    group = "copiers"
    topics: Sequence[str] = ("in",)
    accumulates = True

    def __init__(self) -> None:
        self.restored: dict[Partition, Progress | None] = {}
        self.worked: list[tuple[int, int]] = []
        self.seen_when_done: list[int] = []
        self.refusals: list[tuple[bytes, str]] = []
        self.unwanted: set[Partition] = set()
        self.wait_s = float("inf")
        self.cluster: MemoryCluster | None = None
        self.fails: Callable[[str], None] = lambda _call: None
        self.meanwhile: Callable[[Partition], Awaitable[None]] | None = None

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        self.fails("restore")
        self.restored[partition] = progress

    def forget(self, partition: Partition) -> None:
        self.fails("forget")

    def wants(self, partition: Partition) -> bool:
        return partition not in self.unwanted

    def idle_s(self) -> float:
        return self.wait_s

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        if not records:
            return None
        self.fails("work")
        self.worked += [(partition.number, record.offset) for record in records]
        if self.meanwhile is not None:
            await self.meanwhile(partition)
        return TransactionPlan(
            Progress(records[-1].offset + 1), [self.copy(record) for record in records]
        )

    def copy(self, record: Record) -> Effect:
        number = record.partition.number
        copies = [
            Outgoing("out", record.key, record.value, partition=number),
            Outgoing("audit", record.key, record.value),
        ]
        return Effect(record, copies, subject=record)

    def done(self, partition: Partition, work: TransactionPlan) -> None:
        if self.cluster is not None:
            self.seen_when_done.append(len(self.cluster.records("out")))

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        self.refusals.append((record.value or b"", record.topic))
        source = effect.source
        assert source is not None
        letter = Outgoing("dead", source.key, source.value)
        return [Effect(source, [letter], is_dead_letter=True)]


def make_cluster() -> MemoryCluster:
    return MemoryCluster(TOPICS)


def fill(cluster: MemoryCluster, count: int, partitions: int = 2, start: int = 0) -> list[str]:
    """Publish records, in turn on each partition; return their values."""
    names = [f"r{n}" for n in range(start, start + count)]
    for n, name in enumerate(names):
        cluster.publish(Outgoing("in", name.encode(), name.encode(), partition=n % partitions))
    return names


def values(cluster: MemoryCluster, topic: str) -> list[str]:
    return sorted((record.value or b"").decode() for record in cluster.records(topic))


def assert_once(cluster: MemoryCluster, names: list[str]) -> None:
    """Each of these has had its two effects, once, and nothing else has."""
    assert values(cluster, "out") == sorted(names)
    assert values(cluster, "audit") == sorted(names)


async def take(
    cluster: MemoryCluster,
    stage: Copier,
    name: str = "a",
    records_max: int = 500,
    log: MemoryLog | None = None,
    observers: Sequence[Observer] = (),
) -> Transactor:
    """Return a transactor that has joined, and holds all partitions."""
    log = log or MemoryLog(cluster, name)
    transactor = make_transactor(
        log, stage, "progress", records_max=records_max, observers=observers
    )
    await transactor.start()
    await cluster.assign(stage.group, {name: [P0, P1]})
    return transactor


async def succeed(cluster: MemoryCluster, stage: Copier | None = None) -> Copier:
    """Let another process take over from one that died, and finish."""
    cluster.members.clear()
    stage = stage or Copier()
    await drain(await take(cluster, stage, "successor"))
    return stage
