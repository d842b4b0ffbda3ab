"""The records of a transaction on their way to the brokers."""

import asyncio
from typing import cast

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, NotCoordinatorError, ProducerFenced
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest
from scripted_broker import ScriptedClient

from streams.engine.log import Outgoing
from streams.kafka.transaction_recovery import Producer
from streams.kafka.writer import BATCH_BYTES_MAX, WAITING_BYTES_MAX, KafkaWriter

FENCED = Producer("nobody-asks", 1, 0)


def writer_on(client: ScriptedClient) -> KafkaWriter:
    return KafkaWriter(cast("AIOKafkaProducer", client), FENCED)


async def send(client: ScriptedClient, *records: tuple[str, int]) -> list[object]:
    """Write records of so many bytes to partition 0 of a topic; return how each ended."""
    writer = writer_on(client)
    await writer.begin()
    sent = [
        await writer.send(Outgoing(topic, b"k", bytes(size), partition=0))
        for topic, size in records
    ]
    return await asyncio.gather(*sent, return_exceptions=True)


async def test_large_requests_of_one_pool_go_in_one_batch() -> None:
    client = ScriptedClient()
    await send(client, ("lane", 400_000), ("evidence", 6_000), ("lane", 400_000), ("root", 300))
    assert client.produced() == [["lane", "evidence", "root"]]


async def test_a_second_batch_of_a_partition_keeps_no_other_waiting() -> None:
    client = ScriptedClient()
    await send(client, *[("lane", 400_000)] * 5, ("evidence", 6_000), ("root", 300))
    assert client.produced() == [["lane", "evidence", "root"], ["lane"], ["lane"]]
    assert client.asked(AddPartitionsToTxnRequest) == 1


@pytest.mark.parametrize("size", [1_000, 900_000])
async def test_of_many_records_only_so_many_bytes_wait_to_be_sent(size: int) -> None:
    client = ScriptedClient()
    writer = writer_on(client)
    await writer.begin()
    for _ in range(1 + 3 * WAITING_BYTES_MAX // size):
        await writer.send(Outgoing("lane", b"k", bytes(size), partition=0))
    assert client.asked(ProduceRequest) >= 2 * WAITING_BYTES_MAX // BATCH_BYTES_MAX


async def test_what_is_queued_while_others_are_sent_goes_out_too() -> None:
    client = ScriptedClient()
    writer = writer_on(client)
    await writer.begin()
    first = await writer.send(Outgoing("lane", b"k", b"1", partition=0))
    await asyncio.sleep(0)
    second = await writer.send(Outgoing("root", b"k", b"2", partition=0))
    await asyncio.gather(first, second)
    assert client.produced() == [["lane"], ["root"]]


async def test_a_batch_that_is_too_large_for_its_topic_goes_in_smaller_ones() -> None:
    """Each of its records was fit, and the process ended for what they were together."""
    client = ScriptedClient()
    refused = {"lane": MessageSizeTooLargeError.errno}
    client.script[ProduceRequest] = [refused, refused]
    outcomes = await send(client, *[("lane", 100)] * 4, ("root", 300))
    assert outcomes == [None] * 5
    # All four, the first two, each of these, and the other two.
    assert client.produced() == [["lane", "root"], ["lane"], ["lane"], ["lane"], ["lane"]]
    assert [len(batch) for batch in client.batches("lane")][2] < 300


async def test_a_record_that_is_too_large_is_refused_with_those_of_its_batch() -> None:
    client = ScriptedClient()
    client.script[ProduceRequest] = [{"lane": MessageSizeTooLargeError.errno}] * 2
    outcomes = await send(client, *[("lane", 100)] * 2)
    assert all(isinstance(each, MessageSizeTooLargeError) for each in outcomes)
    assert len(client.batches("lane")) == 2


async def test_only_the_refused_batch_ends_with_an_error() -> None:
    client = ScriptedClient()
    client.script[ProduceRequest] = [{"lane": MessageSizeTooLargeError.errno}]
    lane, root = await send(client, ("lane", 400), ("root", 300))
    assert isinstance(lane, MessageSizeTooLargeError)
    assert root is None


async def test_all_are_told_what_ended_the_transaction() -> None:
    client = ScriptedClient()
    client.script[AddPartitionsToTxnRequest] = [NotCoordinatorError.errno, ProducerFenced()]
    ends = await send(client, ("lane", 400), ("root", 300))
    assert [type(end) for end in ends] == [ProducerFenced, ProducerFenced]
