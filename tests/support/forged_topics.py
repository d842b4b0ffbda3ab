"""The topics of a real trail, as whoever runs Kafka can write them anew: read, forged, copied.

A forgery is made on what was read and written to topics of another prefix, whose settings the
forger chooses: their times are the forger's too.
"""

import base64
import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from running_system import System, records_of

from topics import KeyEntry, Root, decode, encode
from topics.records.evidence import ENDS
from topics.signing.introductions import introduce
from topics.signing.keys import SigningKey, load_signing_key
from topics.signing.merkle import leaf_hash
from topics.signing.signed_root import make_root, sign
from topics.wire.canonical_json import canonical_json

IN_2096_MS = 3_976_214_400_000
# By the name here, the end of the topic's.
TOPICS = {
    "evidence": "evidence",
    "roots": "evidence-roots",
    "keys": "evidence-keys",
    "salts": "evidence-salts",
    "results": "results",
    "progress": "progress",
}


@dataclass(frozen=True)
class Row:
    """A record: where it stands, when Kafka took it, and what it is."""

    partition: int
    at_ms: int
    key: bytes
    value: bytes | None

    @property
    def told(self) -> dict[str, Any]:
        """Its value, parsed."""
        found: dict[str, Any] = json.loads(self.value or b"{}")
        return found

    def saying(self, told: dict[str, Any]) -> "Row":
        """The record with another value, written as the system writes it."""
        return replace(self, value=canonical_json(told))


Topics = dict[str, list[Row]]
Way = Callable[[Topics, Topics], None]


async def read_topics(servers: str, system: System) -> Topics:
    """Read all topics of a trail, partition by partition in the order of offsets."""
    found: Topics = {}
    for name, end in TOPICS.items():
        records = await records_of(system, f"{system.prefix}.{end}")
        records.sort(key=lambda record: (record.partition, record.offset))
        found[name] = [Row(r.partition, r.timestamp, r.key or b"", r.value) for r in records]
    return found


@asynccontextmanager
async def written(servers: str, prefix: str, topics: Topics, partitions: int) -> Any:
    """Write topics under a prefix, with times as they are given; they go again at the end."""
    admin = AIOKafkaAdminClient(bootstrap_servers=servers)
    await admin.start()
    names = [f"{prefix}.{end}" for end in TOPICS.values()]
    settings = {
        "message.timestamp.type": "CreateTime",
        "message.timestamp.after.max.ms": str(2**62),
        "retention.ms": "-1",
    }
    # A walk that was cut short has left them.
    await admin.delete_topics([name for name in names if name in await admin.list_topics()])
    counts = [1 if kind in {"keys", "salts"} else partitions for kind in TOPICS]
    await admin.create_topics(
        [
            NewTopic(name, count, 1, topic_configs=settings)
            for name, count in zip(names, counts, strict=True)
        ]
    )
    try:
        async with AIOKafkaProducer(bootstrap_servers=servers) as producer:
            for name, rows in topics.items():
                for row in rows:
                    await producer.send(
                        f"{prefix}.{TOPICS[name]}",
                        row.value,
                        key=row.key,
                        partition=row.partition,
                        timestamp_ms=row.at_ms,
                    )
            await producer.flush()
        yield
    finally:
        await admin.delete_topics(names)
        await admin.close()


def chains(topics: Topics) -> dict[str, list[Row]]:
    """The roots of each chain, in order, the longest chain first."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in topics["roots"]:
        found[row.key.decode()].append(row)
    for rows in found.values():
        rows.sort(key=lambda row: row.told["statement"]["sequence"])
    return dict(sorted(found.items(), key=lambda pair: -len(pair[1])))


def below(row: Row) -> set[bytes]:
    """The leaf hashes of a root."""
    raw = base64.b64decode(row.told["leaves"])
    return {raw[at : at + 32] for at in range(0, len(raw), 32)}


def _drop_roots(topics: Topics, gone: list[Row]) -> None:
    """Drop roots, and all that they are over."""
    leaves = set().union(*map(below, gone))
    topics["roots"] = [row for row in topics["roots"] if row not in gone]
    topics["evidence"] = [r for r in topics["evidence"] if leaf_hash(r.value or b"") not in leaves]


def _drop_witnesses(topics: Topics) -> None:
    """Drop what the system itself tells of its newest roots."""
    topics["progress"] = []
    topics["keys"] = [row for row in topics["keys"] if not row.key.startswith(b"heads/")]


def _first(topics: Topics, kind: str, member: str) -> int:
    """The place of a record in the middle that has a member."""
    found = [at for at, row in enumerate(topics[kind]) if row.told.get(member)]
    return found[len(found) // 2]


def _member(name: str, inner: str, value: object) -> Way:
    """Another value of a member's member, in a record that has it."""

    def change(topics: Topics, _other: Topics) -> None:
        at = _first(topics, "evidence", name)
        told = topics["evidence"][at].told
        told[name][inner] = value
        topics["evidence"][at] = topics["evidence"][at].saying(told)

    return change


