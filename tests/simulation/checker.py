"""What must hold after a run, read from the log alone (docs/architecture.md, the invariants)."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import TYPE_CHECKING

import orjson
from memory_cluster import Transaction

from shunter.audit import Keyring, Verifier
from streams.log import Record
from topics import KeyEntry, Placement, Progress, decode
from topics import headers as h

if TYPE_CHECKING:
    from simulation.world import World

Written = list[tuple[Record, Transaction | None]]

# The steps that may be the evidence of a result.
STEPS = {
    "completed": {"executed"},
    "failed": {"failed", "dead_lettered"},
    "expired": {"expired"},
    "rejected": {"rejected"},
}


def check(world: "World") -> Iterator[str]:
    """Yield what is wrong."""
    topics: dict[str, Written] = defaultdict(list)
    for record, transaction in world.cluster.history:
        if transaction is None or transaction.state == "committed":
            topics[record.partition.topic].append((record, transaction))
    yield from _results(world, topics)
    yield from _constraints(world, topics)
    yield from _evidence(world, topics)
    yield from _dead_letters(world, topics)
    yield from _progress(world, topics)
    yield from _trail(world, topics)
    yield from (f"{_key(r)} is still held" for r in held(world))


def _results(world: "World", topics: dict[str, Written]) -> Iterator[str]:
    counts = Counter(_key(record) for record, _ in topics[world.catalogue.results])
    for name, expected in world.workload.expected.items():
        # A request that is published twice is two records (docs/decisions/0002).
        if not 1 <= counts[name] <= expected.published:
            yield f"{name}: {counts[name]} results, published {expected.published} times"
    for name in counts.keys() - world.workload.expected.keys():
        yield f"{name}: a result of what was no request"


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
            stood_at = (topic, record.partition.number, record.offset)
            if topic == c.requests or stood_at in world.bad:
                continue
            at = id(transaction), _key(record)
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


def _trail(world: "World", topics: dict[str, Written]) -> Iterator[str]:
    """Verify the trail as an auditor does, but that nothing of it may be open or set aside."""
    keyring = Keyring()
    for published in world.keys:
        keyring.add(KeyEntry(published=published), published.statement.writer)
    c, heads = world.catalogue, {}
    for record, _ in topics[c.progress]:
        head = decode(Progress, record.value or b"").head
        if head is not None:
            heads[_key(record).replace("/", "-")] = (head, "the progress")
    verifier = Verifier(keyring, heads)
    for record, _ in topics[c.evidence_roots]:
        verifier.add_root(record.value, str(record.partition), record.timestamp_ms / 1000)
    verifier.end_of_roots()
    for record, _ in topics[c.evidence]:
        number = record.partition.number
        verifier.add(number, f"evidence {number}@{record.offset}", record.key, record.value)
    findings = verifier.finish()
    yield from (f"trail: {p.kind} {p.where}: {p.message}" for p in findings.problems)
    yield from (f"trail: {note}" for note in findings.notes)
    if findings.open:
        yield f"trail: {findings.open} requests without an end"


def held(world: "World") -> list[Record]:
    """Return what is held by the log's own account."""
    newest = {r.key: r for r in world.cluster.records(world.catalogue.held)}
    return [record for record in newest.values() if record.value is not None]


def _key(record: Record) -> str:
    return (record.key or b"").decode()
