"""An unclean election: a replica leads that lacks the end of the log, which is lost with it."""

import asyncio
import os
import re
import shlex
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError
from cluster_faults import ClusterScene, require_in_sync
from confluent_kafka import ElectionType, KafkaException
from operations import Place, elect, places, reassign, settled
from running_system import ROOT

from streams.engine.log import LogError, Partition
from streams.engine.progress import read_progress
from streams.kafka.log import KafkaLog

# A broker that is taken for dead, one that starts, a router that looks again: on a busy machine.
STEP_S_MAX = 90.0
LOOK_EVERY_S = 0.2
# What the error of a partition says: from where on nothing is done, where the log ends, what to do.
TOLD = re.compile(
    r"(?P<partition>\S+\[\d+\]) has lost its end: (?P<group>\S+) has done all below (?P<done>\d+),"
    r" and what it has read ends at (?P<end>\d+) .*?`(?P<command>shunter topics recover [^`]+)`"
)


async def lose_tail(scene: ClusterScene) -> None:
    """An unclean election loses what one broker alone had; an operator runs what the error says"""
    system, topic = scene.system, scene.system.catalogue.requests
    home = (topic, scene.rng.randrange(system.settings.partitions))
    partition = (await asyncio.to_thread(places, scene.kafka, topic))[home]
    leader = partition.leader
    follower, third = (n for n in partition.replicas if n != leader)
    await reassign(scene.bootstrap_servers, {home: [leader, follower]})
    await _until(scene, home, lambda p: len(p.replicas) == len(p.isrs) == 2, "two replicas")
    await require_in_sync(scene, 1, [topic])
    await asyncio.to_thread(scene.node(follower).kill)
    await _until(scene, home, lambda p: list(p.isrs) == [leader], "the follower is out of sync")
    await _read_beyond(scene, home)
    await asyncio.to_thread(scene.node(leader).kill)
    await asyncio.to_thread(scene.node(follower).start)
    await _until(scene, home, lambda p: p.leader < 0, "the partition has no leader")
    # An idempotent producer can't go on behind what it has lost.
    before = system.producer
    system.producer = await system.new_producer()
    await elect(scene.kafka, [home], ElectionType.UNCLEAN)
    await _until(scene, home, lambda p: p.leader == follower, "the follower leads")
    await _recover(scene, home)
    await asyncio.to_thread(scene.node(leader).start)
    await reassign(scene.bootstrap_servers, {home: [follower, leader, third]})
    await settled(scene.kafka)
    await require_in_sync(scene, 2, [topic])
    await _note_lost(scene, before)


async def _until(scene: ClusterScene, home: Place, holds: Callable[[Any], bool], what: str) -> None:
    async def look() -> bool:
        return holds((await asyncio.to_thread(places, scene.kafka, home[0]))[home])

    await _eventually(look, what)


async def _eventually(look: Callable[[], Awaitable[bool]], what: str) -> None:
    give_up_at = time.monotonic() + STEP_S_MAX
    while True:
        try:
            if await look():
                return
        except (KafkaException, KafkaError, LogError):
            # Without a quorum nobody answers.
            pass
        if time.monotonic() > give_up_at:
            raise AssertionError(f"not within {STEP_S_MAX:g} s: {what}")
        await asyncio.sleep(LOOK_EVERY_S)


async def _read_beyond(scene: ClusterScene, home: Place) -> None:
    """Wait until the router has done what only the leader has."""
    log, names, where = KafkaLog(scene.system.settings), scene.system.catalogue, Partition(*home)
    ((_, end),) = (await log.bounds([where])).values()

    async def look() -> bool:
        stored = await read_progress(log, names.progress, names.router_group, [where])
        return where in stored.known and stored.known[where].next_offset > end

    await _eventually(look, "the router has read what will be lost")


async def _recover(scene: ClusterScene, home: Place) -> None:
    """Do as the error says that the owner of the partition logs."""
    told: list[re.Match[str]] = []

    async def look() -> bool:
        logs = [
            log.read_text(errors="replace") for log in scene.system.directory.glob("router*.log")
        ]
        named = str(Partition(*home))
        told[:] = [m for log in logs for m in TOLD.finditer(log) if m["partition"] == named]
        return bool(told)

    await _eventually(look, "a router says that its partition has lost its end")
    assert int(told[0]["done"]) > int(told[0]["end"]), told[0].group()
    words = shlex.split(told[0]["command"])[1:]
    env = {
        "PYTHONPATH": str(ROOT),
        "SHUNTER_BOOTSTRAP_SERVERS": scene.bootstrap_servers,
        "SHUNTER_TOPIC_PREFIX": scene.system.prefix,
    }
    ran = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "shunter", *words, "--yes"],
        cwd=ROOT,
        env=os.environ | env,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    print(ran.stdout.strip(), flush=True)


async def _note_lost(scene: ClusterScene, before: AIOKafkaProducer) -> None:
    """Hold what was published until now against what Kafka has."""
    load, system = scene.load, scene.system
    copies = load.copies()
    # The last of them may be on its way into the client.
    await asyncio.sleep(1)
    await system.producer.flush()
    try:
        async with asyncio.timeout(STEP_S_MAX):
            await before.stop()
    except (KafkaError, TimeoutError) as error:
        print(f"the producer of before: {error!r}", flush=True)
    log, topic = KafkaLog(system.settings), system.catalogue.requests
    homes = [Partition(topic, number) for number in range(system.settings.partitions)]
    starts = {home: first for home, (first, _) in (await log.bounds(homes)).items()}
    there: Counter[str] = Counter()
    async for records in log.read(starts):
        there.update((record.key or b"").decode() for record in records)
    load.lost |= {key for key, count in copies.items() if there[key] < count} - load.unsure
