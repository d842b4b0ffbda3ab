"""Two logs under one interface, memory and a real Kafka, for behaviour that both must show."""

import asyncio
import gc
from collections.abc import Callable, Collection, Mapping
from typing import Any, Protocol

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import KafkaError
from memory_log import MemoryCluster, MemoryLog

from streams.engine.log import Log, LogError, Outgoing, Partition, Record
from streams.engine.transactor import Transactor
from streams.kafka.log import KafkaLog
from streams.kafka.writer import KafkaWriter
from topics import Settings

PARTITIONS = 2
# What a topic that was made with `small` takes.
SMALL_BYTES = 4000
# Settings of a topic that is compacted while a test waits; and a key that means nothing.
COMPACTED = {"cleanup.policy": "compact", "segment.ms": "100", "min.cleanable.dirty.ratio": "0"}
FILLER = b"filler"


class Ground(Protocol):
    """A cluster. What others have written is known after ``look``."""

    prefix: str
    fenced: tuple[type[Exception], ...]
    """What a writer meets that has a successor."""

    async def create(
        self,
        topics: Mapping[str, int],
        small: Collection[str] = (),
        compacted: Collection[str] = (),
    ) -> None:
        """Make topics of so many partitions; those of ``small`` take SMALL_BYTES at most."""
        ...

    def log(self) -> Log:
        """Return the log as a new process sees it that has the name of the one before."""
        ...

    async def own(self, transactor: Transactor, count: int) -> None:
        """Join, and have all partitions."""
        ...

    async def kill(self, log: Log) -> None:
        """Let a process be gone from its group, without a word; its writers stay as they are."""
        ...

    async def publish(self, record: Outgoing) -> None:
        """Write a record outside any transaction, as a foreign client does."""
        ...

    async def compact(self, partition: Partition) -> None:
        """Have the log keep only the newest record of each key on a partition."""
        ...

    async def look(self) -> None:
        """Read what has become visible."""
        ...

    def records(self, topic: str, number: int | None = None) -> list[Record]:
        """Return what is visible of a topic, or of one partition of it."""
        ...

    async def close(self) -> None:
        """Let everything go."""
        ...


class MemoryGround:
    """The log in memory."""

    prefix = "yard"
    fenced: tuple[type[Exception], ...] = (LogError,)

    def __init__(self) -> None:
        self.cluster = MemoryCluster({}, sleep=asyncio.sleep)
        self._small: set[str] = set()

    async def create(
        self,
        topics: Mapping[str, int],
        small: Collection[str] = (),
        compacted: Collection[str] = (),
    ) -> None:
        self.cluster.create(topics)
        self._small |= set(small)
        self.cluster.refuse = self._refuses

    def log(self) -> MemoryLog:
        return MemoryLog(self.cluster, "a")

    async def own(self, transactor: Transactor, count: int) -> None:
        await transactor.start()
        await self.cluster.rebalance(transactor._stage.group)
        await transactor.take_over()
        assert len(transactor.partitions) == count

    async def kill(self, log: Log) -> None:
        for members in self.cluster.members.values():
            for name in [name for name, member in members.items() if member is log]:
                del members[name]

    async def publish(self, record: Outgoing) -> None:
        self.cluster.publish(record)

    async def compact(self, partition: Partition) -> None:
        self.cluster.compact(partition.topic)

    async def look(self) -> None:
        pass

    def records(self, topic: str, number: int | None = None) -> list[Record]:
        return self.cluster.records(topic, number)

    async def close(self) -> None:
        pass

    def _refuses(self, record: Outgoing) -> bool:
        return record.topic in self._small and len(record.value or b"") > SMALL_BYTES


class TrackedLog(KafkaLog):
    """Remembers its writers, so that even those of dead processes are closed in the end."""

    def __init__(self, settings: Settings, writers: list[KafkaWriter]) -> None:
        super().__init__(settings)
        self._made = writers

    async def fence(self, transactional_id: str) -> KafkaWriter:
        writer = await super().fence(transactional_id)
        self._made.append(writer)
        return writer


