"""The live ledger: a follower of the evidence that folds what ends from its start on.

It is a view, and forgets all when it stops; `shunter ledger` without `--follow` reads everything.
"""

from collections.abc import Collection

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition

from streams.engine.log import Partition, Record
from streams.kafka.follower import TopicFollower
from streams.usage_report.projection import Endings, Line, UsageRow, as_json, window_of
from topics import Catalogue, Settings

# How many windows are kept: the newest in which a request ended.
WINDOWS_KEPT = 60
# Rows of a window that tell tenants apart: clients may name as many tenants as they like.
ROWS_MAX = 200
OTHER_TENANTS = "(other)"
NOTE = "live: what has ended since this process began; `shunter ledger` reads all of the evidence"


class LiveLedger(TopicFollower):
    """Keeps the rows of the newest windows, over all partitions of the evidence."""

    def __init__(self, settings: Settings, window_s: float, *, by_tenant: bool = False) -> None:
        super().__init__(settings, Catalogue(settings).evidence)
        self._window_s = window_s
        self._by_tenant = by_tenant
        self._endings: dict[int, Endings] = {}
        self._windows: dict[float, dict[Line, UsageRow]] = {}
        self.follows = False
        """Whether what ends from now on is counted."""

    async def start(self) -> None:
        """Begin with what comes from now on."""
        await super().start()
        self.follows = True

    def take(self, record: Record) -> None:
        """Count what ended, in the window in which it did."""
        number = record.partition.number
        if number not in self._endings:
            self._endings[number] = Endings(by_tenant=self._by_tenant)
        ending = self._endings[number].take(record.value)
        if ending is None:
            return
        rows, line = self._windows.setdefault(window_of(ending.at, self._window_s), {}), ending.line
        if line.tenant and line not in rows and len(rows) >= ROWS_MAX:
            line = line._replace(tenant=OTHER_TENANTS)
        rows.setdefault(line, UsageRow()).add(ending)
        if len(self._windows) > WINDOWS_KEPT:
            del self._windows[min(self._windows)]

    def rows(self) -> dict[tuple[float, Line], UsageRow]:
        """Return the rows by start of window and line."""
        return {(at, line): row for at, rows in self._windows.items() for line, row in rows.items()}

    def page(self) -> tuple[str, bytes]:
        """Return the content type and the rows, as they are served."""
        told = {"note": NOTE, "window_s": self._window_s, "rows": as_json(self.rows())}
        return "application/json", orjson.dumps(told)

    async def _starts(
        self, consumer: AIOKafkaConsumer, assigned: Collection[TopicPartition]
    ) -> dict[Partition, int]:
        """Return the ends: what was there before is not counted."""
        ends = await consumer.end_offsets(assigned)
        return {Partition(*p): end for p, end in ends.items()}
