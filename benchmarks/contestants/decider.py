"""The router's decision as a function, for the streaming libraries that it is measured against."""

import time

from benchmarks.workload import Yard, make_options, report_all
from streams.engine.log import Outgoing, Partition, Record

REFRESH_S = 1.0


class Decider:
    """Decides like the router on the same fleet, with heartbeats of an idle fleet."""

    def __init__(self) -> None:
        self._yard = Yard(make_options())
        self._reported_at = time.monotonic()

    def route(self, value: bytes, key: bytes, partition: int, offset: int) -> list[Outgoing]:
        """Return the two records of a request: for its lane or the hold, and its evidence."""
        now = time.monotonic()
        if now - self._reported_at > REFRESH_S:
            report_all(self._yard.situation.view, self._yard.options)
            self._reported_at = now
        home = Partition(self._yard.catalogue.requests, partition)
        record = Record(home, offset, key, value, (), int(time.time() * 1000))
        return self._yard.decide(record).records
