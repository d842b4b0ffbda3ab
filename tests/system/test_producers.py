"""Records of six Kafka clients, by each codec: each ends, and those beside it are served."""

import asyncio
import os
import time
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio
from confluent_kafka.admin import (
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)
from producers import (
    CLIENTS,
    CODECS,
    Batch,
    Message,
    Mode,
    Publisher,
    Read,
    missing,
)
from running_system import (
    FLEET,
    FLEET_WITH_ABSENT,
    Place,
    System,
    chat,
    eventually,
    held_chat,
    records_of,
)

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.asyncio(loop_scope="module"),
]

SERVED_S_MAX = 30.0
OPEN_MS = 5000
# Of the partitions of the ingest topic. Those of the last wait for open transactions.
OPEN_PARTITION = 3
MANY = 200
LARGE = "x" * 500_000
LONG_MAX = 2**63 - 1
YEAR_9999_MS = 253_370_764_800_000
WRITERS_TIME = {
    "message.timestamp.type": "CreateTime",
    "message.timestamp.after.max.ms": str(LONG_MAX),
}

# What the clients' own interfaces refuse to send.
NULL_HEADERS = {"null header", "null headers of ours", "dead letter with null headers"}
NEGATIVE = {"before 1970", "without a time"}
UNSENDABLE = {
    "librdkafka": set(),
    "java": NEGATIVE,
    "franz-go": set(),
    "kafka-python": NULL_HEADERS
    | {"null key and value", "cancellation of null by null", "cancellation with null headers"},
    "sarama": set(),
    "kafkajs": NULL_HEADERS | {"cancellation with null headers"},
}
HEADERS_OF_OURS = (
    "traceparent",
    "tracestate",
    "ce_specversion",
    "ce_id",
    "shunter-profile",
    "__connect.errors.topic",
)
NULLS_OF_OURS = [(name, None) for name in HEADERS_OF_OURS]


@dataclass
class Expected:
    """What must come of what one client has published by one codec."""

    results: dict[str, str] = field(default_factory=dict)
    letters: dict[Place, str] = field(default_factory=dict)
    nothing: set[str] = field(default_factory=set)
    unsent: dict[str, str] = field(default_factory=dict)


@dataclass
class Line:
    """A message, and what must come of it: a status of a result, or the reason of a dead letter."""

    what: str
    message: Message
    ends: str
    request_id: str | None = None


