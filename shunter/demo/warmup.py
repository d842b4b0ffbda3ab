"""The first requests of a demo, which check that every lane is open.

A worker reports before Kafka has given it its partitions. A request pinned to each direct lane
proves that its router and its worker serve it, so the trace's first arrivals don't wait.
"""

import asyncio
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import AIOKafkaProducer

from policies import Fleet
from shunter.demo.trace import PLACEHOLDER
from topics import Catalogue, Settings, encode

OUTPUT_TOKENS = 8
# A class that gives a cold start its time: on the live page none of these is a miss.
PATIENT = "long_context"
WINDOW = "60s"


@dataclass(frozen=True, slots=True)
class WarmUp:
    """One request for one direct lane: a pool's topic at a partition."""

    id: str
    partition: int
    request: Mapping[str, Any]


def warm_ups(fleet: Fleet, partitions: int, name: str = "warmup") -> Iterator[WarmUp]:
    """Yield a request for each direct lane of the fleet; their ids begin with ``name``."""
    for pool_name, pool in fleet.pools.items():
        if "direct" not in pool.lanes:
            continue
        model = pool.serves[0].model
        operation = fleet.models[model].operations[0]
        body: dict[str, Any] = {"model": model}
        more = {}
        if operation == "chat":
            body["messages"] = [{"role": "user", "content": PLACEHOLDER}]
            more["task"] = PATIENT
        else:
            body["input"] = PLACEHOLDER
        for partition in range(partitions):
            request_id = f"{name}-{pool_name}-{partition}"
            request = {
                "id": request_id,
                "url": "/v1/chat/completions" if operation == "chat" else f"/v1/{operation}",
                "body": body,
                "completion_window": WINDOW,
                **more,
                # Any: else a pool whose precision is below the class's quality gets none.
                "constraints": {"pools": [pool_name], "precisions": ["any"]},
                "hints": {"batchable": False, "output_tokens": OUTPUT_TOKENS},
            }
            yield WarmUp(request_id, partition, request)


async def publish(settings: Settings, requests: list[WarmUp]) -> None:
    """Publish each on its lane's partition.

    Raises:
        KafkaError: Kafka refuses one.
    """
    topic = Catalogue(settings).requests
    async with AIOKafkaProducer(**settings.kafka_options(), acks="all") as producer:
        for each in requests:
            await producer.send_and_wait(
                topic, encode(each.request), key=each.id.encode(), partition=each.partition
            )


async def publish_at_once(settings: Settings, requests: Sequence[Mapping[str, Any]]) -> float:
    """Publish a burst; return when it began, in epoch seconds.

    Raises:
        KafkaError: Kafka refuses one.
    """
    topic = Catalogue(settings).requests
    async with AIOKafkaProducer(**settings.kafka_options(), acks="all") as producer:
        began_at = time.time()
        waiting = [
            await producer.send(topic, encode(request), key=request["id"].encode())
            for request in requests
        ]
        await asyncio.gather(*waiting)
    return began_at
