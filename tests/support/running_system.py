"""A whole Shunter of real processes on a real Kafka, small and fast, for tests."""

import asyncio
import copy
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import orjson
import yaml
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from evidence_cases import named
from forked import FORKER, Forked

from streams.config.declarations import load_policy
from streams.kafka.idempotent_producer import started_producer
from streams.kafka.reader import close_consumer
from topics import Catalogue, Settings
from topics.admin import provisioning

ROOT = Path(__file__).parents[2]
SPEED = 20.0

FLEET = {
    "pools": {
        "premium-eu": {
            "device": "h200",
            "count": 1,
            "region": "eu-west",
            "serves": [
                {
                    "model": "llama-3.1-8b",
                    "variant": "llama-3.1-8b-fp8",
                    "precision": "fp8",
                    "max_batch": 64,
                }
            ],
            "backend": {"type": "simulated", "time_scale": SPEED},
        },
        "lpddr-us": {
            "device": "crescent-island",
            "count": 2,
            "region": "us-east",
            "lanes": ["batch"],
            "serves": [
                {
                    "model": "llama-3.1-8b",
                    "variant": "llama-3.1-8b-int8",
                    "precision": "int8",
                    "max_batch": 32,
                }
            ],
            "backend": {"type": "simulated", "time_scale": SPEED},
        },
    }
}


# No worker of it runs in tests that use it: what only it may serve is held.
ABSENT = "absent-us"
FLEET_WITH_ABSENT = {
    "pools": FLEET["pools"] | {ABSENT: copy.deepcopy(FLEET["pools"]["lpddr-us"])},
}
# Topic, partition and offset of a record.
Place = tuple[str, int, int]


async def eventually(
    check: Callable[[], Awaitable[bool]], what: str, timeout_s: float = 90.0
) -> None:
    """Wait until the check holds."""
    end_at = time.monotonic() + timeout_s
    while not await check():
        if time.monotonic() > end_at:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        await asyncio.sleep(0.05)


_SKEWED = """
import sys, time
right = time.time
time.time = lambda: right() + {ahead_s}
from shunter.cli import main
main()
"""


def _program(ahead_s: float | None) -> list[str]:
    """The command line of Shunter, perhaps as on a host whose clock is ahead by so much."""
    return ["-m", "shunter"] if ahead_s is None else ["-c", _SKEWED.format(ahead_s=ahead_s)]