def _tenant(topics: Topics, _other: Topics) -> None:
    at = _first(topics, "evidence", "tenant")
    told = topics["evidence"][at].told | {"tenant": "somebody-else"}
    topics["evidence"][at] = topics["evidence"][at].saying(told)


def _decision(topics: Topics, _other: Topics) -> None:
    """Another region of the pool that was chosen, in the rows of a decision."""
    found = [at for at, r in enumerate(topics["evidence"]) if (r.told.get("decision") or {})]
    told = topics["evidence"][found[0]].told
    told["decision"]["pools"][0][1] = "eu-north"
    topics["evidence"][found[0]] = topics["evidence"][found[0]].saying(told)


def _byte(kind: str) -> Way:
    def change(topics: Topics, _other: Topics) -> None:
        at = len(topics[kind]) // 2
        raw = bytearray(topics[kind][at].value or b"")
        raw[len(raw) // 2] ^= 1
        topics[kind][at] = replace(topics[kind][at], value=bytes(raw))

    return change


def _drop(kind: str) -> Way:
    def change(topics: Topics, _other: Topics) -> None:
        del topics[kind][len(topics[kind]) // 2]

    return change


def _add(topics: Topics, _other: Topics) -> None:
    """A record of a request that never was, at the end of a partition."""
    last = topics["evidence"][-1]
    topics["evidence"].append(replace(last.saying(last.told | {"request_id": "r-0"}), key=b"r-0"))


def _swap(kind: str) -> Way:
    """Two neighbours of one chain on one partition: what stands between them may be another's."""

    def change(topics: Topics, _other: Topics) -> None:
        named = chains(topics).items()
        chain_of = {leaf: name for name, rows in named for row in rows for leaf in below(row)}
        groups: dict[tuple[int, str], list[int]] = defaultdict(list)
        for at, row in enumerate(topics[kind]):
            is_root = kind == "roots"
            chain = row.key.decode() if is_root else chain_of[leaf_hash(row.value or b"")]
            groups[row.partition, chain].append(at)
        one, two = max(groups.values(), key=len)[:2]
        rows = topics[kind]
        rows[one], rows[two] = (
            replace(rows[two], at_ms=rows[one].at_ms),
            replace(rows[one], at_ms=rows[two].at_ms),
        )

    return change


def _twice(kind: str) -> Way:
    def change(topics: Topics, _other: Topics) -> None:
        at = len(topics[kind]) // 2
        topics[kind].insert(at, topics[kind][at])

    return change


def _other_key(topics: Topics, _other: Topics) -> None:
    at = len(topics["evidence"]) // 2
    topics["evidence"][at] = replace(topics["evidence"][at], key=b"r-1000")


def _middle(topics: Topics, _other: Topics) -> None:
    _drop_roots(topics, [next(iter(chains(topics).values()))[3]])


def _tail(topics: Topics, _other: Topics) -> None:
    """The newest of each chain, and all that the system tells of it."""
    _drop_roots(topics, [rows[-1] for rows in chains(topics).values()])
    _drop_witnesses(topics)


def _six_of_nine(topics: Topics, _other: Topics) -> None:
    """Of the longest chain the first six; the auditor has the head of the first."""
    _drop_roots(topics, next(iter(chains(topics).values()))[:6])


def _half_with_a_time_of_2096(topics: Topics, _other: Topics) -> None:
    """The older half of the evidence gone; what comes then says that it is of 2096."""
    half = len(topics["evidence"]) // 2
    rest = sorted(topics["evidence"], key=lambda row: row.at_ms)[half:]
    rest.sort(key=lambda row: row.partition)
    topics["evidence"] = [replace(rest[0], at_ms=IN_2096_MS), *rest[1:]]


def _published(topics: Topics, *entries: KeyEntry) -> None:
    home = topics["keys"][0]
    for entry in entries:
        name = (entry.name or "").encode()
        topics["keys"].append(replace(home, key=name, value=encode(entry)))


def _claim(topics: Topics, _other: Topics) -> None:
    """A root signed by a stranger, who has published a key under the writer's name."""
    stranger, at = load_signing_key(None), len(topics["roots"]) // 2
    root = decode(Root, topics["roots"][at].value or b"")
    statement = replace(root.statement, key=stranger.id)
    forged = replace(root, statement=statement, signature=sign(stranger.private, "root", statement))
    topics["roots"][at] = replace(topics["roots"][at], value=encode(forged))
    _published(topics, KeyEntry(published=stranger.publish(statement.writer, 0.0)))


def _anew(topics: Topics, _other: Topics) -> None:
    """Another cost, and all signed again by keys that a stranger has introduced."""
    cost = _member("got", "cost_usd", 0.0)
    before = {id(row): leaf_hash(row.value or b"") for row in topics["evidence"]}
    old = list(topics["evidence"])
    cost(topics, {})
    renamed = {
        before[id(row)]: leaf_hash(new.value or b"")
        for row, new in zip(old, topics["evidence"], strict=True)
    }
    signers: dict[str, SigningKey] = {}
    place = {id(row): at for at, row in enumerate(topics["roots"])}
    for name, rows in chains(topics).items():
        head = None
        for row in rows:
            root = decode(Root, row.value or b"")
            s, raw = root.statement, base64.b64decode(root.leaves)
            leaves = [renamed[raw[at : at + 32]] for at in range(0, len(raw), 32)]
            signer = signers.setdefault(s.writer, load_signing_key(None))
            made, head = make_root(signer.private, signer.id, s.writer, name, head, leaves, s.at)
            topics["roots"][place[id(row)]] = replace(row, value=encode(made))
    stranger = load_signing_key(None)
    topics["keys"] = topics["keys"][:1]
    topics["progress"] = []
    for writer, signer in signers.items():
        _published(
            topics,
            KeyEntry(published=signer.publish(writer, 0.0)),
            KeyEntry(introduction=introduce(stranger, signer.id, writer, 0.0)),
        )


def _replayed(*kinds: str) -> Way:
    """Records of another installation, complete or alone."""

    def change(topics: Topics, other: Topics) -> None:
        for kind in kinds:
            topics[kind] += deepcopy(other[kind])

    return change


def _result(change: Callable[[dict[str, Any]], None], *, all_of_them: bool = False) -> Way:
    def forge(topics: Topics, _other: Topics) -> None:
        places = [at for at, row in enumerate(topics["results"]) if row.told.get("response")]
        for at in places if all_of_them else places[:1]:
            told = topics["results"][at].told
            change(told)
            topics["results"][at] = topics["results"][at].saying(told)

    return forge


def _answer(told: dict[str, Any]) -> None:
    told["response"]["body"]["choices"] = []


def _status(told: dict[str, Any]) -> None:
    told["status"] = "failed"
    told["response"] = None


def _unended(topics: Topics, _other: Topics) -> None:
    """The end of a request, deleted with nothing else."""
    ends = [at for at, row in enumerate(topics["evidence"]) if row.told.get("step") in ENDS]
    del topics["evidence"][ends[len(ends) // 2]]


def ways() -> Iterator[tuple[str, Way]]:
    """Every forgery by its name; those of results begin with that word."""
    yield "evidence: cost_usd of an execution is 0", _member("got", "cost_usd", 0.0)
    yield "evidence: another region of a placement", _member("placement", "region", "eu-north")
    yield "evidence: another pool of a placement", _member("placement", "pool", "elsewhere-eu")
    yield "evidence: another region in a decision", _decision
    yield "evidence: another tenant", _tenant
    for kind in ("evidence", "roots", "keys"):
        yield f"{kind}: one bit of a record", _byte(kind)
    yield "evidence: a record dropped", _drop("evidence")
    yield "roots: a record dropped", _drop("roots")
    yield "evidence: the end of a request dropped", _unended
    yield "evidence: a record added at the end", _add
    yield "evidence: a record under another request's key", _other_key
    yield "evidence: two records swapped", _swap("evidence")
    yield "roots: two records swapped", _swap("roots")
    yield "evidence: a record twice", _twice("evidence")
    yield "roots: a record twice", _twice("roots")
    yield "a transaction in the middle gone, with its root", _middle
    yield "the last transaction of each chain gone, with heartbeats and progress", _tail
    yield "six of nine transactions gone, a head of the first kept", _six_of_nine
    yield "half of the evidence gone, one time of 2096", _half_with_a_time_of_2096
    yield "a root by a stranger's key under the writer's name", _claim
    yield "a cost changed and all signed anew, introduced by a stranger", _anew
    yield "evidence of another installation", _replayed("evidence")
    yield "evidence, roots and keys of another installation", _replayed("evidence", "roots", "keys")
    yield "results: an answer changed", _result(_answer)
    yield "results: all answers changed", _result(_answer, all_of_them=True)
    yield "results: completed made failed", _result(_status)
    yield "results: one deleted", _drop("results")
    yield "results: one twice", _twice("results")
