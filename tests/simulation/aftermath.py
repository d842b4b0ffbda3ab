"""The log after a run, as a committed reader sees it: read once, for all checks."""

from collections import Counter, defaultdict
from functools import cached_property
from typing import TYPE_CHECKING, Any

import orjson
from evidence_cases import named
from memory_cluster import Transaction

from streams.engine.log import Record
from topics.records import headers as h

if TYPE_CHECKING:
    from simulation.world import World

Place = tuple[str, int, int]
"""Topic, partition, offset."""


class Aftermath:
    """Visible records, and what was to be expected of them."""

    def __init__(self, world: "World") -> None:
        self.world = world
        self.catalogue = world.catalogue
        self.expected = world.workload.expected
        self.topics: dict[str, list[tuple[Record, Transaction | None]]] = defaultdict(list)
        for record, transaction in world.cluster.history:
            if transaction is None or transaction.is_visible_on(record.partition):
                self.topics[record.partition.topic].append((record, transaction))

    def records(self, topic: str) -> list[Record]:
        return [record for record, _ in self.topics[topic]]

    @cached_property
    def results(self) -> list[tuple[str, dict[str, Any]]]:
        """Ids and results."""
        found = self.records(self.catalogue.results)
        return [(key_of(record), orjson.loads(record.value or b"")) for record in found]

    @cached_property
    def evidence(self) -> list[tuple[dict[str, Any], Transaction | None]]:
        found = self.topics[self.catalogue.evidence]
        return [(named(record.value or b""), transaction) for record, transaction in found]

    @cached_property
    def published(self) -> dict[str, list[Record]]:
        """The records of each request on the ingest topic."""
        found: dict[str, list[Record]] = defaultdict(list)
        for record in self.records(self.catalogue.requests):
            is_bad = place_of(record) in self.world.bad and not self.is_lost(record)
            if not is_bad and key_of(record) not in self.world.questions:
                found[key_of(record)].append(record)
        return found

    def is_lost(self, record: Record) -> bool:
        """Tell whether Kafka has lost a record; another may stand in its place."""
        return any(record is lost for lost in self.world.lost_tail.records)

    @cached_property
    def gone(self) -> set[str]:
        """Requests that Kafka has lost from a lane before a worker had ended them."""
        lost = self.world.lost_tail
        ended = {name for name, _ in self.results}
        return lost.names - ended if lost.is_of_lane else set()

    @cached_property
    def unread(self) -> set[str]:
        """Requests of which Kafka has lost each record, before it was read where it was lost."""
        topic = self.catalogue.requests
        read = {e["request_id"] for e, _ in self.evidence if e["source"]["topic"] == topic}
        return self.gone | {
            name
            for name, records in self.published.items()
            if name not in read and all(map(self.is_lost, records))
        }

    @cached_property
    def doubtful(self) -> set[Place]:
        """Places of which nobody need know whether a duplicate stood there.

        Those of lost records, and of others with the id of one: a router may have read it.
        """
        lost = self.world.lost_tail
        of_others = (r for name in lost.names for r in self.published.get(name, ()))
        return {*map(place_of, lost.records), *map(place_of, of_others)}

    @cached_property
    def duplicates(self) -> set[Place]:
        """Requests whose id came among the last records before them, on their partition."""
        found = set()
        for records in self.published.values():
            if any(map(self.is_lost, records)):
                continue
            newest: dict[int, int] = {}
            for record in records:
                before = newest.get(record.partition.number)
                if before is not None and record.offset - before <= self.world.window_records:
                    found.add(place_of(record))
                newest[record.partition.number] = record.offset
        return found

    def evidenced(self, step: str) -> Counter[Place]:
        """Return what there is evidence of a step of, by where that stood."""
        sources = [evidence["source"] for evidence, _ in self.evidence if evidence["step"] == step]
        return Counter((s["topic"], s["partition"], s["offset"]) for s in sources)


def key_of(record: Record) -> str:
    return (record.key or b"").decode()


def place_of(record: Record) -> Place:
    return (*record.partition, record.offset)


def source_of(letter: Record) -> Place:
    """Return where a dead letter stood."""
    topic, partition, offset = (
        (h.find(letter.headers, f"__connect.errors.{name}") or b"").decode()
        for name in ("topic", "partition", "offset")
    )
    return topic, int(partition), int(offset)