@dataclass
class System:
    """Topics, router and workers under one prefix. Processes are real and can be killed."""

    bootstrap_servers: str
    prefix: str
    directory: Path
    fleet: dict[str, Any] = field(default_factory=lambda: FLEET)
    extra_env: dict[str, str] = field(default_factory=dict)
    policy_speed: float = SPEED
    policy_changes: dict[str, Any] = field(default_factory=dict)
    """Members of the policy in place of the packaged ones, at the speed of the run."""
    env_of: dict[str, dict[str, str]] = field(default_factory=dict)
    ahead_s_of: dict[str, float] = field(default_factory=dict)
    """How far the clocks of processes are ahead of that of Kafka, by name."""
    stop_s_max: float = 60.0
    has_names: bool = True
    """Whether each process is given a name of its own."""
    code_of: dict[str, Path] = field(default_factory=dict)
    """The tree that a process is started from, where it is another version than this one."""

    def __post_init__(self) -> None:
        self.settings = Settings(bootstrap_servers=self.bootstrap_servers, topic_prefix=self.prefix)
        self.catalogue = Catalogue(self.settings)
        self.kills = 0
        self.processes: dict[str, Forked | subprocess.Popen[bytes]] = {}
        self.results: dict[str, list[dict[str, Any]]] = {}
        self.dead_letters: list[Any] = []
        self.evidence: list[dict[str, Any]] = []

    @property
    def env(self) -> dict[str, str]:
        """The variables by which any command finds the system."""
        return {
            "SHUNTER_BOOTSTRAP_SERVERS": self.bootstrap_servers,
            "SHUNTER_TOPIC_PREFIX": self.prefix,
        }

    async def __aenter__(self) -> Self:
        (self.directory / "fleet.yaml").write_text(yaml.safe_dump(self.fleet))
        policy = load_policy(None).faster(self.policy_speed)
        changed = policy.model_dump(mode="json", exclude_none=True) | self.policy_changes
        dumped = yaml.safe_dump(changed)
        (self.directory / "policy.yaml").write_text(dumped)
        await provisioning.apply(self.settings, self.fleet["pools"])
        self.producer = await self.new_producer()
        self.consumer = AIOKafkaConsumer(
            self.catalogue.results,
            self.catalogue.dead_letters,
            self.catalogue.evidence,
            bootstrap_servers=self.bootstrap_servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        await self.consumer.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.producer.stop()
        await close_consumer(self.consumer)
        try:
            # After a failure how they end says nothing more, and would hide what it was.
            if error is None:
                await asyncio.to_thread(self.stop)
        finally:
            for name in self.processes:
                self.kill(name)

    async def new_producer(self) -> AIOKafkaProducer:
        """Start a client that publishes."""
        return await started_producer(self.settings, max_request_size=8_000_000)

    def start(self, *names: str) -> None:
        """Start processes: ``router`` (or ``router-b`` and so on), ``pool`` (or ``pool#1``).

        ``pool#evacuate`` evacuates the pool.
        """
        for name in names:
            pool, _, which = name.partition("#")
            arguments = ["router"] if name.startswith("router") else ["worker", pool]
            if which == "evacuate":
                arguments.append("--evacuate")
            own = {
                "SHUNTER_FLEET": str(self.directory / "fleet.yaml"),
                "SHUNTER_POLICY": str(self.directory / "policy.yaml"),
                **({"SHUNTER_INSTANCE": f"{name}-0"} if self.has_names else {}),
                **self.extra_env,
                **self.env_of.get(name, {}),
            }
            with (self.directory / f"{name}.log").open("ab") as log:
                self.processes[name] = self._started(name, arguments, own, log.fileno())

    def _started(
        self, name: str, arguments: list[str], own: dict[str, str], log: int
    ) -> Forked | subprocess.Popen[bytes]:
        """Start a process; one whose imports could differ makes them itself."""
        ahead_s, code = self.ahead_s_of.get(name), self.code_of.get(name, ROOT)
        env = os.environ | {"PYTHONPATH": str(code)} | self.env | own
        if ahead_s is None and code == ROOT and all(each.startswith("SHUNTER_") for each in own):
            return FORKER.start(arguments, env, stderr=log)
        program = [sys.executable, *_program(ahead_s), *arguments]
        return subprocess.Popen(program, cwd=code, stderr=log, env=env)

    def start_all(self) -> None:
        """Start the router and a worker per pool."""
        self.start("router", *self.fleet["pools"])

    async def warm_up(self) -> None:
        """Wait until a request is served, however long the processes take to start."""
        await self.publish(chat("warm-up", deadline=time.time() + 120))
        await self.wait_for_results(["warm-up"], timeout_s=120)

    def kill(self, name: str) -> None:
        """Kill a process without a word."""
        self.kills += 1
        self.processes[name].kill()
        self.processes[name].wait()

    def stop(self, timeout_s: float | None = None) -> dict[str, int]:
        """Stop every process with SIGTERM and return the exit statuses."""
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        statuses = {}
        for name, process in list(self.processes.items()):
            statuses[name] = process.wait(timeout_s or self.stop_s_max)
            del self.processes[name]
        return statuses

    def logs(self) -> str:
        """Return what the processes logged, for a failure's message."""
        parts = [f"--- {p.name}\n{p.read_text()[-3000:]}" for p in self.directory.glob("*.log")]
        return "\n".join(parts)

    async def publish(
        self,
        value: bytes | dict[str, Any] | None,
        *,
        key: bytes | None = None,
        headers: Sequence[tuple[str, bytes]] = (),
        partition: int | None = None,
    ) -> None:
        """Publish a record to the ingest topic."""
        if isinstance(value, dict):
            key = key or str(value.get("id", value.get("custom_id", ""))).encode()
            value = orjson.dumps(value)
        await self.producer.send_and_wait(
            self.catalogue.requests,
            value,
            key=key,
            headers=list(headers),
            partition=partition,
        )

    async def read(self) -> None:
        """Take in what has become visible."""
        polled = await self.consumer.getmany(timeout_ms=100)
        for partition, records in polled.items():
            for record in records:
                if partition.topic == self.catalogue.dead_letters:
                    self.dead_letters.append(record)
                elif partition.topic == self.catalogue.results:
                    result = orjson.loads(record.value)
                    self.results.setdefault(result["id"], []).append(result)
                else:
                    self.evidence.append(named(record.value))

    async def catch_up(self) -> None:
        """Take in all that is visible by now; evidence of a result may be read after it."""
        ends = await self.consumer.end_offsets(self.consumer.assignment())
        for partition, end in ends.items():
            while await self.consumer.position(partition) < end:
                await self.read()

    async def wait_for_results(self, ids: Iterable[str], timeout_s: float = 60.0) -> None:
        """Wait until each of these requests has a result."""
        wanted = set(ids)

        async def all_there() -> bool:
            await self.read()
            return wanted <= self.results.keys()

        try:
            await eventually(all_there, "every request has a result", timeout_s)
        except AssertionError as error:
            missing = sorted(wanted - self.results.keys())
            told = f"{error}; {len(missing)} missing: {missing[:5]}\n{self.logs()}"
            raise AssertionError(told) from error
        await self.catch_up()

    def result(self, request_id: str) -> dict[str, Any]:
        """Return the one result of a request."""
        (result,) = self.results[request_id]
        return result

    async def wait_for_steps(self, request_id: str, *steps: str) -> None:
        """Wait until there is evidence of these steps, in any order, and see that it is all.

        The topics of one transaction become visible one after another.
        """

        async def all_there() -> bool:
            await self.read()
            return len(self.steps(request_id)) >= len(steps)

        try:
            await eventually(all_there, f"{request_id} has {steps}")
        except AssertionError as error:
            found = self.steps(request_id)
            raise AssertionError(f"{error}, but {found}\n{self.logs()}") from error
        found = sorted(self.steps(request_id))
        assert found == sorted(steps), f"{request_id} has {found}\n{self.logs()}"

    def reasons(self) -> dict[Place, list[str]]:
        """Return the reasons of all dead letters, by where their records stood."""
        found: dict[Place, list[str]] = {}
        for letter in self.dead_letters:
            reason = dict(letter.headers)["shunter-reason"].decode()
            found.setdefault(place_of(letter), []).append(reason)
        return found

    def ended(self) -> list[str]:
        """Return the processes that have ended by themselves."""
        return [name for name, process in self.processes.items() if process.poll() is not None]

    def steps(self, request_id: str) -> list[str]:
        """Return the steps of which there is evidence, in the order they became visible."""
        return [e["step"] for e in self.evidence if e["request_id"] == request_id]


def chat(request_id: str, **fields: Any) -> dict[str, Any]:
    """Return a small chat request."""
    body = {
        "model": "llama-3.1-8b",
        "messages": [{"role": "user", "content": "Which track does this wagon go to?"}],
        "max_tokens": 64,
    }
    return {"id": request_id, "body": body} | fields


def held_chat(request_id: str) -> dict[str, Any]:
    """Return a request that is held until it is cancelled, in a fleet with ABSENT."""
    return chat(
        request_id,
        task="synthetic_data",
        hints={"batchable": True},
        constraints={"pools": [ABSENT]},
        deadline=time.time() + 600,
    )


def place_of(letter: Any) -> Place:
    """Return where the record of a dead letter stood."""
    told = dict(letter.headers)
    topic, partition, offset = (
        told[f"__connect.errors.{name}"].decode() for name in ("topic", "partition", "offset")
    )
    return topic, int(partition), int(offset)


# Only this client's Python parser can send a header name that is not UTF-8.
_UNREADABLE = """
import asyncio, sys
from aiokafka import AIOKafkaProducer
class NotText(str):
    def encode(self, *_): return b"\\xff\\xfe"
async def main(servers, topic, key, value):
    async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
        await producer.send_and_wait(
            topic, value.encode(), key=key.encode(), partition=0, headers=[(NotText("x"), b"v")])
asyncio.run(main(*sys.argv[1:]))
"""


async def publish_unreadable(system: System, topic: str, key: bytes, value: bytes) -> None:
    """Publish a record to partition 0 that the Kafka client of Shunter can't decode."""
    publisher = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        _UNREADABLE,
        system.bootstrap_servers,
        topic,
        key.decode(),
        value.decode(),
        env=os.environ | {"AIOKAFKA_NO_EXTENSIONS": "1"},
    )
    assert await publisher.wait() == 0


async def records_of(system: System, topic: str) -> list[Any]:
    """All records of a topic, read by the test itself."""
    consumer = AIOKafkaConsumer(
        topic,
        bootstrap_servers=system.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
    )
    await consumer.start()
    try:
        found: list[Any] = []
        for partition, end in (await consumer.end_offsets(consumer.assignment())).items():
            while await consumer.position(partition) < end:
                polled = await consumer.getmany(timeout_ms=100)
                found += [record for records in polled.values() for record in records]
        return found
    finally:
        await consumer.stop()
