"""Offset requests to a partition's leader that no other broker knows to be deposed.

A broker that was frozen or partitioned off answers for a moment as the leader that it no longer is,
with an outdated end. A successor that relied on it would repeat what was committed since. Each
broker names the leaders that it knows of; the newer leader knows itself.
"""

import asyncio
from collections.abc import Awaitable, Callable, Collection
from typing import TypeVar

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import KafkaError, LeaderNotAvailableError
from aiokafka.protocol.metadata import MetadataRequest

T = TypeVar("T")
Leaders = dict[TopicPartition, int | None]

AGREED_S_MAX = 30.0
RETRY_S = 0.2


async def ask_leaders(
    client: AIOKafkaClient,
    partitions: Collection[TopicPartition],
    ask: Callable[[], Awaitable[T]],
) -> T:
    """Return the answers of these partitions' leaders, once no broker disputes them.

    Raises:
        LeaderNotAvailableError: none has answered in time, or the brokers don't agree.
    """
    try:
        async with asyncio.timeout(AGREED_S_MAX):
            while True:
                leaders = _known(client.cluster, partitions)
                answer = await ask()
                if await _are_agreed(client, leaders):
                    return answer
                await asyncio.sleep(RETRY_S)
                await client.force_metadata_update()
    except TimeoutError as error:
        names = ", ".join(sorted({partition.topic for partition in partitions}))
        raise LeaderNotAvailableError(
            f"no leader of {names} that all brokers name has answered in {AGREED_S_MAX:g} s"
        ) from error


async def _are_agreed(client: AIOKafkaClient, leaders: Leaders) -> bool:
    """Return whether most brokers answer, and all of these agree with the client on leaders."""
    nodes = [broker.nodeId for broker in client.cluster.brokers()]
    if len(nodes) < 2:
        return True
    answers = await asyncio.gather(*(_leaders_by(client, node, leaders) for node in nodes))
    told = [answer for answer in answers if answer is not None]
    return 2 * len(told) > len(nodes) and all(answer == leaders for answer in told)


async def _leaders_by(client: AIOKafkaClient, node: int, wanted: Leaders) -> Leaders | None:
    """Return the leaders according to one broker, None if it doesn't answer."""
    try:
        response = await client.send(node, MetadataRequest(sorted({p.topic for p in wanted})))
    except KafkaError:
        return None
    told = ClusterMetadata()
    told.update_metadata(response)
    return _known(told, wanted)


def _known(cluster: ClusterMetadata, partitions: Collection[TopicPartition]) -> Leaders:
    return {partition: cluster.leader_for_partition(partition) for partition in partitions}
