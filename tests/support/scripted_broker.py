"""A Kafka client whose brokers answer transactional requests as a script says."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from aiokafka import TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest

BATCH_BYTES = 1_000_000
COORDINATOR, LEADER, OTHER = 1, 2, 3


class ScriptedClient:
    """The part of ``AIOKafkaClient`` and ``AIOKafkaProducer`` that a transaction uses.

    ``script`` has, by the kind of request, what the next ones are answered: an error code, codes by
    topic, or an error that is raised instead. Without a script everything succeeds.
    """

    def __init__(self, topics: Sequence[str] = ("lane", "evidence", "root")) -> None:
        self.topics = {topic: {0} for topic in topics}
        self.leaders: dict[str, int] = {}
        self.script: dict[type, list[Any]] = {}
        self.sent: list[tuple[int, Any]] = []
        self.lookups = 0
        self.updates = 0
        self._conns: dict[Any, Any] = {}
        self.cluster = SimpleNamespace(
            leader_for_partition=lambda p: self.leaders.get(p.topic, LEADER),
            partitions_for_topic=self.topics.get,
        )

    @property
    def client(self) -> "ScriptedClient":
        return self

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(BATCH_BYTES, 0, is_transactional=1)

    async def partitions_for(self, topic: str) -> set[int]:
        return self.topics[topic]

    async def coordinator_lookup(self, _kind: object, _key: str) -> int:
        self.lookups += 1
        return COORDINATOR

    async def force_metadata_update(self) -> None:
        self.updates += 1

    async def send(self, node: int, request: Any) -> Any:
        self.sent.append((node, request))
        waiting = self.script.get(type(request), [])
        told = waiting.pop(0) if waiting else 0
        if isinstance(told, KafkaError):
            raise told
        if isinstance(request, ProduceRequest | AddPartitionsToTxnRequest):
            codes = told if isinstance(told, dict) else dict.fromkeys(self.topics, told)
            answers = []
            for topic, partitions in request._topics:
                numbers = [p[0] if isinstance(p, tuple) else p for p in partitions]
                answers.append((topic, [(n, codes.get(topic, 0)) for n in numbers]))
            return SimpleNamespace(topics=answers, errors=answers)
        return SimpleNamespace(error_code=told)

    def produced(self) -> list[list[str]]:
        """The topics of each produce request."""
        requests = [r for _, r in self.sent if isinstance(r, ProduceRequest)]
        return [[topic for topic, _ in request._topics] for request in requests]

    def batches(self, topic: str) -> list[bytes]:
        """What was sent for a topic, tries included."""
        requests = [r for _, r in self.sent if isinstance(r, ProduceRequest)]
        return [
            bytes(b) for r in requests for t, parts in r._topics if t == topic for _, b in parts
        ]

    def asked(self, kind: type) -> int:
        """How many requests of a kind were sent."""
        return sum(isinstance(request, kind) for _, request in self.sent)


def batch(*sizes: int) -> BatchBuilder:
    """Return a batch with records of so many bytes."""
    builder = BatchBuilder(BATCH_BYTES, 0, is_transactional=1)
    for size in sizes:
        assert builder.append(timestamp=None, key=b"k", value=bytes(size)) is not None
    return builder


def at(topic: str) -> TopicPartition:
    """Return the topic's one partition."""
    return TopicPartition(topic, 0)
