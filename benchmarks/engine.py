"""The engine without a Kafka: the real transactor drives a stage on the tests' log in memory.

It includes what `benchmarks.workload` leaves out: polls, awaited sends, commits and progress of
four partitions side by side, and the runtime of a worker.
"""

import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "support"))

from memory_log import MemoryCluster, MemoryLog
from stream_cases import drain, make_transactor

from benchmarks.contestants.null_worker import NullBackend
from benchmarks.worker import IN_FLIGHT, POOL
from benchmarks.workload import Clock, Yard, make_options, records_of, report_all, request_value
from streams.cancellation.index import Cancellations
from streams.engine.log import Outgoing
from streams.engine.stage import Stage
from streams.tracing.telemetry import Telemetry
from workers.resilience.attempts import Attempts
from workers.resilience.circuit_breaker import Breakers
from workers.stage.chunks import Sink, Streams
from workers.stage.outcomes import OutcomeWriter
from workers.stage.worker import Worker

# No request asks for a stream.
_NO_SINK = cast("Sink", None)


class Engine:
    """A stage that owns all partitions, and its repeated input.

    Args:
        yard: source of its topics and signer.
        stage: the driven stage.
        inputs: records of its topics, published anew for each run.
        before: called before each run.
    """

    def __init__(
        self,
        yard: Yard,
        stage: Stage,
        inputs: Sequence[Outgoing],
        *,
        before: Callable[[], None] = lambda: None,
    ) -> None:
        catalogue = yard.catalogue
        topics = catalogue.topics(yard.options.by_pool)
        self.cluster = MemoryCluster(
            {topic.name: topic.partitions for topic in topics}, now=lambda: yard.now
        )
        self._inputs, self._before = inputs, before
        log = MemoryLog(self.cluster)
        self._transactor = make_transactor(log, stage, catalogue.progress, signer=yard.signer)
        self._loop = asyncio.new_event_loop()
        self._loop.run_until_complete(self._join(stage.group))

    def run(self) -> None:
        """Publish the inputs and step until nothing is left to read."""
        self._before()
        self._loop.run_until_complete(self._run())

    def close(self) -> None:
        """Leave the group and close the loop."""
        self._loop.run_until_complete(self._transactor.stop())
        self._loop.close()

    async def _join(self, group: str) -> None:
        await self._transactor.start()
        await self.cluster.rebalance(group)
        await self._transactor.take_over()

    async def _run(self) -> None:
        for record in self._inputs:
            self.cluster.publish(record)
        await drain(self._transactor)


def routing(requests: int) -> Engine:
    """Return a router with 10 candidates for each of this many requests."""
    yard = Yard(make_options(is_mixed=True))
    topic, partitions = yard.catalogue.requests, yard.catalogue.partitions
    values = [request_value(number) for number in range(requests)]
    inputs = [
        Outgoing(topic, b"%d" % number, value, partition=number % partitions)
        for number, value in enumerate(values)
    ]

    def idle() -> None:
        report_all(yard.situation.view, yard.options)

    return Engine(yard, yard.router, inputs, before=idle)


def working(requests: int) -> Engine:
    """Return a worker whose backend answers this many requests immediately."""
    yard = Yard(make_options(is_mixed=True))
    pool = {"constraints": {"pools": [POOL]}, "completion_window": "1h", "created_at": yard.now}
    values = [request_value(number, **pool) for number in range(requests)]
    inputs = []
    for number, record in enumerate(records_of(values, yard.catalogue.requests)):
        report_all(yard.situation.view, yard.options)
        placed = yard.decide(record).records[0]
        placed.partition = number % yard.catalogue.partitions
        inputs.append(placed)
    clock, served, attempts_max = Clock(yard.now), yard.options.by_pool[POOL], 3
    names = tuple(option.variant for option in served)
    backend = NullBackend(names)
    breakers = Breakers(POOL, names, backend, clock)
    worker = Worker(
        POOL,
        served,
        Attempts(backend, breakers, clock, attempts_max=attempts_max, uniform=lambda: 0.5),
        yard.evidence_writer,
        OutcomeWriter(yard.evidence_writer, Telemetry(None), attempts_max),
        clock,
        Cancellations(clock),
        Streams(_NO_SINK),
        in_flight_max=IN_FLIGHT,
        in_flight_bytes_max=1 << 30,
    )
    return Engine(yard, worker, inputs)
