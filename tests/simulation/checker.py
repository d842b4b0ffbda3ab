"""What must hold after a run, read from the log alone (docs/architecture.md, the invariants)."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import orjson
from memory_cluster import Transaction

from streams.log import Record
from topics import Placement
from topics import headers as h

if TYPE_CHECKING:
    from simulation.world import World

Written = list[tuple[Record, Transaction | None]]
Place = tuple[str, int, int]
"""Topic, partition, offset."""

# The steps that may be the evidence of a result.
STEPS = {
    "completed": {"executed"},
    "failed": {"failed", "dead_lettered"},
    "expired": {"expired"},
    "rejected": {"rejected"},
    "cancelled": {"cancelled"},
}


def check(world: "World") -> Iterator[str]:
    """Yield what is wrong."""
    topics: dict[str, Written] = defaultdict(list)
    for record, transaction in world.cluster.history:
        if transaction is None or transaction.is_visible_on(record.partition):
            topics[record.partition.topic].append((record, transaction))
    first = {name: records[0] for name, records in _published(world, topics).items()}
    duplicates = _expected_duplicates(world, topics)
    yield from _torn(world)
    yield from _results(world, topics, duplicates)
    yield from _deadlines(world, topics, first)
    yield from _constraints(world, topics)
    yield from _evidence(world, topics)
    yield from _duplicates(world, topics, duplicates)
    yield from _cancellations(world, topics)
    yield from _dead_letters(world, topics)
    yield from _progress(world, topics)
    yield from (f"{_key(r)} is still held" for r in held(world))


def _torn(world: "World") -> Iterator[str]:
    """A transaction ends on each partition as its coordinator has decided."""
    for transaction in {t: None for _, t in world.cluster.history if t is not None}:
        for partition, marker in transaction.markers.items():
            if marker != transaction.state:
                yield (
                    f"{transaction.transactional_id}: its transaction was {transaction.state},"
                    f" but {marker} on {partition}"
                )


def _published(world: "World", topics: dict[str, Written]) -> dict[str, list[Record]]:
    """Return the records of each request on the ingest topic."""
    found: dict[str, list[Record]] = defaultdict(list)
    for record, _ in topics[world.catalogue.requests]:
        if _place(record) not in world.bad:
            found[_key(record)].append(record)
    return found


def _expected_duplicates(world: "World", topics: dict[str, Written]) -> set[Place]:
    """Return the records whose id came among the last ones before them, on their partition."""
    duplicates = set()
    for records in _published(world, topics).values():
        for record, before in zip(records[1:], records, strict=False):
            earlier = [
                r.offset
                for r in records[: records.index(before) + 1]
                if r.partition == record.partition
            ]
            if earlier and record.offset - max(earlier) <= world.window_records:
                duplicates.add(_place(record))
    return duplicates


def _results(
    world: "World", topics: dict[str, Written], duplicates: set[Place]
) -> Iterator[str]:
    counts = Counter(_key(record) for record, _ in topics[world.catalogue.results])
    for name, records in _published(world, topics).items():
        accepted = sum(_place(record) not in duplicates for record in records)
        # Of two that are accepted and held at once, the second takes the place of the first.
        if not 1 <= counts[name] <= accepted:
            yield f"{name}: {counts[name]} results, accepted {accepted} times"
    for name in counts.keys() - world.workload.expected.keys():
        yield f"{name}: a result of what was no request"


def _deadlines(
    world: "World", topics: dict[str, Written], first: dict[str, Record]
) -> Iterator[str]:
    """Nothing expires early, nothing begins late, by the clock of whoever decided."""
    for record, _ in topics[world.catalogue.results]:
        result, name = orjson.loads(record.value or b""), _key(record)
        if name not in first:
            continue
        expected = world.workload.expected[name]
        deadline = first[name].timestamp_ms / 1000 + expected.deadline_s
        status, timing = result["status"], result["timing"]
        is_late = status == "completed" and timing["started_at"] >= deadline
        if is_late and len(_published(world, topics)[name]) == 1:
            yield f"{name}: began {timing['started_at'] - deadline:.1f} s after its deadline"
        if status == "expired" and timing["finished_at"] < deadline:
            yield f"{name}: expired {deadline - timing['finished_at']:.1f} s before its deadline"
        if status == "expired" and result["error"]["code"] != "deadline_passed":
            yield f"{name}: expired, because of {result['error']['code']}"


def _constraints(world: "World", topics: dict[str, Written]) -> Iterator[str]:
    for pool in world.options.by_pool:
        for topic in world.catalogue.pool_topics(pool):
            for record, transaction in topics[topic.name]:
                expected = world.workload.expected.get(_key(record))
                if transaction is None or expected is None:
                    continue
                placed = h.read(record.headers, h.PLACEMENT, Placement)
                if pool not in expected.pools or placed.pool != pool:
                    yield f"{expected.id}: sent to {pool}, allowed {expected.pools}, {placed}"
                if record.value != expected.value:
                    yield f"{expected.id}: its payload was changed on the way"
    yield from _answers(world, topics)


def _answers(world: "World", topics: dict[str, Written]) -> Iterator[str]:
    for record, _ in topics[world.catalogue.results]:
        result = orjson.loads(record.value or b"")
        expected = world.workload.expected.get(_key(record))
        if expected is not None and result["status"] == "completed":
            if result["placement"]["pool"] not in expected.pools:
                yield f"{expected.id}: ran in {result['placement']['pool']}"
            if result["response"]["body"] != {"id": expected.id}:
                yield f"{expected.id}: has the answer of another"


def _evidence(world: "World", topics: dict[str, Written]) -> Iterator[str]:
    c = world.catalogue
    steps: dict[tuple[int, str], set[str]] = defaultdict(set)
    for record, transaction in topics[c.evidence]:
        step = orjson.loads(record.value or b"")["step"]
        steps[id(transaction), _key(record)].add(step)
    tombstones = {(id(t), _key(r)) for r, t in topics[c.held] if r.value is None}
    for topic, written in topics.items():
        for record, transaction in written:
            if topic in (c.requests, c.cancellations) or _place(record) in world.bad:
                continue
            at = id(transaction), _key(record) or _name(record)
            if transaction is None:
                yield f"{record.partition} {record.offset}: written outside any transaction"
            wanted = _steps_of(world, record)
            if wanted and not wanted & steps[at]:
                yield f"{at[1]} on {topic}: no evidence of {wanted} in its transaction"
            if wanted == {"released"} and at not in tombstones:
                yield f"{at[1]}: released without a tombstone in the same transaction"


def _steps_of(world: "World", record: Record) -> set[str]:
    """Return the steps of which one must be the evidence of a record; none where it has none."""
    c, topic = world.catalogue, record.partition.topic
    if topic.startswith(f"{c.prefix}.pool."):
        return {"placed" if h.find(record.headers, h.RELEASED_AT) is None else "released"}
    if topic == c.results:
        return STEPS[orjson.loads(record.value or b"")["status"]]
    if topic == c.held:
        return set() if record.value is None else {"held"}
    return {c.reroutes: {"fell_back"}, c.dead_letters: {"dead_lettered"}}.get(topic, set())


def _duplicates(
    world: "World", topics: dict[str, Written], duplicates: set[Place]
) -> Iterator[str]:
    found = _sources(world, topics, "duplicate")
    for place in sorted(duplicates | found.keys()):
        if found[place] != (place in duplicates):
            yield (
                f"{place}: {found[place]} times evidenced as a duplicate, with a window of"
                f" {world.window_records} records; it {'is' if place in duplicates else 'is not'} one"
            )


def _cancellations(world: "World", topics: dict[str, Written]) -> Iterator[str]:
    """Each is evidenced once, and nothing else is cancelled."""
    found = _sources(world, topics, "cancel_requested")
    cancelled = set()
    for record, _ in topics[world.catalogue.cancellations]:
        if _place(record) not in world.bad:
            cancelled.add(_key(record))
            if found[_place(record)] != 1:
                yield f"cancellation of {_key(record)}: {found[_place(record)]} times evidenced"
    for record, _ in topics[world.catalogue.results]:
        status, expected = orjson.loads(record.value or b"")["status"], world.workload.expected
        if status == "cancelled" and _key(record) not in cancelled:
            yield f"{_key(record)}: cancelled, which nobody wanted"
        known = expected.get(_key(record))
        if known is not None and known.is_known_cancelled and status != "cancelled":
            yield f"{_key(record)}: {status}, though it had been cancelled long before"


def _sources(world: "World", topics: dict[str, Written], step: str) -> Counter[Place]:
    """Return what a kind of evidence is of, by where that stood."""
    found: Counter[Place] = Counter()
    for record, _ in topics[world.catalogue.evidence]:
        evidence = orjson.loads(record.value or b"")
        if evidence["step"] == step:
            source = evidence["source"]
            found[source["topic"], source["partition"], source["offset"]] += 1
    return found


def _dead_letters(world: "World", topics: dict[str, Written]) -> Iterator[str]:
    from simulation.world import source_of

    letters = [record for record, _ in topics[world.catalogue.dead_letters]]
    counts = Counter(map(source_of, letters))
    for stood_at in sorted(world.bad):
        if counts[stood_at] != 1:
            yield f"bad record {stood_at}: {counts[stood_at]} dead letters"
    for record in letters:
        expected = world.workload.expected.get(_key(record))
        if source_of(record) not in world.bad and not (expected and expected.is_refused):
            yield f"{_key(record)} is a dead letter, and was neither bad nor refused"


def _progress(world: "World", topics: dict[str, Written]) -> Iterator[str]:
    newest: dict[str, int] = {}
    for record, _ in topics[world.catalogue.progress]:
        key, offset = _key(record), orjson.loads(record.value or b"")["next_offset"]
        if offset < newest.get(key, 0):
            yield f"{key}: progress went back from {newest[key]} to {offset}"
        newest[key] = offset


def held(world: "World") -> list[Record]:
    """Return what is held by the log's own account."""
    newest = {r.key: r for r in world.cluster.records(world.catalogue.held)}
    return [record for record in newest.values() if record.value is not None]


def _key(record: Record) -> str:
    return (record.key or b"").decode()


def _name(letter: Record) -> str:
    """Return how the evidence names what has no key."""
    from simulation.world import source_of

    return "{}/{}/{}".format(*source_of(letter))


def _place(record: Record) -> Place:
    return (*record.partition, record.offset)
