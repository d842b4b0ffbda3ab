"""``python -m benchmarks.load``: latency and processor time of the whole way, by steady load.

A client publishes requests of 1 KB at a steady rate and reads their results, committed ones alone.
One router and one worker, whose backend answers at once, serve them; beside them two bare aiokafka
hops, on the same broker, by turns. A latency is from the creation of a request to the result read.
"""

import argparse
import asyncio
import json
import math
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from benchmarks.cluster_fixture import Ground, ground, machine
from benchmarks.contenders import Load
from benchmarks.resource_usage import cpu_s_of
from benchmarks.worker import POOL
from benchmarks.workload import make_options, request_value
from topics.embedded_broker.broker import EmbeddedBroker

RATES = (20, 50, 100, 200, 400)
SECONDS, WARM_S = 10.0, 3.0
READY_S_MAX = 60.0
SEED = 1
# Reach, over the bare chain.
P50_MAX, P99_MAX, PROCESSOR_MAX = 1.3, 1.5, 1.3

Start = Callable[[Ground], None]


@dataclass(frozen=True)
class Seen:
    """One run of a side at a rate. Times are milliseconds; processor times are of one request."""

    side: str
    rate: int
    p50_ms: float
    p99_ms: float
    broker_ms: float
    processes_ms: tuple[float, ...]

    @property
    def all_ms(self) -> float:
        """Processor time of a request in all processes but the client's."""
        return self.broker_ms + sum(self.processes_ms)

    def __str__(self) -> str:
        parts = " + ".join(f"{each:.2f}" for each in (self.broker_ms, *self.processes_ms))
        return (
            f"{self.side:8} {self.rate:4}/s: p50 {self.p50_ms:6.1f} ms, p99 {self.p99_ms:6.1f} ms;"
            f" {self.all_ms:5.2f} ms of a processor ({parts})"
        )


def start_shunter(here: Ground) -> None:
    """Start a router, and a worker whose backend answers at once."""
    fleet = here.directory / f"{here.prefix}.yaml"
    fleet.write_text(Load(0, is_mixed=True).fleet())
    here.start("shunter", "router", SHUNTER_FLEET=str(fleet))
    here.start("benchmarks.contestants.null_worker", SHUNTER_FLEET=str(fleet))


def start_bare(here: Ground) -> None:
    """Start two bare hops, from ingest to the lane of the pool and from there to the results."""
    lane, names = here.catalogue.pool_lane(POOL, "direct"), here.catalogue
    for number, (source, to) in enumerate(((names.requests, lane), (lane, names.results))):
        group = f"{here.prefix}.hop-{number}"
        beside = ["--beside", names.evidence]
        here.start(
            "benchmarks.contestants.hop", here.servers, group, "--from", source, "--to", to, *beside
        )


SIDES: Mapping[str, Start] = {"bare": start_bare, "shunter": start_shunter}