class KafkaGround:
    """A real Kafka, on which this ground has a prefix of its own."""

    fenced: tuple[type[Exception], ...] = (KafkaError, LogError)

    def __init__(self, bootstrap_servers: str, prefix: str) -> None:
        self.prefix = prefix
        self.settings = Settings(
            bootstrap_servers=bootstrap_servers,
            topic_prefix=prefix,
            partitions=PARTITIONS,
            instance="a",
        )
        self._servers = bootstrap_servers
        self._counts: dict[str, int] = {}
        self._seen: dict[Partition, list[Record]] = {}
        self._writers: list[KafkaWriter] = []
        self._logs: list[KafkaLog] = []
        self._reader = AIOKafkaConsumer(
            bootstrap_servers=bootstrap_servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        self._producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers)

    async def create(
        self,
        topics: Mapping[str, int],
        small: Collection[str] = (),
        compacted: Collection[str] = (),
    ) -> None:
        settings = {name: {"max.message.bytes": str(SMALL_BYTES)} for name in small}
        settings |= dict.fromkeys(compacted, COMPACTED)
        admin = AIOKafkaAdminClient(bootstrap_servers=self._servers)
        await admin.start()
        try:
            await admin.create_topics(
                [
                    NewTopic(name, count, 1, topic_configs=settings.get(name))
                    for name, count in topics.items()
                ]
            )
        finally:
            await admin.close()
        self._counts = dict(topics)
        self._reader.assign([TopicPartition(t, n) for t, c in topics.items() for n in range(c)])
        await self._reader.start()
        await self._producer.start()

    def log(self) -> KafkaLog:
        log = TrackedLog(self.settings, self._writers)
        self._logs.append(log)
        return log

    async def own(self, transactor: Transactor, count: int) -> None:
        await transactor.start()
        # Without a step, which might read and write already.
        await until(lambda: len(transactor._given or ()) == count)
        await transactor.take_over()
        assert len(transactor.partitions) == count

    async def kill(self, log: Log) -> None:
        # A static member says nothing when it goes; its name is free for the next at once.
        await log.leave()

    async def publish(self, record: Outgoing) -> None:
        await self._producer.send_and_wait(
            record.topic,
            record.value,
            key=record.key,
            partition=record.partition,
            headers=record.headers,
        )

    async def compact(self, partition: Partition) -> None:
        home = TopicPartition(*partition)
        async with asyncio.timeout(90):
            while len(keys := [r.key for r in kept(self.records(*partition))]) > len(set(keys)):
                # Only what is not in the newest segment is compacted, and only a record ends one.
                await asyncio.sleep(0.2)
                await self.publish(Outgoing(partition.topic, FILLER, None, [], partition.number))
                self._seen.pop(partition, None)
                await self._reader.seek_to_beginning(home)
                await self.look()

    async def look(self) -> None:
        ends = await self._reader.end_offsets(self._reader.assignment())
        async with asyncio.timeout(60):
            while any([await self._reader.position(p) < end for p, end in ends.items()]):
                for found, records in (await self._reader.getmany(timeout_ms=50)).items():
                    partition = Partition(*found)
                    self._seen.setdefault(partition, []).extend(
                        Record(partition, r.offset, r.key, r.value, r.headers, r.timestamp)
                        for r in records
                    )

    def records(self, topic: str, number: int | None = None) -> list[Record]:
        numbers = range(self._counts[topic]) if number is None else [number]
        return [r for n in numbers for r in self._seen.get(Partition(topic, n), ())]

    async def close(self) -> None:
        for log in self._logs:
            await log.leave()
        for writer in self._writers:
            await writer.close()
            # A fenced one may wait for answers that never come, and leave its connections open.
            await writer._producer.client.close()
        await self._reader.stop()
        await self._producer.stop()
        # What a zombie has left is finalised here, not in the middle of something else.
        gc.collect()


async def until(check: Callable[[], object]) -> None:
    """Wait until something holds that the Kafka client does in the background."""
    async with asyncio.timeout(60):
        while not check():  # noqa: ASYNC110 - the client has no event for it
            await asyncio.sleep(0.01)


def kept(records: Collection[Record]) -> list[Record]:
    """Return the records but for what ``compact`` may have added."""
    return [record for record in records if record.key != FILLER]


def values(records: Collection[Record]) -> list[str]:
    return [(record.value or b"").decode() for record in records]


def make_ground(kind: str, kafka: Any, prefix: str) -> MemoryGround | KafkaGround:
    return MemoryGround() if kind == "memory" else KafkaGround(kafka, prefix)
