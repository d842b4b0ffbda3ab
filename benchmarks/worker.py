"""The worker's own cost: requests per second with a backend that answers at once."""

import asyncio
import time

from benchmarks.figures import Figure, compared
from benchmarks.ground import PARTITIONS, Watch, ground
from benchmarks.sides import Load, bare
from benchmarks.throughput import Hall
from benchmarks.yard import Yard, make_options, records_of, request_value

POOL = "pool-000"
IN_FLIGHT = 64
# What a worker writes of a request: the evidence of its execution, and a result with two headers.
EVIDENCE_BYTES, HEADER_BYTES = 1500, 60


async def executed_per_s(hall: Hall, count: int) -> float:
    """Return the requests per second that end in a result, from a lane that is full at first."""
    hall.number += 1
    options = make_options(is_mixed=True)
    with ground(hall.broker.bootstrap_servers, f"bench-{hall.number}", hall.directory) as here:
        await here.apply(options.by_pool)
        yard = Yard(options, now=time.time())
        producer = here.producer()
        await producer.start()
        lane = here.catalogue.pool_lane(POOL, "direct")
        limits = {"created_at": yard.now, "constraints": {"pools": [POOL]}}
        for number in range(count):
            value = request_value(number, completion_window="1h", **limits)
            out = yard.decide(records_of([value], yard.catalogue.requests)[0]).records[0]
            await producer.send(
                lane, out.value, out.key, partition=number % here.partitions, headers=out.headers
            )
        await producer.flush()
        await producer.stop()
        fleet = here.directory / f"{here.prefix}.yaml"
        fleet.write_text(Load(0, is_mixed=True).fleet())
        here.start(
            "benchmarks.contestants.null_worker",
            SHUNTER_FLEET=str(fleet),
            SHUNTER_IN_FLIGHT_MAX=str(IN_FLIGHT),
        )
        async with Watch(here, [here.catalogue.results]) as watch:
            rate = await watch.rate(count)
        await here.delete()
    return rate


def worker(hall: Hall) -> list[Figure]:
    """Return how many requests a worker carries, against the bare loop."""
    count = hall.records(15_000)
    ours, theirs = [], []
    for _ in range(hall.rounds):
        # What is in flight is shared out over the partitions, of each a transaction.
        each = IN_FLIGHT // PARTITIONS
        side = bare(poll_records=each, written=(EVIDENCE_BYTES, HEADER_BYTES))
        theirs.append(hall.measure(side, Load(count, is_mixed=True)))
        ours.append(asyncio.run(executed_per_s(hall, count)))
        print(f"  worker: {ours[-1]:,.0f}/s", flush=True)
    name = f"a worker, {IN_FLIGHT} in flight, null backend"
    return [compared(name, ours, theirs, 0.4, against="bare loop")]
