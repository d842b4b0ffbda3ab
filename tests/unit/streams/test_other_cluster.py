"""A bootstrap name that leads to another cluster: nobody follows it there."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from aiokafka.client import ConnectionGroup
from aiokafka.protocol.metadata import MetadataResponse_v2
from aiokafka.structs import BrokerMetadata
from proxy import Proxy

from streams.hosting.readiness import no_broker
from streams.kafka import broker_loss
from streams.kafka.cluster_identity import OtherClusterError, identity_of
from streams.kafka.reader import reader
from topics import Settings
from topics.embedded_broker.broker import EmbeddedBroker
from topics.embedded_broker.settings import free_port


def told(cluster: str | None, *brokers: tuple[int, str, int]) -> MetadataResponse_v2:
    return MetadataResponse_v2([(*each, None) for each in brokers], cluster, 1, [])


class Broker:
    """A connection to a broker that tells of its cluster."""

    def __init__(self, host: str, port: int, cluster: str | None) -> None:
        self.host, self.port, self.cluster = host, port, cluster
        self.is_open = True

    def connected(self) -> bool:
        return self.is_open

    async def send(self, _request: Any) -> MetadataResponse_v2:
        return told(self.cluster, (1, self.host, self.port))

    def close(self, reason: Any = None) -> None:
        self.is_open = False


@pytest.fixture
def clusters(monkeypatch: pytest.MonkeyPatch) -> dict[str, str | None]:
    """The cluster of each host that there is; others refuse."""
    there: dict[str, str | None] = {}

    async def create(host: str, port: int, **_options: Any) -> Broker:
        if host not in there:
            raise ConnectionRefusedError
        return Broker(host, port, there[host])

    monkeypatch.setattr(broker_loss, "_create_conn", create)
    monkeypatch.setattr(broker_loss, "_failed_at", {})
    monkeypatch.setattr(broker_loss, "_lost", set())
    monkeypatch.setattr(broker_loss, "RECONNECT_S", 0.0)
    broker_loss.client_options(Settings())
    return there


def hosts(client: broker_loss._Client) -> set[str]:
    return {broker.host for broker in client.cluster.brokers()}


async def update(client: broker_loss._Client) -> bool:
    return await client._metadata_update(client.cluster, [])


async def test_brokers_of_another_cluster_are_not_learned_and_nothing_is_sent_to_them(
    clusters: dict[str, str | None], caplog: pytest.LogCaptureFixture
) -> None:
    client = broker_loss._Client(bootstrap_servers="front:5")
    client.cluster.update_metadata(told("mine", (1, "old", 1)))
    clusters["old"] = "mine"
    assert await update(client)
    assert await client.ready(1)
    # All of it is gone, and its name leads elsewhere.
    client._drop_all()
    del clusters["old"]
    clusters["front"] = "theirs"
    for _ in range(3):
        assert not await update(client)
    assert hosts(client) == {"old"}
    assert not client._conns
    (line,) = [
        each
        for each in caplog.records
        if each.levelname == "ERROR" and "mine" in each.msg % each.args
    ]
    assert all(word in line.getMessage() for word in ("front:5", "mine", "theirs", "restart"))
    assert no_broker() == line.getMessage()
    # Even where the other is at its brokers' own addresses.
    clusters["old"] = "theirs"
    assert not await client.ready(1)
    assert not await update(client)
    clusters["old"] = "mine"
    assert await update(client)
    assert await client.ready(1)
    assert no_broker() is None


async def test_a_broker_at_its_old_address_that_is_of_another_cluster_is_left_at_once(
    clusters: dict[str, str | None],
) -> None:
    client = broker_loss._Client(bootstrap_servers="front:5")
    client.cluster.update_metadata(told("mine", (1, "old", 1)))
    clusters |= {"old": "theirs", "front": "theirs"}
    assert await client.ready(1)
    connection = client._conns[1, ConnectionGroup.DEFAULT]
    beside = broker_loss._Client(bootstrap_servers="front:5")
    beside.cluster.update_metadata(told("mine", (1, "old", 1)))
    assert not await update(client)
    assert not connection.connected()
    assert not await beside.ready(1), "each client of the process knows it"


async def test_answers_without_an_id_and_other_bootstrap_servers_are_not_compared(
    clusters: dict[str, str | None],
) -> None:
    client = broker_loss._Client(bootstrap_servers="front:5")
    client.cluster.update_metadata(told("mine", (1, "old", 1)))
    clusters["old"] = None
    assert await update(client)
    elsewhere = broker_loss._Client(bootstrap_servers="elsewhere:5")
    elsewhere.cluster.update_metadata(told("theirs", (1, "other", 1)))
    assert hosts(elsewhere) == {"other"}
    assert elsewhere.cluster.broker_metadata(1) == BrokerMetadata(1, "other", 1, None)
    assert no_broker() is None


async def eventually(is_so: Callable[[], bool]) -> None:
    for _ in range(900):
        if is_so():
            return
        await asyncio.sleep(0.1)
    pytest.fail("it is not so in 90 s")


@pytest.mark.kafka
async def test_a_name_that_leads_to_another_kafka_is_not_followed_until_it_leads_back(
    tmp_path: Path,
) -> None:
    with (
        EmbeddedBroker(data_dir=tmp_path) as mine,
        EmbeddedBroker() as theirs,
        Proxy(free_port(), mine.port) as front,
    ):
        settings = Settings(bootstrap_servers=f"127.0.0.1:{front.port}")
        identity = identity_of(asyncio.get_running_loop(), settings.bootstrap_servers)
        async with reader(settings) as consumer:
            client = consumer._client
            front._target_port = theirs.port
            await asyncio.to_thread(mine.stop)
            await eventually(lambda: identity.is_away)
            with pytest.raises(OtherClusterError, match="restart it"):
                async with reader(settings):
                    pytest.fail("it has connected")
            assert {broker.port for broker in client.cluster.brokers()} == {mine.port}
            assert not await client.ready(1)
            await asyncio.to_thread(mine.start)
            await eventually(lambda: not identity.is_away)
            assert await client.ready(1)
