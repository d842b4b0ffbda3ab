"""A Kafka of several nodes: it keeps what it has when one dies, and all of them end together."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from processes import lives

from topics.embedded_broker.broker import BrokerError, EmbeddedBroker
from topics.embedded_broker.cluster import EmbeddedCluster

CLI = "import typer; from shunter.commands.broker import broker; typer.run(broker)"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


async def create(bootstrap_servers: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=3)])
    finally:
        await admin.close()


async def write(bootstrap_servers: str, topic: str, value: bytes) -> None:
    async with AIOKafkaProducer(bootstrap_servers=bootstrap_servers, acks="all") as producer:
        for partition in range(3):
            await producer.send_and_wait(topic, value, partition=partition)


async def read(bootstrap_servers: str, topic: str) -> list[tuple[int, bytes]]:
    async with AIOKafkaConsumer(bootstrap_servers=bootstrap_servers) as consumer:
        partitions = [TopicPartition(topic, number) for number in range(3)]
        consumer.assign(partitions)
        await consumer.seek_to_beginning(*partitions)
        ends = await consumer.end_offsets(partitions)
        found = [await consumer.getone() for _ in range(sum(ends.values()))]
    return sorted((record.partition, record.value) for record in found)


@pytest.mark.slow
@pytest.mark.kafka
async def test_what_two_of_three_have_outlives_a_node_and_a_restart_of_all(tmp_path: Path) -> None:
    """The second start is the command's, which tells where the nodes are and of one that ends."""
    told: list[str] = []
    cluster = EmbeddedCluster(3, data_dir=tmp_path / "kafka", announce=told.append)
    with cluster:
        servers = cluster.bootstrap_servers
        assert len(set(servers.split(","))) == 3
        assert {line.split(" answers")[0] for line in told[1:]} == {"node 1", "node 2", "node 3"}
        await create(servers, "kept")
        await write(servers, "kept", b"before")
        first, second, third = cluster.nodes
        first.kill()
        assert (first.running, second.running, third.running) == (False, True, True)
        living = f"{second.bootstrap_servers},{third.bootstrap_servers}"
        await write(living, "kept", b"while one is dead")
        first.start()
    assert not any(node.running for node in cluster.nodes)

    where = ("--port", "0", "--nodes", "3", "--data-dir", str(tmp_path / "kafka"), "--json")
    with subprocess.Popen(  # noqa: ASYNC220  nothing else waits meanwhile
        [sys.executable, "-c", CLI, *where],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as command:
        assert command.stdout is not None
        assert command.stderr is not None
        started = orjson.loads(command.stdout.readline())
        again = started["bootstrap_servers"]
        assert len(set(again.split(","))) == 3
        assert again != servers
        assert await read(again, "kept") == [
            (number, value) for number in range(3) for value in (b"before", b"while one is dead")
        ]
        os.kill(started["nodes"][1]["pid"], signal.SIGKILL)
        said = ""
        while "node 2 has ended" not in said:
            line = command.stderr.readline()
            assert line, said
            said += line
        assert command.poll() is None
        command.send_signal(signal.SIGTERM)
        _, rest = command.communicate(timeout=60)
    assert command.returncode == 0, said + rest
    assert rest.endswith("Apache Kafka has stopped.\n")
    assert not any(lives(node["pid"]) for node in started["nodes"])


@pytest.mark.kafka
def test_a_node_that_can_not_start_ends_the_others(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        cluster = EmbeddedCluster(2, port=other.getsockname()[1] - 1)
        with pytest.raises(BrokerError, match=r"can't listen on"):
            cluster.start()
    assert not any(node.running for node in cluster.nodes)


def test_data_of_another_number_of_nodes_is_left_alone(tmp_path: Path) -> None:
    for number in (1, 2, 3):
        (tmp_path / f"node-{number}" / "data").mkdir(parents=True)
    with pytest.raises(BrokerError, match="a Kafka of 3 nodes, not 2; start it with --nodes 3"):
        EmbeddedCluster(2, data_dir=tmp_path)
    with pytest.raises(BrokerError, match="a Kafka of 3 nodes, not 1; start it with --nodes 3"):
        EmbeddedBroker(data_dir=tmp_path).start()


def test_data_of_one_node_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(BrokerError, match="of a Kafka of 1 nodes, not 3"):
        EmbeddedCluster(3, data_dir=tmp_path)
