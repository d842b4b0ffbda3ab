"""A hold of half a million requests: memory of the batcher, and how soon another takes it over.

python tests/overload/hold.py --requests 500000
"""

import argparse
import asyncio
import logging
import re
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support"), str(ROOT / "tests" / "chaos")]

import orjson
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from running_system import FLEET, System
from verdict import held_now

from topics.embedded_broker.broker import EmbeddedBroker

SESSION_S = 6.0
# What one request holds beside its headers.
PAYLOAD_BYTES = 1000
IN_FLIGHT_MAX = 20_000
# No worker runs: what may wait does, and nothing is released meanwhile.
WAITING = {"task": "summarization", "completion_window": "24h"}
# Each falls into a length bucket of its own, so that there are groups on some partitions.
INPUT_TOKENS = (100, 1000, 4000, 20_000)
# A process with nothing to do, the payloads that it may keep, as objects, and what it has to keep.
EMPTY_BYTES, KEPT_BYTES_PER_BYTE, HELD_BYTES = 250e6, 1.6, 600
# Of a router that has taken over, how long until what it read has been given back.
SETTLED_S = 3.0
TAKEOVER_S_MAX = 15.0
TAKEN = re.compile(r"took over \S+\.held\[(\d+)\]")


async def publish(system: System, requests: int) -> None:
    """Publish as fast as the broker takes it."""
    producer = AIOKafkaProducer(
        bootstrap_servers=system.bootstrap_servers, linger_ms=5, max_batch_size=262_144
    )
    await producer.start()
    body = {"model": "llama-3.1-8b", "max_tokens": 64}
    body["messages"] = [{"role": "user", "content": "x" * PAYLOAD_BYTES}]
    sent = []
    for number in range(requests):
        hints = {"input_tokens": INPUT_TOKENS[number % len(INPUT_TOKENS)], "output_tokens": 64}
        request: dict[str, Any] = {"id": f"r-{number}", "body": body, "hints": hints, **WAITING}
        sent.append(
            await producer.send(
                system.catalogue.requests, orjson.dumps(request), key=request["id"].encode()
            )
        )
        if len(sent) == IN_FLIGHT_MAX:
            await asyncio.gather(*sent)
            sent.clear()
    await asyncio.gather(*sent)
    await producer.stop()


async def unrouted(system: System, router: AIOKafkaConsumer) -> int:
    """Return how far the routers' offsets stand behind the end of the ingest topic.

    The hold's own offsets count the ends of transactions too.
    """
    topic = system.catalogue.requests
    partitions = [TopicPartition(topic, n) for n in range(system.settings.partitions)]
    ends = await router.end_offsets(partitions)
    return sum([ends[p] - (await router.committed(p) or 0) for p in partitions])


async def fill(system: System, requests: int) -> None:
    """Publish so many, and wait until all are held; say how many are."""
    router = AIOKafkaConsumer(
        bootstrap_servers=system.bootstrap_servers,
        group_id=system.catalogue.router_group,
        enable_auto_commit=False,
    )
    await router.start()
    publishing = asyncio.create_task(publish(system, requests))
    began, seen_at, behind = time.monotonic(), time.monotonic(), -1
    while (left := await unrouted(system, router)) or not publishing.done():
        now = time.monotonic()
        if left != behind:
            behind, seen_at = left, now
        elif now - seen_at > 120:
            raise SystemExit(f"no request was routed for 120 s; logs in {system.directory}")
        published = "all" if publishing.done() else "not all"
        print(
            f"{now - began:6.0f} s: {left:,} wait to be routed, {published} published", flush=True
        )
        await asyncio.sleep(5)
    await publishing
    await router.stop()


def memory_mb(system: System, name: str) -> tuple[float, float]:
    """Return resident memory of a process, now and at most, in MB."""
    status = Path(f"/proc/{system.processes[name].pid}/status").read_text()
    now, most = (re.search(rf"{field}:\s+(\d+) kB", status) for field in ("VmRSS", "VmHWM"))
    assert now is not None
    assert most is not None
    return int(now[1]) / 1024, int(most[1]) / 1024


