"""Faults of a cluster of three brokers, one at a time. The docstring is what the table says.

`scene.nodes` are the brokers; each has a proxy before the port that it gives to clients, so that it
can be gone for them without a word.
"""

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from confluent_kafka import ElectionType
from confluent_kafka.admin import AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType
from faults import ROUTERS, Fault, Scene, each, killed
from operations import Place, controller, elect, places, reassign, settled
from proxy import Proxy

from topics.admin.replication import IN_SYNC
from topics.embedded_broker.broker import EmbeddedBroker
from topics.embedded_broker.cluster import EmbeddedCluster
from topics.embedded_broker.settings import SESSION_MS_OF_SEVERAL

BROKER_SESSION_S = SESSION_MS_OF_SEVERAL / 1000
# Longer than Kafka waits for a broker that it does not hear of, so that leaders are elected.
AWAY_S = 12.0
FROZEN_S = 20.0
# With one broker gone two replicas are in sync, which suffice; with two Kafka has no controller.
ONE_GONE_S, TWO_GONE_S = 8.0, 15.0
IDLE_MS = 15_000
GROUPS, TRANSACTIONS = "__consumer_offsets", "__transaction_state"


@dataclass(kw_only=True)
class ClusterScene(Scene):
    """All that a fault can do something to, the brokers first."""

    cluster: EmbeddedCluster
    proxies: list[Proxy] = field(default_factory=list)

    @property
    def bootstrap_servers(self) -> str:
        """Addresses that are not behind the proxies."""
        return self.cluster.bootstrap_servers

    def node(self, number: int) -> EmbeddedBroker:
        """Return a node by its number, which counts from 1."""
        return self.cluster.nodes[number - 1]

    async def leader(self) -> int:
        """Return the number of the broker that leads most partitions of Shunter's topics."""
        found = await asyncio.to_thread(places, self.kafka, self.system.prefix)
        return Counter(p.leader for p in found.values()).most_common(1)[0][0]


async def kill_leader(scene: ClusterScene) -> None:
    """`kill -9` of the broker that leads most, which is back after 12 s"""
    await _away(scene, await scene.leader())


async def kill_controller(scene: ClusterScene) -> None:
    """`kill -9` of the active controller, which is a broker too and back after 12 s"""
    await _away(scene, await controller(scene.bootstrap_servers))


async def kill_broker_and_router(scene: ClusterScene) -> None:
    """`kill -9` of a broker, back after 12 s, and of a router, which is started again at once"""
    name = scene.rng.choice(ROUTERS)
    killed(scene, name, in_place=True, kafka_s=BROKER_SESSION_S)
    scene.system.start(name)
    await _away(scene, scene.rng.choice((1, 2, 3)))


