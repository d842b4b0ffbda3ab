"""A broker that is gone without a word: the client goes by what the others say."""

import asyncio
import random
import socket
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import RequestTimedOutError
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.protocol.metadata import MetadataRequest, MetadataResponse_v0

from streams.engine.log import Partition
from streams.kafka import broker_loss
from streams.kafka.reader import reader
from topics import Settings
from topics.admin.provisioning import apply


@pytest.fixture
def silent() -> Iterator[str]:
    """A server that takes connections and answers nothing, as one that is frozen."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture
def settings(kafka: str, prefix: str) -> Settings:
    return Settings(bootstrap_servers=kafka, topic_prefix=prefix)


class Connection:
    """A connection to a broker of which nothing more is heard."""

    host, port = "gone.example", 9092

    def __init__(self) -> None:
        self.reasons: list[Any] = []

    def connected(self) -> bool:
        return not self.reasons

    def close(self, reason: Any = None) -> "asyncio.Future[None]":
        self.reasons.append(reason)
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        closed.set_result(None)
        return closed


@pytest.mark.kafka
async def test_a_silent_broker_is_given_up_and_asked_last_from_then_on(
    settings: Settings, silent: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_loss, "CONNECT_S_MAX", 1.0)
    monkeypatch.setattr(broker_loss, "_failed_at", {})
    # Else the silent one may never be asked, and nothing be known of it.
    monkeypatch.setattr(random, "shuffle", lambda _hosts: None)
    servers = f"{silent},{settings.bootstrap_servers}"
    both = settings.model_copy(update={"bootstrap_servers": servers})
    async with asyncio.timeout(90), reader(both) as consumer:
        hosts = [f"{host}:{port}" for host, port, _ in consumer._client.hosts]
        # The client's own tasks have begun; before, it can't be closed.
        await asyncio.sleep(0)
    assert hosts == [settings.bootstrap_servers, silent]


@pytest.mark.kafka
async def test_connections_to_who_is_no_longer_named_are_closed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_loss, "_failed_at", {})
    async with reader(settings) as consumer:
        client, gone = consumer._client, Connection()
        there = {key: each for key, each in client._conns.items() if each.connected()}
        client._conns[7, "group"] = gone
        await client.fetch_all_metadata()
        assert gone.reasons
        assert all(each.connected() for each in there.values())
        assert (gone.host, gone.port) in broker_loss._failed_at


@pytest.mark.kafka
async def test_what_one_client_finds_gone_is_gone_for_all_at_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_loss, "_failed_at", {})
    monkeypatch.setattr(broker_loss, "_lost", set())
    async with reader(settings) as one, reader(settings) as other:
        finder, client, gone = one._client, other._client, Connection()
        there = [each for each in client._conns.values() if each.connected()]
        client._conns[7, "group"] = gone
        finder._addresses |= {(gone.host, gone.port)}
        await finder.fetch_all_metadata()
        assert gone.reasons
        assert all(each.connected() for each in there)


@pytest.mark.kafka
@pytest.mark.parametrize("request_", [MetadataRequest([]), HeartbeatRequest("group", 1, "member")])
async def test_a_request_that_a_broker_answers_at_once_is_not_waited_for(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, request_: Any
) -> None:
    monkeypatch.setattr(broker_loss, "ANSWER_S_MAX", 0.2)
    monkeypatch.setattr(broker_loss, "_failed_at", {})
    async with reader(settings) as consumer:
        node = consumer._client.get_random_node()
        assert await consumer._client.ready(node)
        connection = next(each for each in consumer._client._conns.values() if each.connected())
        # It answers no more.
        connection._read_task.cancel()
        began = asyncio.get_running_loop().time()
        with pytest.raises(RequestTimedOutError):
            await consumer._client.send(node, request_)
        assert asyncio.get_running_loop().time() - began < 10
        # Another client of this process asks it last.
        assert (connection.host, connection.port) in broker_loss._failed_at


async def test_who_did_not_answer_is_asked_last_by_all_clients(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = broker_loss._Client(bootstrap_servers="one:1,two:2,three:3")
    client.cluster.update_metadata(
        MetadataResponse_v0([(1, "one", 1), (2, "two", 2), (3, "three", 3)], [])
    )
    monkeypatch.setattr(broker_loss, "_failed_at", {("two", 2): 7.0, ("three", 3): 8.0})
    assert {client.get_random_node() for _ in range(20)} == {1}
    monkeypatch.setitem(broker_loss._failed_at, ("one", 1), 9.0)
    assert {client.get_random_node() for _ in range(20)} == {2}
    monkeypatch.setattr(broker_loss, "_failed_at", {})
    assert {client.get_random_node() for _ in range(60)} == {1, 2, 3}


async def test_metadata_are_asked_for_often_at_first_and_then_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker_loss, "METADATA_TURN_S", 0.1)
    client, loop = broker_loss._Client(bootstrap_servers="one:1"), asyncio.get_running_loop()
    began_at = loop.time()
    for _ in range(broker_loss.METADATA_TURNS):
        await client._metadata_turn()
    assert loop.time() - began_at < 0.1
    for _ in range(5):
        await client._metadata_turn()
    assert loop.time() - began_at >= 0.4


@pytest.mark.kafka
async def test_a_broker_that_takes_no_connection_is_not_asked_all_the_time(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_loss, "RECONNECT_S", 0.5)
    async with reader(settings) as consumer:
        began = asyncio.get_running_loop().time()
        assert not await consumer._client.ready(7)
        assert asyncio.get_running_loop().time() - began >= 0.5


@pytest.mark.kafka
async def test_a_reader_is_one_of_those_clients(settings: Settings) -> None:
    await apply(settings, [])
    partition = Partition(f"{settings.topic_prefix}.results", 0)
    async with reader(settings, [partition]) as consumer:
        assert isinstance(consumer, AIOKafkaConsumer)
        assert isinstance(consumer._client, broker_loss._Client)
        await asyncio.sleep(0)


@pytest.mark.kafka
async def test_a_client_without_topics_asks_for_the_brokers_alone(settings: Settings) -> None:
    """Each process asks twice a second: all topics of a large cluster are a processor's work."""
    await apply(settings, ())
    async with reader(settings) as consumer:
        client = consumer._client
        await client.force_metadata_update()
        assert client.cluster.brokers()
        assert client.cluster.topics() == set()
        requests = f"{settings.topic_prefix}.requests"
        assert requests in (await client.fetch_all_metadata()).topics()
        await client.set_topics([requests])
        assert client.cluster.topics() == {requests}


