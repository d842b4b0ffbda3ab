"""Faults: what is done to a running system, one at a time. The docstring is what the table says."""

import asyncio
import contextlib
import random
import resource
import signal
import subprocess
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from confluent_kafka.admin import (
    AclBinding,
    AclBindingFilter,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    NewPartitions,
    ResourcePatternType,
    ResourceType,
)
from load import Load
from proxy import Proxy
from running_system import System
from silent_pool import MUTE, MuteServer
from takeovers import Kill

from topics.admin import provisioning
from topics.embedded_broker.broker import EmbeddedBroker

POOLS = ("premium-eu", "lpddr-us")
ROUTERS = ("router", "router-b")
# Of the run: how long a silent member stays in its group, and a transaction may stay open.
SESSION_S, TRANSACTION_S = 6.0, 3.0
PARTITIONS_GROWN = 6
# Whoever comes in, by whatever door.
EVERYBODY = "User:*"


@dataclass(kw_only=True)
class Scene(ABC):
    """What a run has, whatever Kafka it is on."""

    system: System
    load: Load
    rng: random.Random
    resting: set[str] = field(default_factory=set)
    """Processes that the supervisor leaves alone."""
    kills: list[Kill] = field(default_factory=list)
    """Those that somebody takes over from."""

    @property
    @abstractmethod
    def bootstrap_servers(self) -> str:
        """Addresses for the operator, who is not behind a proxy."""

    @cached_property
    def kafka(self) -> AdminClient:
        """A client for the operator's work; what it was asked ends with it."""
        return AdminClient({"bootstrap.servers": self.bootstrap_servers, "log_level": 0})


@dataclass(kw_only=True)
class LoneScene(Scene):
    """All that a fault can do something to, on a Kafka of one broker."""

    broker: EmbeddedBroker
    proxy: Proxy
    server: MuteServer
    """The model server of a pool that has no worker but in its own fault."""

    @property
    def bootstrap_servers(self) -> str:
        """The address of the broker itself."""
        return self.broker.bootstrap_servers


Fault = Callable[[Any], Awaitable[None]]


async def kill_router(scene: Scene) -> None:
    """`kill -9` of a router with its batcher, started again at once"""
    name = scene.rng.choice(ROUTERS)
    killed(scene, name, in_place=True)
    scene.system.start(name)


async def kill_worker(scene: Scene) -> None:
    """`kill -9` of a worker, started again at once"""
    name = scene.rng.choice(POOLS)
    killed(scene, name, in_place=True)
    scene.system.start(name)


async def kill_all(scene: Scene) -> None:
    """`kill -9` of all routers and workers together, started again at once"""
    names = list(scene.system.processes)
    killed(scene, *names, in_place=True)
    scene.system.start(*names)


async def lose_router(scene: Scene) -> None:
    """`kill -9` of a router that stays away for 12 s: the other takes its partitions over"""
    with _resting(scene, scene.rng.choice(ROUTERS)) as name:
        killed(scene, name, in_place=False)
        await asyncio.sleep(2 * SESSION_S)
    scene.system.start(name)


async def stop_router(scene: Scene) -> None:
    """SIGSTOP of a router for 8 s, beyond its session timeout of 6 s, then SIGCONT"""
    await _freeze(scene.system, scene.rng.choice(ROUTERS), SESSION_S + 2)


async def stop_worker(scene: Scene) -> None:
    """SIGSTOP of a worker for 8 s, beyond its session timeout of 6 s, then SIGCONT"""
    await _freeze(scene.system, scene.rng.choice(POOLS), SESSION_S + 2)


async def time_transaction_out(scene: Scene) -> None:
    """SIGSTOP of a router for 4.5 s: beyond its transaction timeout of 3 s, within its session"""
    await _freeze(scene.system, scene.rng.choice(ROUTERS), TRANSACTION_S + 1.5)


async def restart_rolling(scene: Scene) -> None:
    """SIGTERM of every process, one after the other, each started again when it has ended"""
    for name in list(scene.system.processes):
        await _restart(scene, name)


async def shake_groups(scene: Scene) -> None:
    """Rebalance storm: a third router comes and goes 4 times in about 12 s"""
    with _resting(scene, "router-c") as name:
        for _ in range(4):
            scene.system.start(name)
            await asyncio.sleep(scene.rng.uniform(1.5, 3))
            scene.system.kill(name)
    del scene.system.processes[name]


async def silence_pool(scene: LoneScene) -> None:
    """A third pool, the cheapest, gets work and for 10 s answers nothing; then it is stopped"""
    server = scene.server
    with _resting(scene, MUTE) as name:
        scene.system.start(name)
        await _until(lambda: server.calls > 0, "the pool gets work")
        server.fall_silent()
        await asyncio.sleep(10)
        unanswered = server.calls
        await _end(scene.system, name)
        server.speak()
    del scene.system.processes[name]
    assert unanswered, "the pool that answers nothing was asked for nothing"


async def kill_broker(scene: LoneScene) -> None:
    """`kill -9` of the only broker, started again at once"""
    await asyncio.to_thread(scene.broker.kill)
    await asyncio.to_thread(scene.broker.start)


async def restart_broker(scene: LoneScene) -> None:
    """SIGTERM of the only broker, started again when it has ended"""
    await asyncio.to_thread(scene.broker.restart)


async def cut_connections(scene: LoneScene) -> None:
    """Every connection to the broker reset, and refused for 3 s"""
    scene.proxy.cut()
    await asyncio.sleep(3)
    scene.proxy.heal()


