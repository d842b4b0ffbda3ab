"""Calculate what a cluster needs for a rate: cores, partitions, transactions, bytes.

    python -m benchmarks.scale --rate 1000000 --candidates 10 --pools 40

The bytes of a request are those that the code here writes; its processor time is measured first,
or given (`--router-us`). Broker figures are assumptions, named in the table, each with a flag.
"""

import argparse
import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass

from benchmarks.engine import working
from benchmarks.growth import routed_us
from benchmarks.workload import Yard, make_options, records_of, request_value
from workers.stage.worker import COMMIT_EVERY_S

DAY_S = 86_400
MB = 1e6
# What `kafka_writer` adds to a request's own bytes in a batch: lengths, offsets, timestamps.
RECORD_OVERHEAD_BYTES = 12
PROGRESS_BYTES, ROOT_BYTES, LEAF_BYTES = 250, 345, 44
# A result, with a reply of half of that.
RESULT_BYTES = 1500
# Of a transaction the coordinator writes: its partitions (about once for each that is added
# together), the decision to commit and its end.
COORDINATOR_WRITES = 3


@dataclass(frozen=True)
class Request:
    """Size of one request, in bytes and in microseconds of one core."""

    bytes: int
    lane_bytes: int
    evidence_bytes: int
    executed_bytes: int
    evidence_zlib: float
    result_bytes: int
    router_us: float
    client_us: float


def sampled(candidates: int, size: int, client_us: float, router_us: float | None) -> Request:
    """Return the cost of a request with this many candidates; measured if not given."""
    yard = Yard(make_options(candidates, 1))
    effects = [
        yard.decide(records_of([request_value(n, size)], yard.catalogue.requests)[0])
        for n in range(50)
    ]
    sent, evidence = effects[0].records
    pressed = zlib.compress(b"".join(e.records[1].value or b"" for e in effects), 6)
    plain = sum(len(e.records[1].value or b"") for e in effects)
    headers = sum(len(name) + len(value) for name, value in sent.headers)
    return Request(
        bytes=size,
        lane_bytes=size + headers,
        evidence_bytes=len(evidence.value or b""),
        executed_bytes=executed_bytes(),
        evidence_zlib=len(pressed) / plain,
        result_bytes=RESULT_BYTES,
        router_us=routed_us(yard) if router_us is None else router_us,
        client_us=client_us,
    )


def executed_bytes() -> int:
    """Return the bytes of the evidence of an execution, as a worker writes it."""
    engine = working(1)
    engine.run()
    topic = next(name for name in engine.cluster.topics if name.endswith(".evidence"))
    (record,) = engine.cluster.records(topic)
    engine.close()
    return len(record.value or b"")


@dataclass(frozen=True)
class Assumed:
    """Assumptions about the cluster.

    Attributes:
        rate: requests per second, all of them direct.
        pools: of the fleet, each with its share of them.
        records_per_transaction: most that one has.
        commit_s: least time between two commits of a partition at a busy worker.
        replicas: of each partition.
        broker_mb_s: that a broker writes.
        broker_writes_s: small ones that it does.
        headroom: share of a router's core in use.
        evidence_days: that evidence is kept.
    """

    rate: float
    pools: int
    records_per_transaction: int
    commit_s: float
    replicas: int
    broker_mb_s: float
    broker_writes_s: float
    headroom: float
    evidence_days: float


