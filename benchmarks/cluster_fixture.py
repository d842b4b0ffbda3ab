"""Measuring ground: a real broker, topics of one prefix, a backlog, what becomes visible."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import GroupCoordinatorNotAvailableError

from benchmarks.workload import heartbeats
from policies import Options
from topics import Catalogue, Settings, encode, status_key
from topics.admin import provisioning

ROOT = Path(__file__).parents[1]
PARTITIONS = 4
LOOK_EVERY_S = 0.02
# Of all that will become visible, the share that is left out as the start.
WARM = 0.15
STALLED_S = 30.0


@dataclass
class Ground:
    """Topics under one prefix, and the processes started on them."""

    servers: str
    prefix: str
    directory: Path
    partitions: int = PARTITIONS
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.settings = Settings(
            bootstrap_servers=self.servers, topic_prefix=self.prefix, partitions=self.partitions
        )
        self.catalogue = Catalogue(self.settings)

    async def apply(self, pools: Collection[str]) -> None:
        """Create the topics of a fleet of these pools."""
        await provisioning.apply(self.settings, pools)

    def producer(self) -> AIOKafkaProducer:
        """Return a producer for the backlog."""
        return AIOKafkaProducer(
            bootstrap_servers=self.servers,
            linger_ms=5,
            max_batch_size=1 << 20,
            max_request_size=1 << 23,
        )

    async def delete(self) -> None:
        """Delete the topics to free the disk for the next round."""
        client = AIOKafkaAdminClient(bootstrap_servers=self.servers)
        await client.start()
        try:
            ours = f"{self.prefix}."
            names = [name for name in await client.list_topics() if name.startswith(ours)]
            await client.delete_topics(names)
        finally:
            await client.close()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[bytes]:
        """Start a Python module with these arguments; its output goes to its own file."""
        ours = {
            "SHUNTER_BOOTSTRAP_SERVERS": self.servers,
            "SHUNTER_TOPIC_PREFIX": self.prefix,
            "SHUNTER_PARTITIONS": str(self.partitions),
            "SHUNTER_LOG_LEVEL": "warning",
        }
        name = f"{self.prefix}-{len(self.processes)}.log"
        with (self.directory / name).open("wb") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=ROOT,
                env=os.environ | ours | environment,
                stdout=log,
                stderr=log,
            )
        self.processes.append(process)
        return process

    def require_alive(self) -> None:
        """Raise RuntimeError with the last output of a process that has ended."""
        for number, process in enumerate(self.processes):
            if process.poll() is not None:
                what = f"{process.args} ended with {process.returncode}"
                raise RuntimeError(f"{what}: {self.last_words(number)}")

    def last_words(self, number: int) -> str:
        """Return the end of a process's output."""
        return (self.directory / f"{self.prefix}-{number}.log").read_text()[-2000:]

    def stop(self) -> None:
        """End the started processes."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
        for process in self.processes:
            with suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()
        self.processes.clear()


@contextmanager
def ground(
    servers: str, prefix: str, directory: Path, partitions: int = PARTITIONS
) -> Iterator[Ground]:
    """Yield the ground of this prefix, and end its processes."""
    found = Ground(servers, prefix, directory, partitions)
    try:
        yield found
    finally:
        found.stop()


async def publish(here: Ground, topic: str, values: Sequence[bytes]) -> None:
    """Publish values to the topic's partitions in turn."""
    producer = here.producer()
    await producer.start()
    try:
        for number, value in enumerate(values):
            await producer.send(topic, value, b"%d" % number, partition=number % here.partitions)
        await producer.flush()
    finally:
        await producer.stop()


async def shared_out(here: Ground, group: str, members: int) -> None:
    """Wait until a group has this many members and its partitions are assigned."""
    client = AIOKafkaAdminClient(bootstrap_servers=here.servers)
    await client.start()
    try:
        end_at = time.monotonic() + STALLED_S
        while time.monotonic() < end_at:
            here.require_alive()
            # A group's coordinator is not known before it has a member.
            with suppress(GroupCoordinatorNotAvailableError):
                (answer,) = await client.describe_consumer_groups([group])
                # Each has: error, name, state, protocol type, protocol, members, ...
                ((_, _, state, _, _, found, *_),) = answer.groups
                if state == "Stable" and len(found) == members:
                    return
            await asyncio.sleep(0.2)
        raise RuntimeError(f"{group} has not {members} members after {STALLED_S} s")
    finally:
        await client.close()