async def taken_over(system: System, name: str, since: float) -> float:
    """Return the seconds until a process has taken every partition of the hold over."""
    log = system.directory / f"{name}.log"
    while len(set(TAKEN.findall(log.read_text()))) < system.settings.partitions:
        await asyncio.sleep(0.1)
        if time.monotonic() - since > 180:
            raise SystemExit(f"not taken over in 180 s; logs in {system.directory}")
    return time.monotonic() - since


async def run(requests: int) -> dict[str, float]:
    """Fill the hold, kill its owner, let another take over; return what was measured."""
    directory = Path(tempfile.mkdtemp(prefix="shunter-hold-"))
    found: dict[str, float] = {"requests": requests}
    with EmbeddedBroker(data_dir=directory / "kafka") as broker:
        async with System(
            broker.bootstrap_servers,
            "hold",
            directory,
            fleet={"pools": {"lpddr-us": FLEET["pools"]["lpddr-us"]}},
            extra_env={"SHUNTER_SESSION_TIMEOUT_MS": str(int(SESSION_S * 1000))},
            policy_speed=1.0,
        ) as system:
            system.start("router")
            await taken_over(system, "router", time.monotonic())
            found["empty_mb"], _ = memory_mb(system, "router")
            began = time.monotonic()
            await fill(system, requests)
            found["held_per_s"] = requests / (time.monotonic() - began)
            await asyncio.sleep(SETTLED_S)
            found["held_mb"], found["held_mb_max"] = memory_mb(system, "router")
            found["held"] = await held_now(system)
            print(f"{found['held']:,} held; another router takes them over", flush=True)
            system.kill("router")
            killed = time.monotonic()
            system.start("router-b")
            found["taken_over_s"] = await taken_over(system, "router-b", killed)
            await asyncio.sleep(SETTLED_S)
            found["restore_mb"], found["restore_mb_max"] = memory_mb(system, "router-b")
            print("the same router is killed and started again", flush=True)
            system.kill("router-b")
            killed = time.monotonic()
            (directory / "router-b.log").write_text("")
            system.start("router-b")
            found["restarted_s"] = await taken_over(system, "router-b", killed)
            system.kill("router-b")
            kept = KEPT_BYTES_PER_BYTE * system.settings.held_payload_bytes_max
            found["cap_mb"] = (EMPTY_BYTES + kept + HELD_BYTES * requests) / 1e6
    shutil.rmtree(directory)
    return found


def main() -> None:
    """Run, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    found = asyncio.run(run(asked.requests))
    if asked.json:
        print(orjson.dumps(found).decode())
    else:
        print(
            f"{found['held']:,.0f} requests of {PAYLOAD_BYTES} bytes held,"
            f" {found['held_per_s']:,.0f} a second; router and batcher had"
            f" {found['empty_mb']:.0f} MB before and {found['held_mb']:.0f} MB (at most"
            f" {found['held_mb_max']:.0f}) after, where the cap is {found['cap_mb']:.0f}.\n"
            f"`kill -9`, and another router from nothing: {found['taken_over_s']:.1f} s until it"
            f" held them, of which {SESSION_S:.0f} s are the dead one's session;"
            f" {found['restore_mb']:.0f} MB (at most {found['restore_mb_max']:.0f}).\n"
            f"The same router killed and started again: {found['restarted_s']:.1f} s."
        )
    most = max(found["held_mb_max"], found["restore_mb_max"])
    if found["held"] != asked.requests or most > found["cap_mb"]:
        raise SystemExit(f"{found['held']:,.0f} held, at most {most:.0f} MB")
    if max(found["taken_over_s"], found["restarted_s"]) > TAKEOVER_S_MAX:
        raise SystemExit(f"taken over too late: {TAKEOVER_S_MAX:.0f} s at most")


if __name__ == "__main__":
    main()
