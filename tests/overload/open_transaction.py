"""`kill -9` of a router inside an open transaction: what the partitions of another router notice.

python tests/overload/open_transaction.py
"""

import argparse
import asyncio
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import orjson
from aiokafka.client import AIOKafkaClient
from running_system import FLEET, System, chat
from stream import quantiles, read_on, show

from streams.kafka.protocol import DescribeTransactions
from topics.embedded_broker.broker import EmbeddedBroker

SESSION_S = 6.0
# As long before the kill as after it, within the dead one's session: nobody takes over yet.
LOOK_S = 5.0
# Of the other router's partitions. That a takeover is a rebalance, which stops all, is apart.
DELAY_S_MAX = 0.1
TAKEN = re.compile(r"took over \S+\.requests\[(\d+)\]")


class Publisher:
    """Chats in turn on each partition, at a steady rate; remembers when each went where."""

    def __init__(self, system: System, per_second: float) -> None:
        self._system, self._per_second = system, per_second
        self.sent: dict[str, tuple[int, float]] = {}

    async def run(self) -> None:
        """Publish until cancelled."""
        began = time.monotonic()
        while True:
            due = int((time.monotonic() - began) * self._per_second)
            for number in range(len(self.sent), due):
                name, partition = f"r-{number}", number % self._system.settings.partitions
                self.sent[name] = (partition, time.time())
                await self._system.producer.send(
                    self._system.catalogue.requests,
                    orjson.dumps(chat(name)),
                    key=name.encode(),
                    partition=partition,
                )
            await asyncio.sleep(0.002)

    def starts_s(self, partitions: set[int], since: float, until: float) -> list[float]:
        """Return the times from publishing to the start at a worker, of what was sent then."""
        return [
            self._system.result(name)["timing"]["started_at"] - at
            for name, (partition, at) in self.sent.items()
            if partition in partitions and since <= at < until
        ]


def owned(system: System, name: str) -> set[int]:
    """Return the ingest partitions that a router has taken over."""
    return {int(n) for n in TAKEN.findall((system.directory / f"{name}.log").read_text())}


async def has_open(system: System, client: AIOKafkaClient, partitions: set[int]) -> bool:
    """Tell whether the router of these partitions has a transaction open."""
    group, topic = system.catalogue.router_group, system.catalogue.requests
    for number in partitions:
        name = f"{group}-{topic}-{number}"
        node = await client.coordinator_lookup(1, name)
        answer = await client.send(node, DescribeTransactions(name))
        if answer.transaction_states[0][2] == "Ongoing":
            return True
    return False


async def kill_inside(system: System, client: AIOKafkaClient, name: str, own: set[int]) -> float:
    """Stop the router until it stands inside a transaction, kill it there, and tell when."""
    process = system.processes[name]
    for _ in range(1000):
        os.kill(process.pid, signal.SIGSTOP)
        stopped_at = time.time()
        if await has_open(system, client, own):
            system.kill(name)
            return stopped_at
        os.kill(process.pid, signal.SIGCONT)
        await asyncio.sleep(random.uniform(0.02, 0.1))
    raise SystemExit("the router was never found inside a transaction: raise --per-s")


async def one(bootstrap_servers: str, prefix: str, per_second: float) -> dict[str, Any]:
    """Kill one of two routers inside a transaction, and return what was measured."""
    directory = Path(tempfile.mkdtemp(prefix="shunter-open-"))
    fleet = {"pools": {"premium-eu": FLEET["pools"]["premium-eu"]}}
    session = {"SHUNTER_SESSION_TIMEOUT_MS": str(int(SESSION_S * 1000))}
    client = AIOKafkaClient(bootstrap_servers=bootstrap_servers)
    async with System(
        bootstrap_servers, prefix, directory, fleet, session, policy_speed=1.0
    ) as system:
        await client.bootstrap()
        system.start("premium-eu", "router")
        await asyncio.sleep(6)
        system.start("router-b")
        publisher = Publisher(system, per_second)
        publishing = asyncio.create_task(publisher.run())
        reading = asyncio.create_task(read_on(system))
        await asyncio.sleep(15)
        survivor = owned(system, "router-b")
        dead = set(range(system.settings.partitions)) - survivor
        if not survivor or not dead:
            raise SystemExit(f"one router has all partitions; logs in {directory}")
        killed_at = await kill_inside(system, client, "router", dead)
        await asyncio.sleep(SESSION_S + 10)
        publishing.cancel()
        reading.cancel()
        await asyncio.gather(publishing, reading, return_exceptions=True)
        await system.wait_for_results(publisher.sent, 60)
        spans = {
            "before": (killed_at - LOOK_S - 1, killed_at - 1),
            "after": (killed_at, killed_at + LOOK_S),
            "takeover": (killed_at + LOOK_S, killed_at + SESSION_S + 9),
        }
        found = {
            side: {
                name: dict(
                    zip(
                        ("median_s", "p99_s", "max_s"),
                        (*quantiles(starts), max(starts)),
                        strict=True,
                    )
                )
                for name, span in spans.items()
                if (starts := publisher.starts_s(partitions, *span))
            }
            for side, partitions in (("other_partitions", survivor), ("own_partitions", dead))
        }
        await client.close()
        for name in list(system.processes):
            system.kill(name)
        return found


async def run(rounds: int, per_second: float) -> list[dict[str, Any]]:
    """Return what each round measured, on one broker."""
    directory = Path(tempfile.mkdtemp(prefix="shunter-open-kafka-"))
    with EmbeddedBroker(data_dir=directory) as broker:
        return [await one(broker.bootstrap_servers, f"o{n}", per_second) for n in range(rounds)]


def beyond(rounds: list[dict[str, Any]]) -> list[str]:
    """Return in which rounds partitions that the dead one did not have were delayed too much.

    The delay is that of the worst start after the kill against the median before it.
    """
    others = [found["other_partitions"] for found in rounds]
    delays = [other["after"]["max_s"] - other["before"]["median_s"] for other in others]
    return [
        f"round {number}: other partitions {delay_s:.3f} s late, {DELAY_S_MAX} s at most"
        for number, delay_s in enumerate(delays, 1)
        if not delay_s < DELAY_S_MAX
    ]


def main() -> None:
    """Run, print what was measured, and fail beyond the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--per-s", type=float, default=100.0)
    asked = parser.parse_args()
    show(run(asked.rounds, asked.per_s), beyond)


if __name__ == "__main__":
    main()