class Track:
    """What one client publishes by one codec to one partition."""

    def __init__(self, publisher: Publisher, system: System, client: str, codec: str) -> None:
        self._publisher = publisher
        self._system = system
        self._codec = codec
        self._name = f"{client}-{codec}"
        self._partition = CODECS.index(codec) % OPEN_PARTITION
        self._count = 0
        self.expected = Expected()

    def good(self, what: str = "good", **fields: Any) -> Line:
        """A request that is served, perhaps with something unusual about its record."""
        return self._request(what, "completed", fields, deadline=time.time() + 600)

    def _request(self, what: str, ends: str, fields: dict[str, Any], **request: Any) -> Line:
        request_id = self._next_id()
        value = orjson.dumps(chat(request_id, **request))
        given = {"partition": self._partition, "key": request_id.encode(), "value": value}
        return Line(what, Message(**given | fields), ends, request_id)

    def _next_id(self) -> str:
        self._count += 1
        return f"{self._name}-{self._count}"

    def _refused(self, what: str, reason: str, **fields: Any) -> Line:
        return Line(what, Message(**{"partition": self._partition} | fields), reason)

    def odd(self) -> Iterable[Line]:
        """What Kafka allows and few send."""

        def timed(what: str, ends: str, timestamp_ms: int) -> Line:
            return self._request(what, ends, {"timestamp_ms": timestamp_ms})

        yield self.good("null key", key=None)
        yield self.good("empty key", key=b"")
        yield self.good("null header", headers=[("own", None)])
        yield self.good("repeated headers", headers=[("own", b"1"), ("own", b"2"), ("own", b"1")])
        yield self.good("empty header", headers=[("", b""), ("own", b"")])
        yield self.good("null headers of ours", headers=NULLS_OF_OURS)
        yield timed("of 1970", "expired", 1)
        yield timed("before 1970", "completed", -86_400_000)
        yield timed("without a time", "completed", -1)
        yield timed("of 9999", "completed", YEAR_9999_MS)
        yield timed("of the end of time", "completed", LONG_MAX)
        yield self._refused("null value", "empty_value", key=b"null")
        yield self._refused("empty value", "empty_value", key=b"empty", value=b"")
        yield self._refused("null key and value", "empty_value")
        yield self._refused("all empty", "empty_value", key=b"", value=b"", headers=[("", b"")])
        yield self._refused(
            "dead letter with null headers", "empty_value", key=b"null", headers=NULLS_OF_OURS
        )
        yield self._refused("too large", "too_large", value=b" " * 1_200_000)

    async def publish_all(self) -> None:
        """Publish all there is, in batches of each mode."""
        sparse = [line for odd in self.odd() for line in (self.good(), odd)]
        await self._publish([*sparse, self.good()])
        tombstones = [self._refused("of many", "empty_value", key=b"many")] * MANY
        large = self._request("large", "completed", {}, metadata=LARGE, deadline=time.time() + 600)
        await self._publish([*tombstones, large, self.good()], "idempotent")
        for mode in ("committed", "aborted", "left open"):
            await self._publish_transaction(mode)
        await self._publish([self.good(), self.good(partition=OPEN_PARTITION)])
        await self._publish_cancellations()

    async def _publish_transaction(self, mode: Mode) -> None:
        partition = OPEN_PARTITION if mode == "left open" else self._partition
        lines = [
            self.good(partition=partition),
            self._refused("in a transaction", "empty_value", key=b"null", partition=partition),
            self.good(partition=partition),
        ]
        await self._publish(lines, mode)
        await self._publish([self.good(partition=partition)])

    async def _publish_cancellations(self) -> None:
        unusual = {
            "cancellation without value": {},
            "cancellation with empty value": {"value": b""},
            "cancellation of garbage": {"value": b"\xff\x00", "headers": [("", b""), ("", b"")]},
            "cancellation with null headers": {"headers": NULLS_OF_OURS},
            "cancellation of the end of time": {"timestamp_ms": LONG_MAX},
        }
        refused = (
            ("cancellation of null by null", {}),
            ("cancellation of null", {"value": b"\xff"}),
            ("cancellation of nothing", {"key": b""}),
            ("cancellation of no text", {"key": b"\xff", "headers": [("", b"")]}),
        )
        names = {what: self._next_id() for what in unusual}
        await self._publish([self._held(name) for name in names.values()])
        lines = [self._refused(what, "invalid_cancellation", **given) for what, given in refused]
        for what, given in unusual.items():
            message = Message(partition=self._partition, key=names[what].encode(), **given)
            lines.append(Line(what, message, "cancelled", names[what]))
        await self._publish(lines, topic=self._system.catalogue.cancellations)

    def _held(self, name: str) -> Line:
        value = orjson.dumps(held_chat(name))
        message = Message(partition=self._partition, key=name.encode(), value=value)
        return Line("held", message, "")

    async def _publish(
        self, lines: list[Line], mode: Mode = "plain", *, topic: str | None = None
    ) -> None:
        batch = Batch(
            topic=topic or self._system.catalogue.requests,
            codec=self._codec,
            mode=mode,
            messages=[line.message for line in lines],
        )
        if mode in {"committed", "aborted", "left open"}:
            batch.transactional_id = f"{self._system.prefix}-{self._name}-{mode}"
            batch.transaction_timeout_ms = OPEN_MS
        await self._publisher.publish(batch)
        for line, outcome in zip(lines, batch.outcomes, strict=True):
            place = (batch.topic, line.message.partition, outcome)
            if isinstance(outcome, str):
                self.expected.unsent[line.what] = outcome
            elif mode in {"aborted", "left open"}:
                self.expected.nothing |= {line.request_id} if line.request_id else {place}
            elif line.request_id:
                self.expected.results[line.request_id] = line.ends
            elif line.ends:
                self.expected.letters[place] = line.ends


