"""Topics as a version has recorded them, in memory again, as they were or with unknown fields."""

import base64
import dataclasses
import random
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson
from memory_log import MemoryCluster
from stream_cases import FakeClock, Yard, make_digests

from streams.engine.log import Partition, Record
from topics import (
    Catalogue,
    ChainHead,
    Envelope,
    Placement,
    Profile,
    Progress,
    Settings,
)
from topics.records import headers as h

PREFIX = "corpus"
ROOT = Path(__file__).parents[1] / "data" / "corpus"
# What travels in headers as JSON.
HEADERS: dict[str, type] = {
    h.PROFILE: Profile,
    h.PLACEMENT: Placement,
    h.PROMISED: Envelope,
}


def _text(value: bytes | None) -> str | dict[str, str] | None:
    """Return bytes as a person can read them, where they are text."""
    try:
        return None if value is None else value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value or b"").decode()}


def _bytes(told: str | dict[str, str] | None) -> bytes | None:
    if isinstance(told, dict):
        return base64.b64decode(told["base64"])
    return None if told is None else told.encode()


class Recorded(NamedTuple):
    """A record as it stood on its topic."""

    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]

    @classmethod
    def of(cls, record: Record) -> Self:
        """Return a record that was read."""
        return cls(
            record.partition.number,
            record.offset,
            record.timestamp_ms,
            record.key,
            record.value,
            list(record.headers),
        )

    def as_json(self) -> bytes:
        """Return it as a line."""
        headers = [[name, _text(value)] for name, value in self.headers]
        told = {**self._asdict(), "key": _text(self.key), "value": _text(self.value)}
        return orjson.dumps(told | {"headers": headers})

    @classmethod
    def from_json(cls, line: bytes) -> Self:
        """Return the record of a line."""
        told = orjson.loads(line)
        headers = [(name, _bytes(value) or b"") for name, value in told["headers"]]
        both = {"key": _bytes(told["key"]), "value": _bytes(told["value"])}
        return cls(**(told | both | {"headers": headers}))


@dataclass
class Corpus:
    """An installation's topics, the offsets of its groups, its declarations, and what came of it.

    ``at`` is when it was recorded, epoch seconds.
    """

    topics: dict[str, list[Recorded]]
    offsets: dict[tuple[str, Partition], int]
    files: dict[str, str]
    at: float
    outcomes: dict[str, Any] = field(default_factory=dict)

    def write(self, directory: Path) -> None:
        """Write it into a directory."""
        directory.mkdir(parents=True, exist_ok=True)
        for topic, records in self.topics.items():
            lines = b"".join(record.as_json() + b"\n" for record in records)
            (directory / f"{topic}.jsonl").write_bytes(lines)
        for name, text in self.files.items():
            (directory / name).write_text(text)
        offsets = [[g, *partition, offset] for (g, partition), offset in self.offsets.items()]
        told = {"at": self.at, "offsets": sorted(offsets), "outcomes": self.outcomes}
        (directory / "corpus.json").write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2))

    @classmethod
    def read(cls, directory: Path) -> Self:
        """Read one back."""
        told = orjson.loads((directory / "corpus.json").read_bytes())
        topics = {
            path.name.removesuffix(".jsonl"): [
                Recorded.from_json(line) for line in path.read_bytes().splitlines()
            ]
            for path in sorted(directory.glob("*.jsonl"))
        }
        offsets = {(g, Partition(topic, n)): offset for g, topic, n, offset in told["offsets"]}
        files = {path.name: path.read_text() for path in directory.glob("*.yaml")}
        return cls(topics, offsets, files, told["at"], told["outcomes"])

    def settings(self) -> Settings:
        """Return the settings of who reads it."""
        partitions = {record.partition for record in self.topics[f"{PREFIX}.requests"]}
        return Settings(topic_prefix=PREFIX, partitions=len(partitions))

    def cluster(self, catalogue: Catalogue, pools: Sequence[str], **options: Any) -> MemoryCluster:
        """Return a cluster on which each record stands where it stood."""
        topics = {topic.name: topic.partitions for topic in catalogue.topics(pools)}
        cluster = MemoryCluster(topics, **options)
        for topic, records in self.topics.items():
            for each in records:
                home = Partition(topic, each.partition)
                cluster.place(Record(home, *each[1:2], *each[3:5], each.headers, each.timestamp_ms))
        cluster.offsets |= self.offsets
        return cluster

    def of_next_release(self, catalogue: Catalogue, pools: Sequence[str], seed: int) -> Self:
        """Return it as a next release might have written it: with fields that nobody knows yet.

        In what Shunter writes, and may gain fields (docs/compatibility.md).
        """
        rng = random.Random(seed)
        kinds = {topic.name: topic.schema for topic in catalogue.topics(pools)}
        topics = {
            topic: [_with_more(record, kinds.get(topic), rng) for record in records]
            for topic, records in self.topics.items()
        }
        return dataclasses.replace(self, topics=topics)


