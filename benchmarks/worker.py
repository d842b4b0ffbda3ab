"""The worker's own cost: requests per second with a backend that answers at once."""

import asyncio
import time

from benchmarks.cluster_fixture import PARTITIONS, Watch, ground
from benchmarks.contenders import Load, bare
from benchmarks.figures import Figure, compared
from benchmarks.resource_usage import Used, meter
from benchmarks.throughput import Hall
from benchmarks.workload import REQUEST_BYTES, Yard, make_options, records_of, request_value

POOL = "pool-000"
IN_FLIGHT = 64
# What is in flight is shared out over the partitions, of each a transaction. A poll that begins
# below the limit may go beyond it by less than this.
POLL_RECORDS = IN_FLIGHT // PARTITIONS
# What a worker's last line begins with: how many it had in flight at most.
HIGHEST = "in flight at most:"
# What a worker writes of a request: the evidence of its execution, and a result with two headers.
EVIDENCE_BYTES, HEADER_BYTES = 1500, 60


async def executed(hall: Hall, count: int) -> tuple[Used, int]:
    """Return the rate of results from a lane that is full at first, and the most in flight."""
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
            SHUNTER_POLL_RECORDS_MAX=str(POLL_RECORDS),
        )
        async with Watch(here, [here.catalogue.results]) as watch:
            pace = await watch.pace(count, meter(here, hall.broker))
        here.stop()
        highest = int(here.last_words(0).rpartition(HIGHEST)[2])
        await here.delete()
    return Used.of("worker", REQUEST_BYTES, pace), highest


def worker(hall: Hall) -> list[Figure]:
    """Return a worker's rate of requests, against the bare loop."""
    count = hall.records(15_000)
    ours, theirs, highest = [], [], 0
    for _ in range(hall.rounds):
        side = bare(poll_records=POLL_RECORDS, written=(EVIDENCE_BYTES, HEADER_BYTES))
        theirs.append(hall.measure(side, Load(count, is_mixed=True)))
        used, most = asyncio.run(executed(hall, count))
        hall.tell(used)
        ours.append(used.per_s)
        highest = max(highest, most)
    return [
        compared(
            f"a worker, {IN_FLIGHT} in flight, null backend", ours, theirs, 0.4,
            against="bare loop", note=f"at most {highest} in flight",
        )
    ]  # fmt: skip