def take_any_timestamp(system: System) -> None:
    """Let topics keep the times of their writers, however far ahead: those of old ones do."""
    admin = AdminClient({"bootstrap.servers": system.bootstrap_servers})
    topics = (system.catalogue.requests, system.catalogue.cancellations)
    described = admin.describe_configs([ConfigResource(ResourceType.TOPIC, topics[0])])
    (known,) = (each.result(30) for each in described.values())
    entries = [
        ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
        for name, value in WRITERS_TIME.items()
        # One before 3.6 has no limit by default.
        if name in known
    ]
    resources = [
        ConfigResource(ResourceType.TOPIC, topic, incremental_configs=entries) for topic in topics
    ]
    for done in admin.incremental_alter_configs(resources).values():
        done.result(30)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    directory = tmp_path_factory.mktemp("system")
    prefix = f"producers-{os.getpid()}"
    async with System(
        kafka, prefix, directory, fleet=FLEET_WITH_ABSENT, policy_speed=1.0
    ) as system:
        await asyncio.to_thread(take_any_timestamp, system)
        system.start("router", *FLEET["pools"])
        await system.publish(chat("warm-up", deadline=time.time() + 600))
        await system.wait_for_results(["warm-up"], timeout_s=120)
        yield system


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the programs are built."""
    return tmp_path_factory.mktemp("producers")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def published(
    system: System, programs: Path
) -> AsyncIterator[dict[str, asyncio.Task[dict[str, Expected]]]]:
    """What each client publishes, all at once: what open transactions take passes once."""

    async def publish(client: str) -> dict[str, Expected]:
        expected = {}
        async with Publisher(client, system.bootstrap_servers, programs) as publisher:
            for codec in CODECS:
                track = Track(publisher, system, client, codec)
                await track.publish_all()
                expected[codec] = track.expected
        return expected

    tasks = {c: asyncio.create_task(publish(c)) for c in CLIENTS if missing(c) is None}
    await asyncio.wait(tasks.values())
    yield tasks


async def ends_are_there(system: System, expected: Expected) -> None:
    """Wait until each record that one client has published by one codec has its end."""

    async def all_there() -> bool:
        await system.read()
        return (
            expected.results.keys() <= system.results.keys()
            and expected.letters.keys() <= system.reasons().keys()
        )

    try:
        await eventually(all_there, "each record has its end", SERVED_S_MAX)
    except AssertionError as error:
        without = sorted(expected.results.keys() - system.results.keys())
        unread = sorted(expected.letters.keys() - system.reasons().keys())
        told = f"{error}; without a result: {without}; without a dead letter: {unread}"
        raise AssertionError(f"{told}\n{system.logs()}") from error


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("client", CLIENTS)
async def test_each_record_ends_and_those_beside_it_are_served(
    system: System, published: dict[str, asyncio.Task[Any]], client: str, codec: str
) -> None:
    if reason := missing(client):
        pytest.skip(reason)
    expected: Expected = (await published[client])[codec]

    await ends_are_there(system, expected)
    assert expected.unsent.keys() == UNSENDABLE[client], expected.unsent
    ends = {each: [r["status"] for r in system.results[each]] for each in expected.results}
    assert ends == {each: [status] for each, status in expected.results.items()}
    letters = system.reasons()
    found = {place: letters[place] for place in expected.letters}
    assert found == {place: [reason] for place, reason in expected.letters.items()}
    assert not expected.nothing & (system.results.keys() | letters.keys())
    assert system.ended() == [], system.logs()


@pytest.mark.parametrize("client", CLIENTS)
async def test_each_client_reads_what_is_committed_alone(
    system: System, published: dict[str, asyncio.Task[Any]], programs: Path, client: str
) -> None:
    if reason := missing(client):
        pytest.skip(reason)
    # Nothing comes any more.
    for publishing in published.values():
        for expected in (await publishing).values():
            await ends_are_there(system, expected)
    async with Publisher(client, system.bootstrap_servers, programs) as reader:
        for topic in (system.catalogue.results, system.catalogue.dead_letters):
            name = f"{system.prefix}-{client}-{topic}"
            unseen = [Message(partition=0, key=b"aborted", value=b"{}")]
            batch = Batch(
                topic=topic, codec="none", mode="aborted", messages=unseen, transactional_id=name
            )
            await reader.publish(batch)
            records = await records_of(system, topic)
            partitions = system.consumer.partitions_for_topic(topic)
            found = await reader.read(topic, len(partitions), len(records))
            committed = {(r.partition, r.offset): Read.of(r) for r in records}
            assert {(r.partition, r.offset): r for r in found} == committed
            assert len(found) == len(committed)


async def test_no_process_has_failed(system: System) -> None:
    assert "Traceback" not in system.logs(), system.logs()
    assert "raised at" not in system.logs(), system.logs()
