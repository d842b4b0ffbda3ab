"""Latency that the router adds at 1,000 requests a second: published to visible on a lane."""

import asyncio
import statistics
import time

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from benchmarks.cluster_fixture import Ground, beat, ground
from benchmarks.contenders import Load, Side, bare, shunter
from benchmarks.figures import Figure, compared
from benchmarks.throughput import Hall
from benchmarks.workload import make_options, request_value

PER_SECOND = 1000
# Sent at once every so often, as arrivals on a network come.
TICK_S = 0.005
# At the same pace, and not counted: what a process does for the first time takes it longer, and
# half a second of that is the 99th percentile of eight.
WARM_S = 3.0
SECONDS = 8.0
READY_S_MAX = 60.0


async def hop_ms(hall: Hall, side: Side, seconds: float) -> tuple[float, float]:
    """Return median and 99th percentile of a side, in milliseconds."""
    hall.number += 1
    load = Load(0, is_mixed=True)
    options = make_options(is_mixed=True)
    servers, prefix = hall.broker.bootstrap_servers, f"bench-{hall.number}"
    with ground(servers, prefix, hall.directory) as here:
        await here.apply(options.by_pool)
        await beat(here, options, once=True)
        beating = asyncio.create_task(beat(here, options))
        side.start(here, load)
        lanes = [here.catalogue.pool_lane(pool, "direct") for pool in options.by_pool]
        consumer = AIOKafkaConsumer(
            *lanes,
            bootstrap_servers=servers,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        producer = AIOKafkaProducer(bootstrap_servers=servers, linger_ms=0)
        await consumer.start()
        await producer.start()
        try:
            return await _measured(here, consumer, producer, seconds)
        finally:
            beating.cancel()
            await producer.stop()
            await consumer.stop()
            await here.delete()


async def _measured(
    here: Ground, consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, seconds: float
) -> tuple[float, float]:
    sent_at: dict[bytes, float] = {}
    took_s: list[float] = []

    async def publish(count: int) -> None:
        for _ in range(count):
            number = len(sent_at)
            key, value = b"%d" % number, request_value(number, created_at=time.time())
            sent_at[key] = time.perf_counter()
            partition = number % here.partitions
            await producer.send(here.catalogue.requests, value, key, partition=partition)

    async def read(until: int) -> None:
        end_at = time.perf_counter() + READY_S_MAX
        while len(took_s) < until:
            for records in (await consumer.getmany(timeout_ms=100)).values():
                now = time.perf_counter()
                # A router keys by the id of the request, a copy by the key that it came with.
                took_s.extend(
                    now - sent_at[b"%d" % int(r.key.removeprefix(b"r-"))] for r in records
                )
            here.require_alive()
            if time.perf_counter() > end_at:
                raise RuntimeError(f"{len(took_s)} of {until} in {READY_S_MAX} s")

    async def keep_pace(seconds: float) -> None:
        began, first = time.perf_counter(), len(sent_at)
        total = int(seconds * PER_SECOND)
        reading = asyncio.create_task(read(total))
        while (published := len(sent_at) - first) < total:
            due = min(total, int((time.perf_counter() - began) * PER_SECOND))
            await publish(due - published)
            await asyncio.sleep(TICK_S)
        await reading

    # The process is up.
    await publish(1)
    await read(1)
    for lasts_s in (WARM_S, seconds):
        took_s.clear()
        await keep_pace(lasts_s)
    return statistics.median(took_s) * 1000, statistics.quantiles(took_s, n=100)[98] * 1000


def latency(hall: Hall) -> list[Figure]:
    """Return how much longer the router's hop takes than that of the bare loop."""
    sides = [bare(), shunter()]
    found: dict[str, list[tuple[float, float]]] = {side.name: [] for side in sides}
    for number in range(hall.rounds):
        for side in sides if number % 2 else reversed(sides):
            median, p99 = asyncio.run(hop_ms(hall, side, max(2.0, SECONDS * hall.scale)))
            print(f"  {side.name}: p50 {median:.1f} ms, p99 {p99:.1f} ms", flush=True)
            found[side.name].append((median, p99))
    return [
        compared(
            f"hop at 1,000 requests/s, {name}",
            [each[at] for each in found["shunter"]],
            [each[at] for each in found["bare loop"]],
            reach,
            against="bare loop",
            at_most=True,
            unit="ms",
        )
        for at, (name, reach) in enumerate((("p50", 1.3), ("p99", 1.5)))
    ]