def _with_more(record: Recorded, kind: type | None, rng: random.Random) -> Recorded:
    headers = [
        (name, _grown(value, HEADERS[name], rng) if name in HEADERS else value)
        for name, value in record.headers
    ]
    value = record.value
    if value is not None and dataclasses.is_dataclass(kind):
        value = _grown(value, kind, rng)
    return record._replace(headers=headers, value=value)


def _grown(value: bytes, kind: type, rng: random.Random) -> bytes:
    told = orjson.loads(value)
    return orjson.dumps(_more(told, kind, rng, in_progress=kind is Progress))


def _more(told: Any, kind: Any, rng: random.Random, *, in_progress: bool) -> Any:
    """Return JSON of a kind with a field more in each object of it that isn't strict."""
    kinds = [each for each in typing.get_args(kind) if each is not type(None)]
    if dataclasses.is_dataclass(kind) and isinstance(told, dict):
        types = typing.get_type_hints(kind)
        grown = {
            name: _more(each, types.get(name), rng, in_progress=in_progress)
            for name, each in told.items()
        }
        is_strict = hasattr(kind, "__pydantic_config__")
        # A head is signed elsewhere, and only there.
        if not is_strict or (in_progress and kind is ChainHead):
            grown[f"next_{rng.randrange(1000)}"] = _anything(rng)
        return grown
    if isinstance(told, list) and kinds:
        return [_more(each, kinds[0], rng, in_progress=in_progress) for each in told]
    if isinstance(told, dict) and typing.get_origin(kind) in {dict, Mapping}:
        inner = kinds[-1]
        return {n: _more(each, inner, rng, in_progress=in_progress) for n, each in told.items()}
    for each in kinds if typing.get_origin(kind) not in {dict, tuple, list} else ():
        if dataclasses.is_dataclass(each) and isinstance(told, dict):
            return _more(told, each, rng, in_progress=in_progress)
    return told


def _anything(rng: random.Random) -> Any:
    return rng.choice([None, True, 7, -0.5, "text", ["a", 1], {"deep": {"er": [1, {}]}}])


def versions() -> list[str]:
    """Return the versions of which there is a corpus."""
    return sorted(path.name for path in ROOT.iterdir())


def yard_of(corpus: Corpus) -> Yard:
    """Return the installation of a corpus as it stands, for whoever takes over."""
    fleet, policy = corpus.files["fleet.yaml"], corpus.files["policy.yaml"]
    yard = Yard(fleet=fleet, policy=policy, clock=FakeClock(corpus.at))
    yard.settings = corpus.settings()
    yard.catalogue = Catalogue(yard.settings)
    yard.digests = make_digests(yard.catalogue)
    yard.cluster = corpus.cluster(yard.catalogue, list(yard.options.by_pool), now=yard.clock.now)
    return yard
