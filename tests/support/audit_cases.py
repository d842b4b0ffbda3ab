"""A trail to tamper with: real stages, on the log in memory, over several transactions."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic
from memory_log import MemoryCluster, MemoryLog
from stream_cases import MODEL, START, FakeClock, Yard, drain, make_key, make_settings, make_signer

from shunter.archive import Archive, Archiver
from shunter.archive.layout import KINDS as ARCHIVE_KINDS
from shunter.archive.rows import table_of
from shunter.audit.archive_trail import read_archive
from shunter.audit.findings import Findings
from shunter.audit.topic import verify_topic
from streams.batcher.stage import Batcher
from streams.engine.log import Outgoing, Partition, Record
from streams.engine.signer import Signer
from streams.router.stage import Router
from topics import Catalogue, KeyEntry, Root, decode, encode
from topics.signing.keys import SigningKey
from topics.signing.signed_root import sign

KINDS = ("evidence", "roots", "keys", "progress")


@dataclass
class Trail:
    """The records of each topic, partition by partition, as an attacker finds them."""

    catalogue: Catalogue
    evidence: list[Record] = field(default_factory=list)
    roots: list[Record] = field(default_factory=list)
    keys: list[Record] = field(default_factory=list)
    progress: list[Record] = field(default_factory=list)

    def topic(self, kind: str) -> str:
        names = {"evidence": "evidence", "roots": "evidence_roots", "keys": "evidence_keys"}
        name: str = getattr(self.catalogue, names.get(kind, kind))
        return name

    def chain_of(self, name: str) -> list[Root]:
        """Return the roots of a chain, in order."""
        roots = [decode(Root, record.value or b"") for record in self.roots]
        found = [root for root in roots if root.statement.chain == name]
        return sorted(found, key=lambda root: root.statement.sequence)

    def cluster(self) -> MemoryCluster:
        """Return a cluster whose topics hold these records, and nothing else."""
        topics = self.catalogue.topics([])
        cluster = MemoryCluster({t.name: t.partitions for t in topics}, now=lambda: START)
        for kind in KINDS:
            for record in getattr(self, kind):
                outgoing = Outgoing(
                    self.topic(kind),
                    record.key,
                    record.value,
                    partition=record.partition.number,
                )
                cluster.append(
                    Partition(self.topic(kind), record.partition.number),
                    outgoing,
                    None,
                    record.timestamp_ms,
                )
        return cluster

    def publish(self, bootstrap_servers: str, prefix: str) -> Catalogue:
        """Put these records, and nothing else, on topics of a real Kafka; return their names."""
        catalogue = Catalogue(make_settings().model_copy(update={"topic_prefix": prefix}))
        admin = AdminClient({"bootstrap.servers": bootstrap_servers})
        # The records are older than now, or newer; what the broker may change is left as it is.
        config = {"message.timestamp.after.max.ms": str(2**62), "retention.ms": "-1"}
        names = {kind: self.topic(kind).replace("yard", prefix, 1) for kind in KINDS}
        partitions = {topic.name: topic.partitions for topic in catalogue.topics([])}
        topics = [NewTopic(name, partitions[name], config=config) for name in names.values()]
        for future in admin.create_topics(topics).values():
            future.result(20)
        producer = Producer({"bootstrap.servers": bootstrap_servers, "linger.ms": 0})
        for kind, name in names.items():
            for record in getattr(self, kind):
                number, at_ms = record.partition.number, record.timestamp_ms
                producer.produce(name, record.value, record.key, number, timestamp=at_ms)
        assert producer.flush(20) == 0
        return catalogue

    async def verified(self, **options: object) -> Findings:
        """Return what an auditor finds on the topics."""
        log = MemoryLog(self.cluster())
        return await verify_topic(log, self.catalogue, **options)  # type: ignore[arg-type]


def request_records(count: int, start: int = 0) -> Iterable[tuple[int, str, bytes]]:
    """Yield partition, id and value of requests: every third may only run in Europe."""
    for n in range(start, start + count):
        body = {"model": MODEL, "messages": [{"role": "user", "content": f"track {n}?"}]}
        request = {"id": f"r{n}", "tenant": f"t{n % 2}", "body": body, "created_at": START}
        if n % 3 == 0:
            request["constraints"] = {"regions": ["eu-west"]}
        if n % 3 == 1:
            request["constraints"] = {"regions": ["mars"]}
        yield 0, f"r{n}", orjson.dumps(request)


Tamper = Callable[[Trail], None]


class Office:
    """A router whose signer's key can be changed, as by a restart."""

    def __init__(self) -> None:
        self.yard = Yard()
        self.notaries: list[Signer] = []

    async def run(
        self, count: int, start: int = 0, key: SigningKey | None = None, writer: str = "router/a"
    ) -> None:
        """Route requests, in transactions of two, and cancel none."""
        yard, catalogue = self.yard, self.yard.catalogue
        signer = make_signer(catalogue, yard.clock, yard.digests, key=key, writer=writer)
        self.notaries.append(signer)
        published = signer.publish()
        entry = KeyEntry(published=published)
        name = f"key/{published.statement.key}".encode()
        yard.cluster.publish(Outgoing(catalogue.evidence_keys, name, encode(entry)))
        for partition, name_, value in request_records(count, start):
            record = Outgoing(catalogue.requests, name_.encode(), value, partition=partition)
            yard.cluster.publish(record)
        yard.cluster.members.clear()
        given = (yard.situation(), yard.evidence_writer(), yard.clock, yard.telemetry)
        router = Router(*given, request_bytes_max=100_000, duplicate_window_records=100)
        batcher = Batcher(
            *given, yard.cancellations, held_records_max=100, held_payload_bytes_max=10_000
        )
        for stage in (router, batcher):
            log = MemoryLog(yard.cluster, f"{writer}-{stage.group}")
            transactor = await yard.run(stage, log, signer=signer, records_max=2)
            await drain(transactor)
        yard.clock.at += 1.0

    def tell_heads(self) -> None:
        """Let each process publish its heartbeat."""
        for signer in self.notaries:
            heads = signer.heads()
            name = f"heads/{heads.statement.key}".encode()
            entry = encode(KeyEntry(heads=heads))
            catalogue = self.yard.catalogue
            self.yard.cluster.publish(Outgoing(catalogue.evidence_keys, name, entry))

    def trail(self) -> Trail:
        """Return what stands on the topics."""
        trail = Trail(self.yard.catalogue)
        for kind in KINDS:
            getattr(trail, kind).extend(self.yard.cluster.records(trail.topic(kind)))
        return trail