async def beat(here: Ground, options: Options, *, once: bool = False) -> None:
    """Report every pool as live and idle, each second, until cancelled."""
    producer = AIOKafkaProducer(bootstrap_servers=here.servers)
    await producer.start()
    try:
        while True:
            for status in heartbeats(options, time.time()):
                key = status_key(status.pool, status.instance)
                await producer.send(here.catalogue.pool_status, encode(status), key)
            await producer.flush()
            if once:
                return
            await asyncio.sleep(1.0)
    finally:
        await producer.stop()


@dataclass(frozen=True)
class Pace:
    """The rate from the time at which a part of the records was visible until all were.

    Attributes:
        per_s: records per second.
        seconds: duration.
        used: growth of each metered value meanwhile.
    """

    per_s: float
    seconds: float
    used: tuple[float, ...] = ()


class Watch:
    """The number of records of some topics visible to a ``read_committed`` reader.

    It uses the last stable offsets, which cost the broker and this process next to nothing; they
    include the markers that transactions leave among the records.
    """

    def __init__(self, here: Ground, topics: Collection[str]) -> None:
        self._here = here
        self._passed_over = 0
        self._wanted = [
            TopicPartition(topic, number) for topic in topics for number in range(here.partitions)
        ]
        self._reader = AIOKafkaConsumer(
            bootstrap_servers=here.servers, isolation_level="read_committed"
        )

    async def __aenter__(self) -> Self:
        await self._reader.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._reader.stop()

    async def visible(self) -> int:
        """Return the sum of the last stable offsets, less the skipped records."""
        return sum((await self._reader.end_offsets(self._wanted)).values()) - self._passed_over

    async def pass_over(self, records: int) -> None:
        """Wait until this many records are visible and no more come, and count from there."""
        end_at = time.monotonic() + STALLED_S
        before = -1
        while (now := await self.visible()) < records or now != before:
            if time.monotonic() > end_at:
                raise RuntimeError(f"{now} of {records} in {STALLED_S} s")
            self._here.require_alive()
            before = now
            await asyncio.sleep(0.5)
        self._passed_over += now

    async def pace(self, records: int, meter: Callable[[], tuple[float, ...]] = lambda: ()) -> Pace:
        """Wait until all these records are visible and return their rate.

        It counts from the time at which a part of them was visible, so that neither the time nor
        the metered values include the start of a process.
        """
        points: list[tuple[float, int, tuple[float, ...]]] = []
        while True:
            points.append((time.perf_counter(), await self.visible(), meter()))
            if points[-1][1] >= records and self._stands(points):
                break
            if points[-1][0] - self._last_growth(points) > STALLED_S:
                words = "\n".join(map(self._here.last_words, range(len(self._here.processes))))
                raise RuntimeError(f"{points[-1][1]} of {records} in {STALLED_S} s: {words}")
            self._here.require_alive()
            await asyncio.sleep(LOOK_EVERY_S)
        final = points[-1][1]
        end = next(n for n, point in enumerate(points) if point[1] >= 0.999 * final)
        begin = next(n for n, point in enumerate(points) if point[1] >= WARM * final)
        # All may have come between two looks.
        (began_at, before, had), (ended_at, after, has) = points[min(begin, end - 1)], points[end]
        seconds = ended_at - began_at
        used = tuple(now - then for then, now in zip(had, has, strict=True))
        return Pace((after - before) / final * records / seconds, seconds, used)

    @staticmethod
    def _stands(points: Sequence[tuple[float, int, tuple[float, ...]]]) -> bool:
        return len(points) > 15 and points[-15][1] == points[-1][1]

    @staticmethod
    def _last_growth(points: Sequence[tuple[float, int, tuple[float, ...]]]) -> float:
        return next(at for at, count, _ in points if count == points[-1][1])


def machine() -> Mapping[str, Any]:
    """Return the machine of the figures."""
    cpu = ""
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((x.partition(": ")[2] for x in lines if x.startswith("model name")), "")
    return {
        "cpu": cpu,
        "cores": os.cpu_count(),
        "python": sys.version.split()[0],
        "loop": os.environ.get("FAUST_LOOP", "aio"),
        "system": " ".join(os.uname()[i] for i in (0, 2, 4)),
        "load_before": os.getloadavg()[0],
    }
