"""Two requests of Kafka's protocol that show if a log is still the same.

Shapes from the message definitions of Apache Kafka: Metadata, version 12, which has the ids of
topics (KIP-516), and OffsetForLeaderEpoch, version 4 (KIP-320). Both need the right to describe the
topic, which every reader has.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import Any, TypeVar

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import (
    KafkaConnectionError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from streams.engine.log import LogError

T = TypeVar("T")

# 30 s in all.
ASK_TRIES, ASK_AGAIN_S = 150, 0.2
# A broker answers a connection in order: over one that fetches, after half a second where nothing
# is new. That is too long within a poll, so this question has connections of its own.
ASIDE = "aside"
_TEXT = CompactString("utf-8")
_ANY_EPOCH = -1
_CONSUMER = -1
# Passing errors: a leader that is elected or moves, a broker that is starting or gone.
_PASSING = (
    KafkaConnectionError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
)


class _UUID:
    """Sixteen bytes."""

    NONE = bytes(16)

    @staticmethod
    def encode(value: bytes) -> bytes:
        return value

    @staticmethod
    def decode(data: Any) -> bytes:
        found: bytes = data.read(16)
        return found

    @staticmethod
    def repr(value: bytes) -> str:
        return value.hex()


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            CompactArray(
                ("node_id", Int32),
                ("host", _TEXT),
                ("port", Int32),
                ("rack", _TEXT),
                ("tags", TaggedFields),
            ),
        ),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            CompactArray(
                ("error_code", Int16),
                ("name", _TEXT),
                ("topic_id", _UUID),
                ("is_internal", Boolean),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition_index", Int32),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("replica_nodes", CompactArray(Int32)),
                        ("isr_nodes", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("topic_authorized_operations", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _MetadataRequestV12(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = Schema(
        ("topics", CompactArray(("topic_id", _UUID), ("name", _TEXT), ("tags", TaggedFields))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
        ("tags", TaggedFields),
    )


class _DescribeTopics(Request[_MetadataRequestV12]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = topics

    def build(self, struct: Any) -> Any:
        """Return the request in the version that the broker understands."""
        topics: list[Any] = [(_UUID.NONE, topic, {}) for topic in self._topics]
        return struct(topics, False, False, {})


class _EpochEndResponse(Response):  # type: ignore[misc]
    API_KEY = 23
    API_VERSION = 4
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader_epoch", Int32),
                        ("end_offset", Int64),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _EpochEndRequestV4(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 23
    API_VERSION = 4
    RESPONSE_TYPE = _EpochEndResponse
    SCHEMA = Schema(
        ("replica_id", Int32),
        (
            "topics",
            CompactArray(
                ("topic", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition", Int32),
                        ("current_leader_epoch", Int32),
                        ("leader_epoch", Int32),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _EpochEnd(Request[_EpochEndRequestV4]):  # type: ignore[misc]
    API_KEY = 23

    def __init__(self, partition: TopicPartition, leader_epoch: int) -> None:
        self._partition = partition
        self._leader_epoch = leader_epoch

    def build(self, struct: Any) -> Any:
        """Return the request in the version that the broker understands."""
        topic, number = self._partition
        asked: list[Any] = [(number, _ANY_EPOCH, self._leader_epoch, {})]
        return struct(_CONSUMER, [(topic, asked, {})], {})


async def topic_ids(client: AIOKafkaClient, topics: Collection[str]) -> dict[str, str]:
    """Return the id of each topic, 32 hex digits.

    Raises:
        KafkaError: one is missing or forbidden, or no broker answers.
    """
    response = await client.send(client.get_random_node(), _DescribeTopics(topics))
    found: dict[str, str] = {}
    for code, name, topic_id, *_ in response.topics:
        if code and not issubclass(for_code(code), LeaderNotAvailableError):
            raise for_code(code)(name)
        found[name] = topic_id.hex()
    return found


async def epoch_end(
    client: AIOKafkaClient, partition: TopicPartition, leader_epoch: int
) -> int | None:
    """Return where the records of a leader epoch end, None if the log has none.

    Raises:
        KafkaError: as ``topic_ids``.
    """
    leader = client.cluster.leader_for_partition(partition)
    if leader is None or leader < 0:
        await client.force_metadata_update()
        raise LeaderNotAvailableError(f"{partition.topic}[{partition.partition}]")
    response = await client.send(leader, _EpochEnd(partition, leader_epoch), group=ASIDE)
    ((_, ((code, _, _, end_offset, _),), _),) = response.topics
    if code:
        await client.force_metadata_update()
        raise for_code(code)(f"{partition.topic}[{partition.partition}]")
    return None if end_offset < 0 else end_offset


async def passing(ask: Callable[[], Awaitable[T]]) -> T:
    """Retry during a leader election or a broker's start.

    Raises:
        LogError: it lasts.
    """
    for _ in range(ASK_TRIES):
        try:
            return await ask()
        except _PASSING as error:
            last = error
            await asyncio.sleep(ASK_AGAIN_S)
    raise LogError(f"no broker answers: {last!r}") from last