async def swallow_packets(scene: LoneScene) -> None:
    """Nothing passes between broker and processes for 12 s, and nothing is closed"""
    scene.proxy.swallow()
    await asyncio.sleep(12)
    scene.proxy.heal()


async def slow_the_link(scene: LoneScene) -> None:
    """For 10 s each packet 50 ms late each way, and 1 MB/s for each connection"""
    scene.proxy.slow_down(0.05, 1e6)
    await asyncio.sleep(10)
    scene.proxy.heal()


async def fill_the_disk(scene: LoneScene) -> None:
    """No room in the broker's log directory: each write fails, it stops, and starts with room"""
    pid = scene.broker.pid
    assert pid is not None
    _, most = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    # Kafka treats a file that may not grow as it does a full disk: the log directory is lost.
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, most))
    await _until(lambda: not scene.broker.running, "the broker stops")
    await asyncio.to_thread(scene.broker.start)


async def refuse_large(scene: LoneScene) -> None:
    """For 4 s a pool's topic takes no record above 20 kB, which one in 53 exceeds"""
    catalogue = scene.system.catalogue
    name = catalogue.pool_lane("premium-eu", "direct")
    (topic,) = (t for t in catalogue.topics(scene.system.fleet["pools"]) if t.name == name)
    await _limit_records(scene, name, 20_000)
    await asyncio.sleep(4)
    await _limit_records(scene, name, topic.bytes_max)


async def delete_topic(scene: LoneScene) -> None:
    """The dead-letter topic deleted, and created again after 5 s"""
    topic = scene.system.catalogue.dead_letters
    # What it holds is gone, and a reader that lags never sees it.
    scene.load.letters_deleted = True
    scene.load.bad = False
    await asyncio.sleep(5)
    await asyncio.to_thread(scene.kafka.delete_topics([topic])[topic].result)
    scene.load.bad = True
    await asyncio.sleep(5)
    await provisioning.apply(scene.system.settings, scene.system.fleet["pools"])


async def deny_results(scene: LoneScene) -> None:
    """The right to write results taken away for 5 s"""
    rule = (ResourceType.TOPIC, scene.system.catalogue.results, ResourcePatternType.LITERAL)
    denied = (EVERYBODY, "*", AclOperation.WRITE, AclPermissionType.DENY)
    await each(scene.kafka.create_acls([AclBinding(*rule, *denied)]))
    await asyncio.sleep(5)
    await each(scene.kafka.delete_acls([AclBindingFilter(*rule, *denied)]))


async def grow_partitions(scene: Scene) -> None:
    """Partitions of every topic grown from 4 to 6, then each process restarted with 6"""
    system = scene.system
    # A request that comes twice may now come on two partitions, where none knows the other.
    scene.load.twice = False
    await asyncio.sleep(1)
    # Ingest last: what comes on a new partition finds the others there.
    topics = [t for t in system.catalogue.topics(system.fleet["pools"]) if t.partitions > 1]
    for topic in sorted(topics, key=lambda t: t.name == system.catalogue.requests):
        grown = NewPartitions(topic.name, PARTITIONS_GROWN)
        await each(scene.kafka.create_partitions([grown]))
    system.extra_env["SHUNTER_PARTITIONS"] = str(PARTITIONS_GROWN)
    for name in list(system.processes):
        await _restart(scene, name)


FAULTS: tuple[Fault, ...] = (
    kill_router,
    kill_worker,
    kill_all,
    lose_router,
    stop_router,
    stop_worker,
    time_transaction_out,
    restart_rolling,
    shake_groups,
    silence_pool,
    kill_broker,
    restart_broker,
    cut_connections,
    swallow_packets,
    slow_the_link,
    fill_the_disk,
    refuse_large,
    delete_topic,
    deny_results,
)
# What can't be undone comes once, at the end.
LAST_FAULTS: tuple[Fault, ...] = (grow_partitions,)


@contextlib.contextmanager
def _resting(scene: Scene, name: str) -> Iterator[str]:
    """Keep the supervisor from starting a process again."""
    scene.resting.add(name)
    try:
        yield name
    finally:
        scene.resting.discard(name)


async def _until(holds: Callable[[], bool], what: str) -> None:
    for _ in range(100):
        if holds():
            return
        await asyncio.sleep(0.2)
    raise AssertionError(f"not within 20 s: {what}")


def killed(scene: Scene, *names: str, in_place: bool, kafka_s: float = 0.0) -> None:
    """Kill processes, of which the takeover is timed."""
    scene.kills.append(Kill(names, time.time(), in_place=in_place, kafka_s=kafka_s))
    for name in names:
        scene.system.kill(name)


async def _freeze(system: System, name: str, seconds: float) -> None:
    process = system.processes[name]
    process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(seconds)
    process.send_signal(signal.SIGCONT)


async def _restart(scene: Scene, name: str) -> None:
    # The supervisor would start a second one of the name, between its end and our start.
    with _resting(scene, name):
        await _end(scene.system, name)
        scene.system.start(name)


async def _end(system: System, name: str) -> None:
    process = system.processes[name]
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(process.wait, 30)
    except subprocess.TimeoutExpired:
        # As a supervisor does whose grace period has ended.
        system.kill(name)


async def _limit_records(scene: Scene, topic: str, bytes_max: int) -> None:
    entry = ConfigEntry(
        "max.message.bytes", str(bytes_max), incremental_operation=AlterConfigOpType.SET
    )
    wanted = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    await each(scene.kafka.incremental_alter_configs([wanted]))


async def each(futures: Mapping[Any, Any]) -> None:
    """Wait for what the operator's client was asked."""
    for future in futures.values():
        await asyncio.to_thread(future.result, 20)
