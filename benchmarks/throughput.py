"""Requests routed per second: a backlog is there, and the time counts until all is visible."""

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.figures import Figure, compared
from benchmarks.ground import (
    Ground,
    Watch,
    beat,
    cpu_s_of,
    faults_of,
    ground,
    publish,
    shared_out,
)
from benchmarks.sides import FASTSTREAM, FAUST, QUIX, Load, Side, bare, shunter
from benchmarks.sink import Sink
from benchmarks.yard import make_options, request_value
from topics.broker import EmbeddedBroker

# Publishing large requests must not take longer than reading them.
LARGE_BYTES = (102_400, 409_600)


@dataclass
class Hall:
    """The broker that all rounds share, and where their processes' words go."""

    broker: EmbeddedBroker
    directory: Path
    rounds: int
    scale: float
    told: list[str] = field(default_factory=list)
    number: int = 0

    def records(self, count: int) -> int:
        """Return how many records of this many a quick run takes."""
        return max(400, int(count * self.scale))

    def measure(self, side: Side, load: Load) -> float:
        """Return the requests per second of one run of a side."""
        self.number += 1
        rate = asyncio.run(self._measure(side, load, f"bench-{self.number}"))
        print(f"  {side.name}: {rate:,.0f}/s", flush=True)
        return rate

    async def _measure(self, side: Side, load: Load, prefix: str) -> float:
        options = make_options(is_mixed=load.is_mixed)
        servers = self.broker.bootstrap_servers
        with ground(servers, prefix, self.directory) as here:
            await here.apply(options.by_pool)
            values = [request_value(n, load.bytes, **load.fields) for n in range(load.records)]
            await beat(here, options, once=True)
            beating = asyncio.create_task(beat(here, options))
            broker_s = cpu_s_of(self.broker)
            try:
                async with Watch(here, [here.catalogue.evidence]) as watch:
                    if side.members:
                        side.start(here, load)
                        await self._begin(here, watch, side.members)
                    await publish(here, here.catalogue.requests, values)
                    if not side.members:
                        side.start(here, load)
                    rate = await watch.rate(load.records)
                each_us = 1e6 / load.records
                cpu_us = sum(map(cpu_s_of, here.processes)) * each_us
                broker_us = (cpu_s_of(self.broker) - broker_s) * each_us
                faults = sum(map(faults_of, here.processes)) / load.records
                self.told.append(
                    f"{side.name}, {load.bytes:,} bytes: {cpu_us:.0f} us of processor time and"
                    f" {faults:.0f} page faults a request, start included;"
                    f" the broker's {broker_us:.0f} us"
                )
            finally:
                beating.cancel()
        await here.delete()
        return rate

    @staticmethod
    async def _begin(here: Ground, watch: Watch, members: int) -> None:
        """Wait until each partition has been taken over, which a request of its own tells."""
        await shared_out(here, here.catalogue.router_group, members)
        first = [request_value(10**8 + n) for n in range(here.partitions)]
        await publish(here, here.catalogue.requests, first)
        await watch.pass_over(here.partitions)

    def by_turns(self, sides: Sequence[Side], load: Load) -> Mapping[str, list[float]]:
        """Return the rates of each side, run one after the other in each round."""
        found: dict[str, list[float]] = {side.name: [] for side in sides}
        for number in range(self.rounds):
            # Each goes first as often as any other.
            turn = number % len(sides)
            for side in [*sides[turn:], *sides[:turn]]:
                found[side.name].append(self.measure(side, load))
        return found


def routed(hall: Hall) -> list[Figure]:
    """Return what a router routes, against the bare loop, and against a router with traces."""
    with Sink() as sink:
        traced = shunter(
            "shunter, traces at 10 %",
            OTEL_EXPORTER_OTLP_ENDPOINT=sink.url,
            OTEL_EXPORTER_OTLP_PROTOCOL="http/protobuf",
            OTEL_TRACES_SAMPLER="parentbased_traceidratio",
            OTEL_TRACES_SAMPLER_ARG="0.1",
        )
        load = Load(hall.records(20_000))
        rates = hall.by_turns([bare(), shunter(), traced], load)
    mixed = Load(hall.records(20_000), is_mixed=True)
    of_ten = hall.by_turns([bare(), shunter()], mixed)
    reference = {"against": "bare loop"}
    return [
        compared(
            "routed, 30 candidates each", rates["shunter"], rates["bare loop"], 0.65, **reference
        ),
        compared(
            "routed, 10 candidates each", of_ten["shunter"], of_ten["bare loop"], 0.65, **reference
        ),
        compared(
            "routed, 30 candidates, traces at 10 %",
            rates[traced.name],
            rates["bare loop"],
            0.55,
            **reference,
        ),
    ]


def libraries(hall: Hall) -> list[Figure]:
    """Return what a router routes, against other streaming libraries."""
    reaches = {FAUST: (5.0, "forwards only"), QUIX: (1.2, ""), FASTSTREAM: (5.0, "")}
    sides = [side for side in reaches if side.is_installed]
    for side in reaches.keys() - set(sides):
        print(f"  {side.name}: not installed (extra `bench`), left out", flush=True)
    rates = hall.by_turns([shunter(), *sides], Load(hall.records(10_000)))
    return [
        compared(
            f"routed, against {side.name}",
            rates["shunter"],
            rates[side.name],
            reaches[side][0],
            against=side.name,
            note=reaches[side][1],
        )
        for side in sides
    ]


def two(hall: Hall) -> list[Figure]:
    """Return what two routers do together, and how much two bare loops, the broker's limit."""
    load = Load(hall.records(40_000))
    sides = [
        shunter("one router", is_awaited=True),
        shunter("two routers", 2, is_awaited=True),
        bare(),
    ]
    rates = hall.by_turns(sides, load)
    note = f"one bare loop on the same broker: {statistics.median(rates['bare loop']):,.0f}/s"
    return [
        compared(
            "two routers", rates["two routers"], rates["one router"], 1.7,
            against="one router", note=note,
        )
    ]  # fmt: skip


def large(hall: Hall) -> list[Figure]:
    """Return the bytes per second of large requests."""
    figures = []
    for size in LARGE_BYTES:
        load = Load(hall.records(200_000_000 // size), size, is_mixed=True)
        rates = {
            name: [rate * size / 1e6 for rate in each]
            for name, each in hall.by_turns([bare(), shunter()], load).items()
        }
        figures.append(
            compared(
                f"requests of {size // 1024} KB, 10 candidates", rates["shunter"],
                rates["bare loop"], 0.8, against="bare loop", unit="MB/s",
            )
        )  # fmt: skip
    return figures
