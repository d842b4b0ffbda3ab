"""A hold of half a million requests: memory of the batcher, and how soon another takes it over.

python tests/overload/hold.py --requests 500000
"""

import argparse
import asyncio
import re
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import orjson
from aiokafka import AIOKafkaProducer, TopicPartition
from system import FLEET, System

from topics.broker import EmbeddedBroker

SESSION_S = 6.0
# What one request holds beside its headers.
PAYLOAD_BYTES = 1000
IN_FLIGHT_MAX = 20_000
# No worker runs: what may wait does, and nothing is released meanwhile.
WAITING = {"task": "summarization", "completion_window": "24h"}
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
        request = {"id": f"r-{number}", "body": body, **WAITING}
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


async def held_records(system: System) -> int:
    """Return the number of records in the hold; each is a request while none is released."""
    partitions = [
        TopicPartition(system.catalogue.held, n) for n in range(system.settings.partitions)
    ]
    return sum((await system.consumer.end_offsets(partitions)).values())


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
        if time.monotonic() - since > 120:
            raise SystemExit(f"not taken over in 120 s; logs in {system.directory}")
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
            publishing = asyncio.create_task(publish(system, requests))
            while (held := await held_records(system)) < requests:
                print(f"{held:>9,} of {requests:,} held", end="\r", flush=True)
                await asyncio.sleep(1)
            await publishing
            found["held_per_s"] = requests / (time.monotonic() - began)
            await asyncio.sleep(3)
            found["held_mb"], found["held_mb_max"] = memory_mb(system, "router")
            system.kill("router")
            killed = time.monotonic()
            system.start("router-b")
            found["taken_over_s"] = await taken_over(system, "router-b", killed)
            found["restore_mb"], found["restore_mb_max"] = memory_mb(system, "router-b")
            system.kill("router-b")
            killed = time.monotonic()
            system.start("router-b")
            (directory / "router-b.log").write_text("")
            found["restarted_s"] = await taken_over(system, "router-b", killed)
            system.kill("router-b")
    return found


def main() -> None:
    """Run, and print a line for each figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=500_000)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    found = asyncio.run(run(asked.requests))
    if asked.json:
        print(orjson.dumps(found).decode())
        return
    print(
        f"{found['requests']:,.0f} requests of {PAYLOAD_BYTES} bytes held,"
        f" {found['held_per_s']:,.0f} a second; router and batcher had {found['empty_mb']:.0f} MB"
        f" before and {found['held_mb']:.0f} MB (at most {found['held_mb_max']:.0f}) after.\n"
        f"`kill -9`, and another router from nothing: {found['taken_over_s']:.1f} s until it held"
        f" them, of which {SESSION_S:.0f} s are the dead one's session; {found['restore_mb']:.0f}"
        f" MB (at most {found['restore_mb_max']:.0f}).\n"
        f"The same router killed and started again: {found['restarted_s']:.1f} s."
    )


if __name__ == "__main__":
    main()
