"""Requests routed per second: the time from a full backlog until all results are visible."""

import asyncio
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.cluster_fixture import Ground, Watch, beat, ground, publish, shared_out
from benchmarks.contenders import (
    FASTSTREAM,
    FAUST,
    POLL_RECORDS,
    QUIX,
    Load,
    Side,
    bare,
    shunter,
)
from benchmarks.figures import Figure, compared
from benchmarks.resource_usage import Used, cores, meter, transaction_us
from benchmarks.sink import Sink
from benchmarks.workload import make_options, request_value
from topics.embedded_broker.broker import EmbeddedBroker

# Publishing large requests must not take longer than reading them.
LARGE_BYTES = (102_400, 409_600)
# Of a second bare loop, whose transactions are dearer: what one takes follows from both.
FEW_RECORDS = 25


@dataclass
class Hall:
    """The broker shared by all rounds, and the directory of their processes' output."""

    broker: EmbeddedBroker
    directory: Path
    rounds: int
    scale: float
    told: list[Used] = field(default_factory=list)
    number: int = 0

    def records(self, count: int) -> int:
        """Return how many records of this many a quick run takes."""
        return max(400, int(count * self.scale))

    def measure(self, side: Side, load: Load) -> float:
        """Return the requests per second of one run of a side."""
        self.number += 1
        used = asyncio.run(self._measure(side, load, f"bench-{self.number}"))
        self.tell(used)
        return used.per_s

    def tell(self, used: Used) -> None:
        """Keep what a run used for the raw results, and print it."""
        self.told.append(used)
        print(f"  {used}", flush=True)

    async def _measure(self, side: Side, load: Load, prefix: str) -> Used:
        options = make_options(is_mixed=load.is_mixed)
        servers = self.broker.bootstrap_servers
        with ground(servers, prefix, self.directory) as here:
            await here.apply(options.by_pool)
            values = [request_value(n, load.bytes, **load.fields) for n in range(load.records)]
            await beat(here, options, once=True)
            beating = asyncio.create_task(beat(here, options))
            try:
                async with Watch(here, [here.catalogue.evidence]) as watch:
                    if side.members:
                        side.start(here, load)
                        await self._begin(here, watch, side.members)
                    await publish(here, here.catalogue.requests, values)
                    if not side.members:
                        side.start(here, load)
                    pace = await watch.pace(load.records, meter(here, self.broker))
            finally:
                beating.cancel()
        await here.delete()
        return Used.of(side.name, load.bytes, pace)

    @staticmethod
    async def _begin(here: Ground, watch: Watch, members: int) -> None:
        """Wait until each partition has an owner, as a request of its own shows."""
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
    """Return a router's throughput, against the bare loop and a router with traces."""
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
    small = bare(f"bare loop, {FEW_RECORDS} in a transaction", poll_records=FEW_RECORDS)
    began = len(hall.told)
    of_ten = hall.by_turns([bare(), shunter(), small], mixed)
    each = transaction_us(hall.told[began:], (small.name, FEW_RECORDS), (bare().name, POLL_RECORDS))
    print(f"  of the bare loop's time a transaction takes {each:.0f} us", flush=True)
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
    """Return a router's throughput, against other streaming libraries."""
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
    """Return the throughput of two routers, against two bare loops on the same broker."""
    load = Load(hall.records(40_000))
    routers = ("one router", "two routers")
    loops = ("one bare loop", "two bare loops")
    rates = hall.by_turns(
        [
            *(shunter(name, n, is_awaited=True) for n, name in enumerate(routers, 1)),
            *(bare(name, n) for n, name in enumerate(loops, 1)),
        ],
        load,
    )
    less, more = (statistics.median(rates[name]) for name in loops)
    used = "; ".join(f"{name} {cores(hall.told, name)}" for name in (*routers, *loops))
    note = f"two bare loops {more:,.0f}/s, one {less:,.0f}; cores in use: {used}"
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