class Client:
    """Publishes at a steady rate, and reads the results."""

    def __init__(self, here: Ground, producer: AIOKafkaProducer, results: AIOKafkaConsumer) -> None:
        self._here = here
        self._producer = producer
        self._results = results
        self._sent_at: list[float] = []
        self._took_s: dict[int, float] = {}
        self._gaps = random.Random(SEED)

    async def publish(self) -> None:
        """Publish one request."""
        number = len(self._sent_at)
        self._sent_at.append(time.perf_counter())
        limits = {"created_at": time.time(), "constraints": {"pools": [POOL]}}
        await self._producer.send(
            self._here.catalogue.requests,
            request_value(number, **limits),
            b"r-%d" % number,
            partition=number % self._here.partitions,
        )

    async def read(self, until: int) -> None:
        """Read results until so many requests have theirs."""
        end_at = time.perf_counter() + READY_S_MAX
        while len(self._took_s) < until:
            for records in (await self._results.getmany(timeout_ms=100)).values():
                now = time.perf_counter()
                for record in records:
                    number = int(record.key.removeprefix(b"r-"))
                    self._took_s.setdefault(number, now - self._sent_at[number])
            self._here.require_alive()
            if time.perf_counter() > end_at:
                raise RuntimeError(f"{len(self._took_s)} of {until} in {READY_S_MAX} s")

    async def keep_pace(self, rate: int, seconds: float) -> list[float]:
        """Publish for so long, arrivals by chance, and return how long each request took."""
        first = len(self._sent_at)
        count = int(rate * seconds)
        reading = asyncio.create_task(self.read(first + count))
        due = time.perf_counter()
        for _ in range(count):
            due += self._gaps.expovariate(rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            await self.publish()
        await reading
        return [self._took_s[number] for number in range(first, first + count)]


async def measure(
    broker: EmbeddedBroker, directory: Path, name: str, side: str, rates: Sequence[int], s: float
) -> list[Seen]:
    """Return what a side took at each rate, in one run of its processes."""
    seen = []
    with ground(broker.bootstrap_servers, name, directory) as here:
        await here.apply(make_options(is_mixed=True).by_pool)
        SIDES[side](here)
        results = AIOKafkaConsumer(
            here.catalogue.results,
            bootstrap_servers=here.servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        producer = AIOKafkaProducer(bootstrap_servers=here.servers, linger_ms=0)
        await results.start()
        await producer.start()
        client = Client(here, producer, results)
        meters = [broker, *here.processes]
        try:
            await client.publish()
            await client.read(1)
            for rate in rates:
                await client.keep_pace(rate, WARM_S)
                before = [cpu_s_of(each) for each in meters]
                took = await client.keep_pace(rate, s)
                used = [cpu_s_of(each) - was for each, was in zip(meters, before, strict=True)]
                each_ms = [seconds * 1000 / len(took) for seconds in used]
                p99 = sorted(took)[math.ceil(0.99 * len(took)) - 1]
                median = statistics.median(took) * 1000
                seen.append(Seen(side, rate, median, p99 * 1000, each_ms[0], tuple(each_ms[1:])))
                print(f"  {seen[-1]}", flush=True)
        finally:
            await producer.stop()
            await results.stop()
            await here.delete()
    return seen


def table(found: Sequence[Seen]) -> str:
    """Return the medians of all runs as a table, with the ratios."""
    lines = [
        "| /s | bare p50 / p99 | Shunter p50 / p99 | ratio | bare, CPU ms | Shunter | ratio |",
        "| ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for rate in sorted({each.rate for each in found}):
        sides = {name: [e for e in found if e.rate == rate and e.side == name] for name in SIDES}
        if not all(sides.values()):
            continue
        (b50, b99, bare), (s50, s99, ours) = (
            tuple(statistics.median(getattr(e, name) for e in of) for name in MEDIANS)
            for of in (sides["bare"], sides["shunter"])
        )
        lines.append(
            f"| {rate} | {b50:.0f} / {b99:.0f} ms | {s50:.0f} / {s99:.0f} ms"
            f" | {s50 / b50:.2f} / {s99 / b99:.2f} | {bare:.1f} | {ours:.1f} | {ours / bare:.2f} |"
        )
    return "\n".join(lines)


MEDIANS = ("p50_ms", "p99_ms", "all_ms")


def main() -> None:
    """Run both sides by turns, and print what each took."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load", description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES), help="requests/s")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="at each rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, action="append", help="only this one")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    asked = parser.parse_args()
    sides = asked.side or list(SIDES)
    print(", ".join(f"{name}: {value}" for name, value in machine().items()), flush=True)
    found: list[Seen] = []
    with tempfile.TemporaryDirectory(prefix="shunter-load-") as name, EmbeddedBroker() as broker:
        for number in range(asked.rounds):
            for side in sides if number % 2 else reversed(sides):
                prefix = f"load-{number}-{side}"
                directory = Path(name)
                found += asyncio.run(
                    measure(broker, directory, prefix, side, asked.rates, asked.seconds)
                )
    print(table(found))
    if asked.json:
        print(json.dumps({"machine": machine(), "seen": [asdict(each) for each in found]}))


if __name__ == "__main__":
    main()