@pytest.mark.kafka
async def test_the_first_client_of_a_process_asks_for_all(settings: Settings) -> None:
    async with (
        reader(settings) as first_consumer,
        reader(settings) as second_consumer,
        reader(settings) as third_consumer,
    ):
        first, second, third = (
            consumer._client for consumer in (first_consumer, second_consumer, third_consumer)
        )
        for client in (first, second, third):
            await client.force_metadata_update()
        assert first._metadata_max_age_ms == broker_loss.WATCH_MS
        assert second._metadata_max_age_ms == broker_loss.METADATA_MS
        assert first._known == second._known == {1}
        # It is told of a change that the first has seen, and asks itself.
        first._known, second._known = frozenset({1, 2}), frozenset({1, 2})
        await first.force_metadata_update()
        await second._md_update_fut
        assert second._known == {1}
        await first_consumer.stop()
        await second._md_update_fut
        assert second._metadata_max_age_ms == broker_loss.WATCH_MS
        assert third._metadata_max_age_ms == broker_loss.METADATA_MS


async def test_a_task_that_is_cancelled_as_its_answer_comes_ends() -> None:
    answer: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asking = asyncio.create_task(broker_loss.soon(answer))
    await asyncio.sleep(0)
    answer.set_result("told")
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking


class _Moved(Connection):
    """A connection to where brokers tell of themselves that they are elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Any] = []

    async def send(self, request: Any) -> Any:
        self.asked.append(request)
        return MetadataResponse_v0([(1, "new", 9)], [])


async def test_where_no_broker_is_where_it_was_the_bootstrap_addresses_are_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    front, begun = _Moved(), list[str]()

    async def create(host: str, _port: int, **_options: Any) -> Connection:
        begun.append(host)
        if host != "front":
            raise ConnectionRefusedError
        return front

    monkeypatch.setattr(broker_loss, "_create_conn", create)
    monkeypatch.setattr(broker_loss, "_failed_at", {("front", 5): 1.0})
    # Once it was the address of a broker, too.
    monkeypatch.setattr(broker_loss, "_lost", {("front", 5)})
    monkeypatch.setattr(broker_loss, "RECONNECT_S", 0.0)
    broker_loss.client_options(Settings())
    client = broker_loss._Client(bootstrap_servers="old:1,gone:4,front:5")
    told(client, (1, "old", 1), (2, "older", 2))
    assert await client._metadata_update(client.cluster, ["requests"])
    assert {(b.nodeId, b.host) for b in client.cluster.brokers()} == {(1, "new")}
    assert sorted(begun) == ["front", "gone", "old", "older"], "each is asked once"
    assert [list(request._topics) for request in front.asked] == [["requests"]]
    assert front.reasons
    assert not client._conns


async def test_no_bootstrap_address_is_asked_while_a_broker_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[str] = []

    async def create(host: str, _port: int, **_options: Any) -> Connection:
        begun.append(host)
        return _Moved()

    monkeypatch.setattr(broker_loss, "_create_conn", create)
    monkeypatch.setattr(broker_loss, "_failed_at", {})
    monkeypatch.setattr(broker_loss, "_lost", set())
    broker_loss.client_options(Settings())
    client = broker_loss._Client(bootstrap_servers="front:5")
    told(client, (1, "old", 1))
    assert await client._metadata_update(client.cluster, [])
    assert begun == ["old"]


NAMED = [(1, "one", 1), (2, "two", 2)]


@pytest.fixture
def opening(monkeypatch: pytest.MonkeyPatch) -> asyncio.Queue[str]:
    """Connections to ``two`` hang as they open; the hosts to which one was begun."""
    begun: asyncio.Queue[str] = asyncio.Queue()

    async def create(host: str, _port: int, **_options: Any) -> Connection:
        begun.put_nowait(host)
        if host == "two":
            await asyncio.Event().wait()
        return Connection()

    monkeypatch.setattr(broker_loss, "_create_conn", create)
    monkeypatch.setattr(broker_loss, "_failed_at", {})
    monkeypatch.setattr(broker_loss, "_lost", set())
    monkeypatch.setattr(broker_loss, "RECONNECT_S", 0.0)
    broker_loss.client_options(Settings())
    return begun


def named(*brokers: tuple[int, str, int]) -> broker_loss._Client:
    """Return a client that knows these brokers."""
    client = broker_loss._Client(bootstrap_servers="one:1")
    told(client, *brokers)
    return client


def told(client: broker_loss._Client, *brokers: tuple[int, str, int]) -> None:
    client.cluster.update_metadata(MetadataResponse_v0(list(brokers), []))
    client._look_round(client.cluster)


async def test_a_connection_that_hangs_keeps_nobody_from_another_broker(
    opening: asyncio.Queue[str],
) -> None:
    client = named(*NAMED)
    hanging = asyncio.create_task(client.ready(2))
    async with asyncio.timeout(90):
        assert await opening.get() == "two"
        assert await client.ready(1)
    assert not hanging.done()
    hanging.cancel()


async def test_nobody_waits_for_a_broker_that_another_client_knows_is_gone(
    opening: asyncio.Queue[str],
) -> None:
    client, other = named(*NAMED), named(*NAMED)
    hanging = asyncio.create_task(client.ready(2))
    assert await opening.get() == "two"
    told(other, *NAMED[:1])
    # A third says so while that ends.
    await asyncio.sleep(0)
    broker_loss._give_up(frozenset({("two", 2)}))
    async with asyncio.timeout(90):
        # What was begun is given up, and nothing is begun anew, though the client names it still.
        assert not await hanging
        assert not await client.ready(2)
        assert opening.empty()
        # It is back.
        told(other, *NAMED)
        again = asyncio.create_task(client.ready(2))
        assert await opening.get() == "two"
    again.cancel()


def test_a_client_that_was_left_open_when_its_loop_ended_is_asked_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(broker_loss, "_clients", weakref.WeakValueDictionary())

    async def leave() -> tuple[broker_loss._Client, float]:
        client = broker_loss._Client(bootstrap_servers="127.0.0.1:1")
        client._sync_task = asyncio.create_task(asyncio.sleep(0))
        client._answered_at -= 100
        return client, broker_loss.silent_s()

    left, before = asyncio.run(leave())
    assert before >= 100
    assert broker_loss.silent_s() == 0
    del left


@pytest.mark.kafka
async def test_brokers_are_silent_for_as_long_as_none_answers_any_client(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(broker_loss, "_clients", weakref.WeakValueDictionary())
    assert broker_loss.silent_s() == 0
    async with reader(settings) as one, reader(settings) as other:
        clients = one._client, other._client
        for client in clients:
            # Else they ask by themselves.
            client._sync_task.cancel()
            client._answered_at -= 100
        clients[0]._answered_at -= 100
        assert 100 <= broker_loss.silent_s() < 150
        await clients[0].fetch_all_metadata()
        assert broker_loss.silent_s() < 50
    assert broker_loss.silent_s() == 0


@pytest.mark.kafka
async def test_a_consumer_is_closed_though_a_fetch_waits_for_a_broker_that_is_gone(
    settings: Settings,
) -> None:
    """Else whoever stops it is taken for cancelled: a gateway that was told to stop had failed."""
    async with reader(settings) as consumer:
        await consumer._client.fetch_all_metadata()
        # The fetcher has begun by now.
        waiting = asyncio.create_task(asyncio.sleep(60))
        consumer._fetcher._pending_tasks.add(waiting)
        connections = list(consumer._client._conns.values())
    assert waiting.cancelled()
    assert connections
    assert not any(each.connected() for each in connections)
