"""Questions to brokers that show if a log is still the same: ids of topics, ends of epochs."""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

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

from streams.engine.log import LogError
from streams.kafka.protocol import DescribeTopics, EpochEnd

T = TypeVar("T")

# 30 s in all.
ASK_TRIES, ASK_AGAIN_S = 150, 0.2
# A broker answers a connection in order: over one that fetches, after half a second where nothing
# is new. That is too long within a poll, so this question has connections of its own.
ASIDE = "aside"
# Passing errors: a leader that is elected or moves, a broker that is starting or gone.
_PASSING = (
    KafkaConnectionError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    NotLeaderForPartitionError,
    RequestTimedOutError,
    UnknownTopicOrPartitionError,
)


async def topic_ids(client: AIOKafkaClient, topics: Collection[str]) -> dict[str, str]:
    """Return the id of each topic, 32 hex digits.

    Raises:
        KafkaError: one is missing or forbidden, or no broker answers.
    """
    response = await client.send(client.get_random_node(), DescribeTopics(topics))
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
    response = await client.send(leader, EpochEnd(partition, leader_epoch), group=ASIDE)
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
