"""The records of a transaction on their way to the Kafka client."""

import asyncio
from collections.abc import Awaitable
from typing import Any, cast

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.producer.message_accumulator import BatchBuilder

from streams.engine.log import Outgoing
from streams.kafka.transaction_recovery import Producer
from streams.kafka.writer import BATCH_BYTES_MAX, WAITING_BYTES_MAX, KafkaWriter


class Client:
    """A producer that sends one batch of each partition in a request, and makes others wait."""

    def __init__(self) -> None:
        self.known: list[str] = []
        self.requests: list[list[str]] = []
        self._next: dict[str, tuple[BatchBuilder, asyncio.Future[object]]] = {}

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(BATCH_BYTES_MAX, 0, is_transactional=1)

    async def send_batch(
        self, builder: BatchBuilder, topic: str, *, partition: int
    ) -> Awaitable[object]:
        if topic in self._next:
            self._send()
        self.known.append(topic)
        outcome: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        self._next[topic] = builder, outcome
        asyncio.get_running_loop().call_soon(self._send)
        return outcome

    def _send(self) -> None:
        sent, self._next = self._next, {}
        if sent:
            self.requests.append([f"{t} {b.record_count()}" for t, (b, _) in sent.items()])
        for _, outcome in sent.values():
            outcome.set_result(None)


FENCED = Producer("nobody-asks", 1, 0)


async def send(client: Client, *records: tuple[str, int]) -> None:
    """Write records of so many bytes to partition 0 of a topic."""
    writer = KafkaWriter(cast("AIOKafkaProducer", client), FENCED)
    values: list[Any] = [
        await writer.send(Outgoing(topic, b"k", bytes(size), partition=0))
        for topic, size in records
    ]
    await asyncio.gather(*values)


async def test_large_requests_of_one_pool_go_in_one_batch() -> None:
    client = Client()
    await send(client, ("lane", 400_000), ("evidence", 6_000), ("lane", 400_000), ("root", 300))
    assert client.requests == [["lane 2", "evidence 1", "root 1"]]


async def test_a_second_batch_of_a_partition_keeps_no_other_waiting() -> None:
    client = Client()
    await send(client, *[("lane", 400_000)] * 5, ("evidence", 6_000), ("root", 300))
    assert client.requests == [["lane 2", "evidence 1", "root 1"], ["lane 2"], ["lane 1"]]


@pytest.mark.parametrize("size", [1_000, 900_000])
async def test_of_many_records_only_so_many_bytes_wait_to_be_handed_over(size: int) -> None:
    client = Client()
    writer = KafkaWriter(cast("AIOKafkaProducer", client), FENCED)
    for _ in range(1 + 3 * WAITING_BYTES_MAX // size):
        await writer.send(Outgoing("lane", b"k", bytes(size), partition=0))
    assert len(client.known) >= 2 * WAITING_BYTES_MAX // BATCH_BYTES_MAX
