"""An operator's work on the partitions of a cluster, by requests of Kafka's own protocol."""

import asyncio
from collections.abc import Collection, Mapping
from typing import Any

from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.admin import AlterPartitionReassignmentsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)
from confluent_kafka import ElectionType, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient

_TEXT = CompactString("utf-8")
# What a reassignment may take, of all partitions at once on a busy machine.
DONE_S_MAX = 60.0
LOOK_EVERY_S = 0.3
Place = tuple[str, int]


class _DescribeQuorumResponse(Response):
    API_KEY = 55
    API_VERSION = 0
    SCHEMA = Schema(
        ("error_code", Int16),
        (
            "topics",
            CompactArray(
                ("name", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("index", Int32),
                        ("error_code", Int16),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("high_watermark", Int64),
                        # Voters and observers, which nobody here asks for, are left undecoded.
                    ),
                ),
            ),
        ),
    )


class _DescribeQuorumStruct(RequestStruct):
    FLEXIBLE_VERSION = True
    API_KEY = 55
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeQuorumResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("name", _TEXT),
                ("partitions", CompactArray(("index", Int32), ("tags", TaggedFields))),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeQuorum(Request[_DescribeQuorumStruct]):
    API_KEY = 55

    def build(self, struct: Any) -> Any:
        return struct([("__cluster_metadata", [(0, {})], {})], {})


async def ask(bootstrap_servers: str, request: Any) -> Any:
    """Send a request to any broker, which hands it on to the controller."""
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers, request_timeout_ms=10_000)
    await client.bootstrap()
    try:
        return await client.send(client.get_random_node(), request)
    finally:
        await client.close()


async def controller(bootstrap_servers: str) -> int:
    """Return the number of the node that leads the quorum."""
    response = await ask(bootstrap_servers, _DescribeQuorum())
    return response.topics[0][1][0][2]


async def reassign(bootstrap_servers: str, replicas: Mapping[Place, Collection[int]]) -> None:
    """Have Kafka move partitions to other brokers, in this order of preference."""
    by_topic: dict[str, list[tuple[int, list[int], dict[int, bytes]]]] = {}
    for (topic, number), nodes in replicas.items():
        by_topic.setdefault(topic, []).append((number, list(nodes), {}))
    topics = [(topic, partitions, {}) for topic, partitions in by_topic.items()]
    response = await ask(bootstrap_servers, AlterPartitionReassignmentsRequest(10_000, topics, {}))
    wrong = [(name, p[0], p[1]) for name, ps, _ in response.responses for p in ps if p[1]]
    assert not response.error_code, response
    assert not wrong, wrong


def places(kafka: AdminClient, prefix: str = "") -> dict[Place, Any]:
    """Return the partitions of topics, with leader, replicas and replicas in sync."""
    topics = kafka.list_topics(timeout=20).topics.values()
    return {
        (topic.topic, number): partition
        for topic in topics
        if topic.topic.startswith(prefix)
        for number, partition in topic.partitions.items()
    }


async def settled(kafka: AdminClient, replicas: int = 3, prefix: str = "") -> None:
    """Wait until each partition has a leader and so many replicas, all of them in sync."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + DONE_S_MAX
    while loop.time() < give_up_at:
        try:
            found = await asyncio.to_thread(places, kafka, prefix)
        except KafkaException:
            found = {}
        if found and all(
            p.leader >= 0 and len(p.isrs) == len(p.replicas) == replicas for p in found.values()
        ):
            return
        await asyncio.sleep(LOOK_EVERY_S)
    raise AssertionError(f"partitions are not all in sync within {DONE_S_MAX} s")


async def elect(kafka: AdminClient, partitions: Collection[Place], how: ElectionType) -> None:
    """Have leaders elected: the preferred ones, or unclean where there is none."""
    wanted = [TopicPartition(*place) for place in partitions]
    await asyncio.to_thread(kafka.elect_leaders(how, wanted).result, 30)
