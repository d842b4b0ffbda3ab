"""The ends of the load: counted as they are read, a few bytes a request, checked at the end."""

import asyncio
import contextlib
import math
from array import array
from collections import Counter
from collections.abc import Container, Iterable, Iterator
from typing import Any

import orjson
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError
from load import BAD, DIRECT, REQUEST, Kind, Load, id_of, kind_of
from running_system import System
from verdict import ENDS, amiss

from streams.kafka.reader import consumer_options
from topics import BadRecordError, Placement
from topics.records import headers as h

STATUSES = ("", *ENDS.values())


class _Column:
    """A small number for each request, 0 at first."""

    def __init__(self, code: str) -> None:
        self._values: array[Any] = array(code)

    def __getitem__(self, number: int) -> float:
        return self._values[number] if number < len(self._values) else 0

    def __setitem__(self, number: int, value: float) -> None:
        missing = number + 1 - len(self._values)
        if missing > 0:
            self._values.extend([0] * missing)
        self._values[number] = value


class Ledger:
    """Reads results, evidence, dead letters and lanes, read_committed, from the beginning."""

    def __init__(self, system: System) -> None:
        self._system = system
        self._topics = system.catalogue
        pools = system.fleet["pools"]
        self._lanes = {topic.name for p in pools for topic in self._topics.pool_topics(p)}
        self._results, self._ends = _Column("B"), _Column("B")
        self._status, self._end = _Column("B"), _Column("B")
        self._entries, self._duplicates = _Column("B"), _Column("B")
        self._routed_at, self._started_at = _Column("d"), _Column("d")
        self._finished_at = _Column("d")
        self._dead: Counter[str] = Counter()
        self._told_dead: Counter[str] = Counter()
        # A reader that lost its place begins again: what it has had is passed over.
        self._read_to: dict[tuple[str, int], int] = {}
        self._dead_read: set[tuple[int, int]] = set()
        self._wrong: list[str] = []
        self.results = 0
        self.codes: Counter[str] = Counter()

    async def read(self) -> None:
        """Read until cancelled; whatever is wrong with the broker passes."""
        consumer = AIOKafkaConsumer(
            self._topics.results,
            self._topics.dead_letters,
            self._topics.evidence,
            *self._lanes,
            # Partitions that are added meanwhile are read soon.
            **consumer_options(self._system.settings),
        )
        await consumer.start()
        try:
            while True:
                try:
                    polled = await consumer.getmany(timeout_ms=200, max_records=2000)
                except KafkaError:
                    await asyncio.sleep(0.5)
                    continue
                for partition, records in polled.items():
                    for record in records:
                        self._take(partition.topic, record)
                    # A long read must not keep the load from its beat.
                    await asyncio.sleep(0)
        finally:
            with contextlib.suppress(KafkaError):
                await consumer.stop()

    def _take(self, topic: str, record: Any) -> None:
        if topic == self._topics.dead_letters:
            # A topic that was deleted and made again counts its offsets from 0 again.
            place = (record.offset, record.timestamp)
            if place not in self._dead_read:
                self._dead_read.add(place)
                self._dead[(record.key or b"").decode()] += 1
            return
        if record.offset <= self._read_to.get((topic, record.partition), -1):
            return
        self._read_to[topic, record.partition] = record.offset
        if topic in self._lanes:
            self._take_placement(record)
            return
        told = orjson.loads(record.value)
        if topic == self._topics.results:
            self._take_result(told)
        elif str(told["request_id"]).startswith(f"{REQUEST}-"):
            self._take_evidence(told)
        elif told["step"] == "dead_lettered":
            self._told_dead[told["request_id"]] += 1

    def _take_result(self, result: dict[str, Any]) -> None:
        number = int(result["id"].partition("-")[2])
        status, kind = result["status"], kind_of(number)
        self.results += self._results[number] == 0
        self._results[number] += 1
        self._status[number] = STATUSES.index(status)
        if status not in kind.ends:
            self._wrong.append(f"{result['id']}, a {kind.name}, ended as {status}")
        if status == "completed":
            placement = result["placement"]
            timing = result["timing"]
            self._finished_at[number] = timing["finished_at"]
            self._routed_at[number] = timing["routed_at"]
            self._started_at[number] = timing["started_at"]
            region, precision = placement["region"], placement["precision"]
            self._wrong += misplaced(f"{result['id']} was served", kind, region, precision)
        else:
            self.codes[f"{status}: {(result.get('error') or {}).get('code')}"] += 1

    def _take_placement(self, record: Any) -> None:
        name = (record.key or b"").decode()
        try:
            placement = h.read(record.headers, h.PLACEMENT, Placement)
        except BadRecordError as error:
            self._wrong.append(f"{name} is in a lane without its placement: {error.message}")
            return
        kind = kind_of(int(name.partition("-")[2]))
        where = f"{name} was sent to {placement.pool}"
        self._wrong += misplaced(where, kind, placement.region, placement.precision)

    def _take_evidence(self, evidence: dict[str, Any]) -> None:
        number = int(evidence["request_id"].partition("-")[2])
        step = evidence["step"]
        if step in ENDS:
            self._ends[number] += 1
            self._end[number] = STATUSES.index(ENDS[step])
        elif step in {"placed", "held"}:
            self._entries[number] += 1
        elif step == "duplicate":
            self._duplicates[number] += 1

    def took_s(self, load: Load, since: float, until: float) -> list[tuple[float, float]]:
        """Return when direct requests of a span of time were published, and how long they took.

        One that was not completed takes for ever.
        """
        return [
            (at := load.published_at[number], (self._finished_at[number] or math.inf) - at)
            for number in load.between(since, until)
            if kind_of(number) is DIRECT
        ]

    def worst(self, load: Load, since: float, until: float) -> tuple[float, ...]:
        """Return the seconds after which the slowest direct request of a span of time got on.

        Acknowledged by Kafka, routed, begun by a worker, finished; nothing where none finished.
        """
        finished = [
            (finished_at - load.published_at[number], number)
            for number in load.between(since, until)
            if kind_of(number) is DIRECT and (finished_at := self._finished_at[number])
        ]
        if not finished:
            return ()
        took_s, number = max(finished)
        at = load.published_at[number]
        acknowledged_at = load.acknowledged_at.get(id_of(number), math.nan)
        return (
            acknowledged_at - at,
            self._routed_at[number] - at,
            self._started_at[number] - at,
            took_s,
        )

    def missing(self, load: Load) -> int:
        """Return how many requests have no result yet, but for those that may not be in Kafka."""
        unsure = (key.partition("-") for key in load.may_be_missing)
        numbers = [int(number) for kind, _, number in unsure if kind == REQUEST]
        unseen = sum(not self._results[number] for number in numbers)
        return len(load.published_at) - self.results - unseen

    def served_of(self, load: Load, keys: Iterable[str]) -> int:
        """Return how many of these requests have a result all the same."""
        numbers = (int(key.partition("-")[2]) for key in keys if key.startswith(f"{REQUEST}-"))
        return sum(self._results[n] > 0 for n in numbers if n < len(load.published_at))

    def statuses(self, load: Load) -> Counter[str]:
        """Return how many requests ended how."""
        return Counter(STATUSES[int(self._status[n])] for n in range(len(load.published_at)))

    def problems(self, load: Load) -> list[str]:
        """Return what is wrong: anything lost, doubled, unexplained, or misplaced."""
        found, unsure = list(self._wrong), load.may_be_missing
        for number in range(len(load.published_at)):
            found += self._problems_of(number, load, unsure)
        dead = {key for key in (*self._dead, *self._told_dead) if key.startswith(f"{BAD}-")}
        for key in sorted(load.published_bad | dead):
            found += self._problems_of_bad(key, load, unsure)
        return found

    def _problems_of(self, number: int, load: Load, unsure: Container[str]) -> Iterator[str]:
        name = id_of(number)
        is_sure = name not in unsure
        results, ends = int(self._results[number]), int(self._ends[number])
        status, end = STATUSES[int(self._status[number])], STATUSES[int(self._end[number])]
        # One of which the client does not know may have come all the same: then once, as any other.
        if is_sure or results or ends:
            yield from amiss(name, results, status, ends, end)
        if status == "completed" and not self._entries[number]:
            yield f"{name} was completed, and neither placed nor held"
        if not is_refused_rightly(self._dead[name], status):
            yield f"{name} is a dead letter and {status}"
        resent, duplicates = int(number in load.published_twice), int(self._duplicates[number])
        if duplicates > resent or (is_sure and duplicates < resent):
            yield f"{name} came {1 + resent} times, and is {duplicates} times known as a duplicate"

    def _problems_of_bad(self, key: str, load: Load, unsure: Container[str]) -> Iterator[str]:
        letters, told = self._dead[key], self._told_dead[key]
        if key not in load.published_bad:
            yield f"{key} was never published"
        elif told > 1 or (told == 0 and key not in unsure):
            yield f"{key} is {told} times evidenced as a dead letter"
        elif letters > told or (letters < told and not load.letters_deleted):
            yield f"{key} is {letters} dead letters, and evidenced"


def misplaced(what: str, kind: Kind, region: str, precision: str) -> list[str]:
    """Return which constraints of a kind of request a place breaks."""
    found = [] if region in kind.regions else [f"{what}, in {region}"]
    return found if precision in kind.precisions else [*found, f"{what}, in {precision}"]


def is_refused_rightly(dead_letters: int, status: str) -> bool:
    """Tell whether a request is a dead letter once if Kafka refused it, and never else."""
    return dead_letters == 0 or (dead_letters == 1 and status == "failed")