def needs(request: Request, assumed: Assumed) -> Iterator[tuple[str, float, str]]:
    """Yield the needs, as (what, how much, derivation)."""
    rate, per, writes = assumed.rate, assumed.records_per_transaction, 0.0
    each_us = request.router_us + request.client_us
    yield "processor time of a request, us", each_us, "deciding and signing, and the Kafka client"
    routers = rate * each_us / 1e6 / assumed.headroom
    yield "router processes (a core each)", math.ceil(routers), f"at {assumed.headroom:.0%} load"
    partitions = math.ceil(routers)
    yield "partitions of ingest", partitions, "one a router at least: a partition has one owner"
    # The lanes of all pools have as many, and so have hold, results, evidence and the rest.
    yield "partitions in all", partitions * (2 * assumed.pools + 12), "each topic has as many"
    yield "transactional producers", partitions * (4 + 2 * assumed.pools), "one a partition read"
    lanes = partitions * assumed.pools
    by_worker = min(per, max(1.0, rate / lanes * assumed.commit_s))
    yield (
        "records in a worker's transaction",
        by_worker,
        f"{lanes:,} direct lane partitions, each committed every {assumed.commit_s:g} s when busy",
    )
    # A router's reaches the lane of each pool that it chose, and evidence on any partition; a
    # worker's reaches results and evidence on any; both progress and a root.
    for name, records, touched in (
        ("a router's", per, min(assumed.pools, per) + min(partitions, per) + 2),
        ("a worker's", by_worker, 2 * min(partitions, by_worker) + 2),
    ):
        yield f"{name} transactions/s", rate / records, f"{records:,.1f} records each"
        yield f"partitions that {name} touches", touched, "each takes a marker when it ends"
        writes += rate / records * (COORDINATOR_WRITES + touched)
    yield "writes of coordinators and markers/s", writes, "small, but each a request"
    yield "brokers for these", math.ceil(writes / assumed.broker_writes_s), "see --broker-writes-s"
    evidence = request.evidence_bytes + request.executed_bytes
    # Ingest, lane, result and evidence of two steps are a record each, and evidence has a leaf.
    overhead = 5 * RECORD_OVERHEAD_BYTES + 2 * LEAF_BYTES
    overhead += (PROGRESS_BYTES + ROOT_BYTES) * (1 / per + 1 / by_worker)
    written = request.bytes + request.lane_bytes + evidence + request.result_bytes + overhead
    yield "bytes written for a request", written, "ingest, lane, evidence of two steps, result"
    yield "of them evidence", evidence, f"zlib leaves {request.evidence_zlib:.0%} of it"
    total_mb_s = rate * written * assumed.replicas / MB
    yield "MB/s written in all replicas", total_mb_s, f"{assumed.replicas} replicas"
    yield (
        "brokers for these bytes",
        math.ceil(total_mb_s / assumed.broker_mb_s),
        "see --broker-mb-s",
    )
    pressed = rate * (written - evidence * (1 - request.evidence_zlib)) * assumed.replicas / MB
    brokers = math.ceil(pressed / assumed.broker_mb_s)
    yield (
        "brokers, evidence compressed",
        brokers,
        "`compression.type` of its topic",
    )
    kept = rate * evidence * request.evidence_zlib * assumed.evidence_days * DAY_S
    yield "TB of evidence kept", kept * assumed.replicas / 1e12, f"{assumed.evidence_days:g} days"


def main() -> None:
    """Print what is needed as a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=__doc__)
    parser.add_argument("--rate", type=float, default=1e6, help="requests per second")
    parser.add_argument("--candidates", type=int, default=10, help="options that serve a request")
    parser.add_argument("--pools", type=int, default=40)
    parser.add_argument("--bytes", type=int, default=1024, help="of a request")
    parser.add_argument("--router-us", type=float, help="time to decide and sign, not measured")
    parser.add_argument("--client-us", type=float, default=60.0, help="the bare loop's time")
    parser.add_argument("--records-per-transaction", type=int, default=100, help="at most")
    parser.add_argument(
        "--commit-s", type=float, default=COMMIT_EVERY_S, help="between two of a lane's partition"
    )
    parser.add_argument("--replicas", type=int, default=3)
    parser.add_argument("--broker-mb-s", type=float, default=500.0, help="that a broker writes")
    parser.add_argument("--broker-writes-s", type=float, default=100_000.0, help="small ones")
    parser.add_argument("--headroom", type=float, default=0.6, help="share of a core in use")
    parser.add_argument("--evidence-days", type=float, default=30.0)
    asked = parser.parse_args()
    request = sampled(asked.candidates, asked.bytes, asked.client_us, asked.router_us)
    assumed = Assumed(
        asked.rate,
        asked.pools,
        asked.records_per_transaction,
        asked.commit_s,
        asked.replicas,
        asked.broker_mb_s,
        asked.broker_writes_s,
        asked.headroom,
        asked.evidence_days,
    )
    print(f"{asked.rate:,.0f} requests/s of {asked.bytes:,} bytes, {time.strftime('%Y-%m-%d')}\n")
    print("| need | | |\n| --- | ---: | --- |")
    for what, amount, how in needs(request, assumed):
        digits = 1 if amount < 10 and amount % 1 else 0
        print(f"| {what} | {amount:,.{digits}f} | {how} |")


if __name__ == "__main__":
    main()
