"""A real Kafka that loses the end of a log, or has a topic made again."""

import asyncio
import os
import struct
import time
import urllib.request
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from forked import ran
from running_system import System, chat, eventually

from streams.engine.log import Partition
from streams.kafka.log import KafkaLog
from topics import Settings
from topics.admin.provisioning import apply
from topics.embedded_broker.broker import KAFKA_VERSION, EmbeddedBroker
from topics.embedded_broker.settings import free_port

pytestmark = pytest.mark.kafka


def cut(broker: EmbeddedBroker, partition: Partition, offset: int) -> None:
    """Let a partition end before this offset, as a disk does that lost what it had not synced."""
    (directory,) = broker.data_dir.rglob(f"{partition.topic}-{partition.number}")
    (segment,) = directory.glob("*.log")
    data = segment.read_bytes()
    at = 0
    while at < len(data):
        base, length = struct.unpack_from(">qi", data, at)
        if base >= offset:
            break
        at += 12 + length
    assert 0 < at < len(data), "nothing to cut"
    segment.write_bytes(data[:at])
    for left in (*directory.glob("*.snapshot"), *directory.glob("*index")):
        left.unlink()


async def shunter(system: System, *words: str) -> str:
    done = await asyncio.to_thread(partial(ran, *words, env=system.env))
    told = done.stdout + done.stderr
    assert done.returncode == 0, told
    return told


async def publish(system: System, *ids: str, partition: int, **fields: Any) -> None:
    """Publish requests, each in a batch of its own, by a client that knows nothing of the past."""
    deadline = time.time() + 300
    async with AIOKafkaProducer(bootstrap_servers=system.bootstrap_servers, acks="all") as producer:
        for name in ids:
            value = orjson.dumps(chat(name, deadline=deadline, **fields))
            topic = system.catalogue.requests
            await producer.send_and_wait(topic, value, key=name.encode(), partition=partition)


async def logged(system: System, what: str) -> None:
    async def is_there() -> bool:
        return what in system.logs()

    try:
        await eventually(is_there, what, 60)
    except AssertionError as error:
        raise AssertionError(f"{error}\n{system.logs()}") from error


def broken_partitions(port: int) -> list[str]:
    """Return the lines of a process's page of metrics that tell of broken partitions."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        lines = page.read().decode().splitlines()
    return [line for line in lines if line.startswith("shunter_partition_broken{")]


@pytest.mark.slow
@pytest.mark.skipif(
    int(KAFKA_VERSION.partition(".")[0]) < 4,
    reason="killed and alone, an older broker goes on under the leader epoch that it had",
)
async def test_a_log_that_lost_its_end_and_grew_again(tmp_path: Path) -> None:
    with EmbeddedBroker() as broker:
        first, new = [f"a{n}" for n in range(6)], [f"new{n}" for n in range(8)]
        async with System(broker.bootstrap_servers, f"cut-{os.getpid()}", tmp_path) as system:
            system.start_all()
            await publish(system, *first, partition=0)
            await system.wait_for_results(first)
            system.stop()
            home = Partition(system.catalogue.requests, 0)
            broker.kill()
            cut(broker, home, 3)
            broker.restart()
            # Beyond where it stood: by its length alone nobody could tell.
            await publish(system, *new, partition=0)
            system.start_all()
            await publish(system, "elsewhere", partition=1)
            await system.wait_for_results(["elsewhere"])
            await logged(system, f"{home} has lost its end")
            group = system.catalogue.router_group
            told = await shunter(system, "topics", "recover", group, home.topic, "0", "--yes")
            assert "has lost its end at 3: all below 6 was done" in told
            await system.wait_for_results(new)
            for name in (*first, *new, "elsewhere"):
                assert system.result(name)["status"] == "completed"
            (evidence,) = [e for e in system.evidence if e["step"] == "recovered"]
            assert evidence["source"] == {"topic": home.topic, "partition": 0, "offset": 3}
            verified = await shunter(system, "audit", "verify", "--json")
            assert orjson.loads(verified)["problems"] == []


async def test_a_lane_that_was_deleted_and_made_again(kafka: str, tmp_path: Path) -> None:
    prefix, pool, port = f"anew-{os.getpid()}", "premium-eu", free_port()
    web = {pool: {"SHUNTER_WEB_PORT": str(port)}}
    async with System(kafka, prefix, tmp_path, env_of=web) as system:
        only = {"constraints": {"pools": [pool]}}
        system.start_all()
        await publish(system, "a0", "a1", partition=0, **only)
        await system.wait_for_results(["a0", "a1"])
        system.stop()
        lane = system.catalogue.pool_lane(pool, "direct")
        settings = Settings(bootstrap_servers=kafka, topic_prefix=prefix)
        log = KafkaLog(settings)
        before = (await log.topic_ids([lane]))[lane]
        admin = AIOKafkaAdminClient(bootstrap_servers=kafka)
        await admin.start()
        await admin.delete_topics([lane])
        await admin.close()

        async def is_made() -> bool:
            await apply(settings, system.fleet["pools"])
            return (await log.topic_ids([lane])).get(lane) not in (None, before)

        await eventually(is_made, "the lane is there again", 60)
        system.start_all()
        await publish(system, "new", partition=0, **only)
        await logged(system, f"{lane} was deleted and made again")
        assert "new" not in system.results
        group = system.catalogue.worker_group(pool)
        (line,) = await asyncio.to_thread(broken_partitions, port)
        assert f'"{group}"' in line
        assert f'"{lane}"' in line
        assert line.endswith(" 1.0")
        told = await shunter(system, "topics", "recover", group, lane, "0", "--yes")
        assert "all below 0 counts as done" in told.lower()
        await system.wait_for_results(["new"])
        assert system.result("new")["placement"]["pool"] == pool
        assert await asyncio.to_thread(broken_partitions, port) == []