_MADE: list[Trail] = []


async def make_trail() -> Trail:
    """Return a trail of two processes, one after the other, on the same chains."""
    if not _MADE:
        office = Office()
        await office.run(9)
        await office.run(7, start=9, key=make_key(2))
        office.tell_heads()
        _MADE.append(office.trail())
    made = _MADE[0]
    return replace(made, **{kind: list(getattr(made, kind)) for kind in KINDS})


def changed(record: Record, old: bytes, new: bytes) -> Record:
    """Return a record with bytes of its value replaced."""
    assert old in (record.value or b""), record
    return record._replace(value=(record.value or b"").replace(old, new, 1))


def resigned(root: Root, signer: SigningKey, /, **changes: object) -> Root:
    """Return a root with another statement, signed by a key."""
    statement = replace(root.statement, **changes)  # type: ignore[arg-type]
    return replace(root, statement=statement, signature=sign(signer.private, "root", statement))


class Archived:
    """The same trail as files, to be tampered with there."""

    def __init__(self, directory: Path, trail: Trail) -> None:
        self.catalogue = trail.catalogue
        self.archive = Archive(str(directory))
        self._log = MemoryLog(trail.cluster())

    async def fill(self) -> None:
        """Archive everything, in files of three records."""
        clock = FakeClock()
        archiver = Archiver(self._log, self.catalogue, self.archive, clock, rows_max=3)
        await archiver.round()

    def tamper(self, tamper: Tamper) -> None:
        """Rewrite the files as the attacker wants them."""
        trail = Trail(self.catalogue)
        for kind in ARCHIVE_KINDS:
            for row in read_archive(self.archive, kind):
                home = Partition(trail.topic(kind), row.partition)
                record = Record(home, row.offset, row.key, row.value, [], int(row.at * 1000))
                getattr(trail, kind).append(record)
        tamper(trail)
        for kind in ARCHIVE_KINDS:
            for file in self.archive.files(kind):
                self.archive.delete(file)
            by_partition: dict[int, list[Record]] = {}
            for record in getattr(trail, kind):
                by_partition.setdefault(record.partition.number, []).append(record)
            for number, records in by_partition.items():
                table = table_of(kind, [r._replace(offset=i) for i, r in enumerate(records)])
                at = records[0].timestamp_ms / 1000
                self.archive.write(kind, number, (0, len(records)), at, table)
