"""What a transaction asks of the brokers, and what it makes of their answers."""

import asyncio
import struct
from collections.abc import Mapping
from typing import Any, cast

import pytest
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import (
    ConcurrentTransactions,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    NotCoordinatorError,
    NotLeaderForPartitionError,
    OperationNotAttempted,
    OutOfOrderSequenceNumber,
    ProducerFenced,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest
from scripted_broker import LEADER, OTHER, ScriptedClient, at, batch

from streams.kafka.transaction import TransactionRequests
from streams.kafka.transaction_recovery import Producer

DUPLICATE = 46
BASE_SEQUENCE = 53
"""Where the number of a batch's first record stands in it."""


def requests_of(client: ScriptedClient) -> TransactionRequests:
    requests = TransactionRequests(cast("AIOKafkaClient", client), Producer("id", 7, 3))
    requests.begin()
    return requests


async def write(
    client: ScriptedClient, requests: TransactionRequests, *topics: str
) -> Mapping[TopicPartition, KafkaError | None]:
    await requests.add([at(topic) for topic in topics])
    return await requests.produce({at(topic): batch(10, 10) for topic in topics})


def sequences(client: ScriptedClient, topic: str) -> list[int]:
    return [struct.unpack_from(">i", sent, BASE_SEQUENCE)[0] for sent in client.batches(topic)]


async def test_three_requests_make_a_transaction() -> None:
    client = ScriptedClient()
    requests = requests_of(client)
    assert set((await write(client, requests, "lane", "root")).values()) == {None}
    await requests.commit()
    kinds = [type(request) for _, request in client.sent]
    assert kinds == [AddPartitionsToTxnRequest, ProduceRequest, EndTxnRequest]


async def test_what_is_in_the_transaction_is_not_added_again() -> None:
    client = ScriptedClient()
    requests = requests_of(client)
    await requests.add([at("lane")])
    await requests.add([at("lane"), at("root")])
    assert [r._topics for _, r in client.sent] == [[("lane", [0])], [("root", [0])]]


async def test_an_empty_transaction_asks_nobody() -> None:
    client = ScriptedClient()
    requests = requests_of(client)
    await requests.commit()
    assert client.sent == []


async def test_markers_that_are_under_way_are_waited_for() -> None:
    client = ScriptedClient()
    client.script[AddPartitionsToTxnRequest] = [ConcurrentTransactions.errno] * 2
    await requests_of(client).add([at("lane")])
    assert (client.asked(AddPartitionsToTxnRequest), client.lookups) == (3, 1)


@pytest.mark.parametrize("told", [NotCoordinatorError.errno, KafkaConnectionError("gone")])
async def test_a_coordinator_that_moved_is_looked_for(told: Any) -> None:
    client = ScriptedClient()
    requests = requests_of(client)
    await requests.add([at("lane")])
    client.script[EndTxnRequest] = [told]
    await requests.commit()
    assert (client.asked(EndTxnRequest), client.lookups) == (2, 2)


async def test_a_batch_goes_to_the_new_leader_as_it_was() -> None:
    client = ScriptedClient()
    requests = requests_of(client)
    client.script[ProduceRequest] = [{"lane": NotLeaderForPartitionError.errno}]
    outcomes = await write(client, requests, "lane", "root")
    first, second = client.batches("lane")
    assert set(outcomes.values()) == {None}
    assert first == second
    assert client.produced() == [["lane", "root"], ["lane"]]
    assert client.updates == 1


@pytest.mark.parametrize("told", [DUPLICATE, 0])
async def test_a_lost_answer_is_asked_for_again(told: int) -> None:
    client = ScriptedClient()
    requests = requests_of(client)
    client.script[ProduceRequest] = [KafkaConnectionError("gone"), told]
    assert await write(client, requests, "lane") == {at("lane"): None}
    await write(client, requests, "lane")
    assert sequences(client, "lane") == [0, 0, 2]


async def test_numbers_of_records_begin_again_where_they_are_too_large_for_kafka() -> None:
    """A producer that had written two billion records to a partition ended its process."""
    client = ScriptedClient()
    requests = requests_of(client)
    requests._sequences[at("lane")] = 2**31 - 3
    for _ in range(3):
        await write(client, requests, "lane")
    assert sequences(client, "lane") == [2**31 - 3, 2**31 - 1, 1]


@pytest.mark.parametrize("error", [MessageSizeTooLargeError, OutOfOrderSequenceNumber])
async def test_a_refused_batch_keeps_no_other(error: type[KafkaError]) -> None:
    client = ScriptedClient()
    requests = requests_of(client)
    client.script[ProduceRequest] = [{"lane": error.errno}]
    outcomes = await write(client, requests, "lane", "root")
    assert isinstance(outcomes[at("lane")], error)
    assert outcomes[at("root")] is None
    await write(client, requests, "lane", "root")
    assert (sequences(client, "lane"), sequences(client, "root")) == ([0, 0], [0, 2])


async def test_leaders_are_asked_side_by_side() -> None:
    client = ScriptedClient()
    client.leaders = {"lane": OTHER}
    await write(client, requests_of(client), "lane", "root", "evidence")
    asked = {node: r for node, r in client.sent if isinstance(r, ProduceRequest)}
    assert {node: [t for t, _ in r._topics] for node, r in asked.items()} == {
        OTHER: ["lane"],
        LEADER: ["root", "evidence"],
    }


class SlowLeader(ScriptedClient):
    """A client one of whose leaders answers produce requests when it is let.

    ``reached`` is set when so many produce requests were sent.
    """

    def __init__(self, requests: int) -> None:
        super().__init__()
        self.leaders = {"lane": OTHER}
        self.let, self.reached = asyncio.Event(), asyncio.Event()
        self._requests = requests

    async def send(self, node: int, request: Any) -> Any:
        answer = await super().send(node, request)
        if len(self.produced()) == self._requests:
            self.reached.set()
        if node == OTHER and isinstance(request, ProduceRequest):
            await self.let.wait()
        return answer


async def test_what_is_refused_waits_for_no_other_leader() -> None:
    client = SlowLeader(3)
    client.script[ProduceRequest] = [0, {"root": NotLeaderForPartitionError.errno}]
    writing = asyncio.create_task(write(client, requests_of(client), "lane", "root"))
    async with asyncio.timeout(5):
        await client.reached.wait()
        assert client.produced() == [["lane"], ["root"], ["root"]]
        assert not writing.done()
        client.let.set()
        assert await writing == {at("root"): None, at("lane"): None}


async def test_who_is_cancelled_asks_nobody_any_more() -> None:
    client = SlowLeader(2)
    before = asyncio.all_tasks()
    writing = asyncio.create_task(write(client, requests_of(client), "lane", "root"))
    await client.reached.wait()
    writing.cancel()
    await asyncio.wait([writing], timeout=5)
    await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


@pytest.mark.parametrize("kind", [AddPartitionsToTxnRequest, EndTxnRequest])
async def test_a_producer_that_was_fenced_says_so(kind: type) -> None:
    client = ScriptedClient()
    requests = requests_of(client)
    client.script[kind] = [InvalidProducerEpoch.errno]

    async def transact() -> None:
        await requests.add([at("lane")])
        await requests.commit()

    with pytest.raises(ProducerFenced):
        await transact()


async def test_the_topic_without_a_right_is_named_not_those_beside_it() -> None:
    client = ScriptedClient()
    client.script[AddPartitionsToTxnRequest] = [
        {"root": OperationNotAttempted.errno, "lane": TopicAuthorizationFailedError.errno}
    ]
    with pytest.raises(TopicAuthorizationFailedError, match="lane"):
        await requests_of(client).add([at("root"), at("lane")])


async def test_a_transactional_id_without_a_right_is_named() -> None:
    client = ScriptedClient()
    client.script[AddPartitionsToTxnRequest] = [TransactionalIdAuthorizationFailed.errno]
    with pytest.raises(TransactionalIdAuthorizationFailed, match="id"):
        await requests_of(client).add([at("lane")])


async def test_a_partition_that_is_no_more_is_not_waited_for() -> None:
    client = ScriptedClient()
    client.script[ProduceRequest] = [UnknownTopicOrPartitionError.errno]
    requests = requests_of(client)
    await requests.add([at("lane")])
    client.topics["lane"].clear()
    with pytest.raises(UnknownTopicOrPartitionError, match="lane has no partition 0"):
        await requests.produce({at("lane"): batch(1)})


class Silent:
    """A connection to a broker that does not answer."""

    is_open = True

    def connected(self) -> bool:
        return self.is_open

    def close(self) -> None:
        self.is_open = False

    async def send(self, _request: object) -> object:
        raise TimeoutError


async def test_a_broker_that_does_not_answer_gets_a_new_connection() -> None:
    client = ScriptedClient()
    silent = client._conns[LEADER, ConnectionGroup.DEFAULT] = Silent()
    assert await write(client, requests_of(client), "lane") == {at("lane"): None}
    assert not silent.is_open
