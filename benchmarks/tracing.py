"""Cost of traces at the router: processor time per request with none, a tenth and all sampled.

    python benchmarks/tracing.py
    python benchmarks/tracing.py --http --candidates 30
    python benchmarks/tracing.py --requests 500 --rounds 3 --json

The real router with the packaged policy runs on a log in memory: Kafka's own time, which would
make the share smaller, is left out. All other work of its process counts, including the sending
thread and gRPC's, as on one core. Each request has waited for the router, as in a backlog, so it
has three spans. They go by OTLP to a process that throws them away.

Rounds are interleaved, and each figure is a median; a share is the median of each round's own,
since a shared machine varies in speed. Prints a table of Markdown; with --json the last line is
the same for programs.
"""

import argparse
import asyncio
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import grpc
import orjson
from memory_log import MemoryCluster, MemoryLog
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind
from stream_cases import Yard, drain, make_signer, make_transactor

from benchmarks.sink import Sink
from benchmarks.workload import MODEL, make_options
from policies import Options, compile_options
from streams.config.declarations import load_fleet, load_policy
from streams.engine.log import Outgoing
from streams.hosting.services import calm_garbage_collector
from streams.router.stage import Router
from streams.tracing.otlp_grpc import GrpcExporter
from streams.tracing.otlp_http import HttpExporter
from streams.tracing.route_spans import RouteSpans
from streams.tracing.sampling import Sampling
from streams.tracing.span_queue import Exporter, SpanQueue
from streams.tracing.telemetry import Telemetry

SERVICE = "opentelemetry.proto.collector.trace.v1.TraceService"
NOW = 1_800_000_000.0
# What a backlog waits, long enough for a span of its own.
WAITED_S = 0.5
RATIOS: dict[str, float | None] = {"none": None, "10 %": 0.1, "100 %": 1.0}
GOALS = {"10 %": 0.10, "100 %": 0.50}


def serve(tell: Connection) -> None:
    """Receive spans and discard them."""
    server = grpc.server(ThreadPoolExecutor(2))
    take = grpc.unary_unary_rpc_method_handler(lambda _, __: b"")
    server.add_generic_rpc_handlers(
        [grpc.method_handlers_generic_handler(SERVICE, {"Export": take})]
    )
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    with Sink() as sink:
        tell.send((f"http://127.0.0.1:{port}", sink.url))
        server.wait_for_termination()


class TracedYard(Yard):
    """The yard of the tests with another fleet, the packaged policy, and telemetry."""

    def __init__(self, options: Options, ratio: float | None, exporter: Exporter) -> None:
        super().__init__()
        self.options = options
        self.policy = load_policy(None)
        self.live = set(self.options.by_pool)
        topics = self.catalogue.topics(self.options.by_pool)
        self.cluster = MemoryCluster({t.name: t.partitions for t in topics}, now=self.clock.now)
        self.span_queue = None
        if ratio is not None:
            self.span_queue = SpanQueue(exporter, Resource({"service.name": "shunter-router"}))
            self.telemetry = Telemetry(Sampling(ratio), self.span_queue)

    def connect(self) -> None:
        """Send a first span, so that no connection is made within what is measured."""
        if self.span_queue is not None:
            begun = self.telemetry.begin()
            self.telemetry.write("first", SpanKind.INTERNAL, begun, 0, (NOW, NOW), b"")
            self.flush()

    def flush(self) -> None:
        """Send what waits; none may have been dropped."""
        if self.span_queue is not None:
            self.span_queue.flush()
            if self.span_queue.dropped:
                raise SystemExit(
                    f"{self.span_queue.dropped} spans were dropped: not all was measured"
                )


def fleet_of(candidates: int | None) -> Options:
    """Return the packaged fleet, or one in which a request has this many candidates."""
    if candidates is None:
        return compile_options(load_fleet(None))
    return make_options(candidates // 3, 3)


async def measure(
    options: Options, ratio: float | None, requests: int, exporter: Exporter
) -> float:
    """Return the processor time of one request, in microseconds."""
    yard = TracedYard(options, ratio, exporter)
    body = {"model": MODEL, "messages": [{"role": "user", "content": "x" * 800}]}
    for n in range(requests):
        value = orjson.dumps({"id": f"request-{n}", "body": body})
        yard.cluster.publish(
            Outgoing(yard.catalogue.requests, b"%d" % n, value, [], n % yard.catalogue.partitions)
        )
    router = Router(
        yard.situation(),
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        request_bytes_max=1_000_000,
        duplicate_window_records=100_000,
    )
    transactor = make_transactor(
        MemoryLog(yard.cluster),
        router,
        yard.catalogue.progress,
        signer=make_signer(yard.catalogue, yard.clock, yard.digests),
        records_max=yard.settings.poll_records_max,
        observers=[RouteSpans(yard.telemetry, yard.catalogue, yard.clock)],
    )
    await transactor.start()
    await yard.cluster.rebalance(router.group)
    yard.connect()
    yard.clock.at += WAITED_S
    # As in a process of Shunter (streams/hosting/services.py).
    calm_garbage_collector()
    began = time.process_time()
    await drain(transactor)
    yard.flush()
    took_s = time.process_time() - began
    yard.telemetry.close()
    if len(yard.cluster.records(yard.catalogue.evidence)) != requests:
        raise SystemExit("not every request was routed")
    return took_s / requests * 1e6


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--candidates", type=int, help="of each request; else the packaged fleet's")
    parser.add_argument("--http", action="store_true", help="not by gRPC")
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    sink = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs,), daemon=True)
    sink.start()
    grpc_url, http_url = ours.recv()
    os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = http_url if asked.http else grpc_url
    exporter_of = HttpExporter if asked.http else GrpcExporter
    options = fleet_of(asked.candidates)

    def once(ratio: float | None, requests: int) -> float:
        return asyncio.run(measure(options, ratio, requests, exporter_of()))

    found: dict[str, list[float]] = {name: [] for name in RATIOS}
    once(1.0, asked.requests // 4)
    for number in range(asked.rounds):
        # Each goes first as often as any other.
        turn = number % len(RATIOS)
        for name, ratio in [*list(RATIOS.items())[turn:], *list(RATIOS.items())[:turn]]:
            found[name].append(once(ratio, asked.requests))
    sink.terminate()
    medians = {name: statistics.median(times) for name, times in found.items()}
    lost = {
        name: statistics.median(
            1 - plain / traced for plain, traced in zip(found["none"], found[name], strict=True)
        )
        for name in GOALS
    }
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, Python {platform.python_version()}\n")
    print("| sampled | us per request | lowest to highest | of the throughput |")
    print("| --- | --: | --: | --: |")
    for name, times in found.items():
        span = f"{min(times):.0f} to {max(times):.0f}"
        share = "" if name == "none" else f"{-lost[name]:+.1%}"
        print(f"| {name} | {medians[name]:.0f} | {span} | {share} |")
    if asked.json:
        print(json.dumps({"us": found, "lost": lost, "goals": GOALS}))


if __name__ == "__main__":
    main()