async def freeze_broker(scene: ClusterScene) -> None:
    """SIGSTOP of a broker for 20 s, then SIGCONT"""
    pid = scene.node(await scene.leader()).pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(FROZEN_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    await settled(scene.kafka)


async def vanish_broker(scene: ClusterScene) -> None:
    """A broker gone without a reset: what clients send to it is swallowed; back after 20 s"""
    number = await scene.leader()
    node, proxy = scene.node(number), scene.proxies[number - 1]
    proxy.swallow()
    await asyncio.to_thread(node.kill)
    await asyncio.sleep(FROZEN_S)
    await asyncio.to_thread(node.start)
    proxy.heal()
    await settled(scene.kafka)


async def restart_brokers(scene: ClusterScene) -> None:
    """SIGTERM of each broker in turn, started again at once; the next when all are in sync"""
    for node in scene.cluster.nodes:
        await asyncio.to_thread(node.restart)
        await settled(scene.kafka)


async def move_coordinators(scene: ClusterScene) -> None:
    """The coordinators of all groups and transactions moved to other brokers"""
    found = {**await _places(scene, GROUPS), **await _places(scene, TRANSACTIONS)}
    await _turn(scene, found)


async def elect_preferred(scene: ClusterScene) -> None:
    """The leaders of all other partitions moved to other brokers, by a preferred election"""
    await _turn(scene, await _places(scene, scene.system.prefix))


async def reassign_partitions(scene: ClusterScene) -> None:
    """Each partition taken from the broker that led it, and 5 s later given back a third replica"""
    found = await _places(scene, scene.system.prefix)
    without = {place: [n for n in p.replicas if n != p.leader] for place, p in found.items()}
    await reassign(scene.bootstrap_servers, without)
    await settled(scene.kafka, 2, scene.system.prefix)
    await asyncio.sleep(5)
    await reassign(scene.bootstrap_servers, {place: p.replicas for place, p in found.items()})
    await settled(scene.kafka)


async def lack_replicas(scene: ClusterScene) -> None:
    """Fewer replicas in sync than `min.insync.replicas` for 15 s: nothing can be written"""
    topics = {topic for topic, _ in await _places(scene, "")}
    await require_in_sync(scene, 3, topics)
    node = scene.node(await scene.leader())
    await asyncio.to_thread(node.kill)
    await asyncio.sleep(BROKER_SESSION_S + 15)
    await asyncio.to_thread(node.start)
    await settled(scene.kafka)
    await require_in_sync(scene, 2, topics)


async def lose_majority(scene: ClusterScene) -> None:
    """`kill -9` of two brokers, the second after 8 s; both back after 15 s without a majority"""
    first = await scene.leader()
    second = scene.rng.choice([number for number in (1, 2, 3) if number != first])
    await asyncio.to_thread(scene.node(first).kill)
    await asyncio.sleep(ONE_GONE_S)
    await asyncio.to_thread(scene.node(second).kill)
    await asyncio.sleep(TWO_GONE_S)
    # A node that starts alone waits for a majority of controllers, for ever if it has to.
    nodes = (scene.node(first), scene.node(second))
    await asyncio.gather(*(asyncio.to_thread(node.start) for node in nodes))
    await settled(scene.kafka)


async def leave_broker_idle(scene: ClusterScene) -> None:
    """A broker that leads nothing for 40 s; idle connections are closed after 15 s"""
    number = scene.rng.choice((1, 2, 3))
    found = await _places(scene, "")
    last = {p: [*(n for n in of.replicas if n != number), number] for p, of in found.items()}
    await reassign(scene.bootstrap_servers, last)
    await elect(scene.kafka, last, ElectionType.PREFERRED)
    await asyncio.sleep(40)
    await reassign(scene.bootstrap_servers, {p: of.replicas for p, of in found.items()})
    await elect(scene.kafka, found, ElectionType.PREFERRED)


CLUSTER_FAULTS: tuple[Fault, ...] = (
    kill_leader,
    kill_controller,
    kill_broker_and_router,
    freeze_broker,
    vanish_broker,
    restart_brokers,
    move_coordinators,
    elect_preferred,
    reassign_partitions,
    lack_replicas,
    lose_majority,
    leave_broker_idle,
)


async def _away(scene: ClusterScene, number: int) -> None:
    node = scene.node(number)
    await asyncio.to_thread(node.kill)
    await asyncio.sleep(AWAY_S)
    await asyncio.to_thread(node.start)
    await settled(scene.kafka)


async def _places(scene: ClusterScene, prefix: str) -> dict[Place, Any]:
    return await asyncio.to_thread(places, scene.kafka, prefix)


async def _turn(scene: ClusterScene, found: dict[Place, Any]) -> None:
    """Prefer the next replica of each partition, and elect it."""
    turned = {place: [*p.replicas[1:], p.replicas[0]] for place, p in found.items()}
    await reassign(scene.bootstrap_servers, turned)
    await elect(scene.kafka, turned, ElectionType.PREFERRED)
    await settled(scene.kafka)


async def require_in_sync(scene: ClusterScene, replicas: int, topics: Iterable[str]) -> None:
    """Have so many replicas of each partition of topics keep a record before it is acknowledged."""
    entry = ConfigEntry(IN_SYNC, str(replicas), incremental_operation=AlterConfigOpType.SET)
    wanted = [ConfigResource(ResourceType.TOPIC, t, incremental_configs=[entry]) for t in topics]
    await each(scene.kafka.incremental_alter_configs(wanted))
