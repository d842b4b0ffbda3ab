"""Batches that no client makes, published as bytes: each ends, and those beside it are served."""

import os
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer
from raw_batches import CODECS, batch, counts, pack, publish_batch, record, sized, varint
from running_system import FLEET, FLEET_WITH_ABSENT, Place, System, chat, eventually, held_chat
from two_logs import KafkaGround, kept

from streams.engine.log import Outgoing, Partition
from topics.embedded_broker.jars import KAFKA_VERSION
from topics.registry import CANCELLATION_BYTES_MAX

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.asyncio(loop_scope="module"),
]

MIB = 1024 * 1024
PARTITION = 1
ENDS_S_MAX = 60.0
KAFKA_REFUSES = "Kafka refuses it"
# What is refused here is what Kafka 4.3.1 refuses. Others look less or more closely.
IS_KAFKA_ANOTHER = KAFKA_VERSION != "4.3.1"

GOOD, SECOND = record(b"k", b"{}"), record(b"k", b"{}", at=1)
GARBAGE = random.Random(1).randbytes(500)
# Three times what a batch may unpack to.
BOMB = record(b"k", bytes(96 * MIB))
MANY = 5_000
TOMBSTONES = b"".join(record(b"k", at=at) for at in range(MANY))
NOT_UTF8 = b"\xff\xfe"
TAKEN = "a place that is taken"


def body(*parts: bytes) -> bytes:
    return record(body=b"".join(parts))


# Records, how many the batch says there are, and the reason of their dead letters.
RECORDS: dict[str, tuple[bytes, int, str]] = {
    "a header name that is not UTF-8": (
        record(b"k", b"{}", [(NOT_UTF8, None)]),
        1,
        "header_not_utf8",
    ),
    "a negative length": (body(sized(b"k"), varint(-5), varint(0)), 1, "empty_value"),
    "a key longer than its record": (body(varint(1000), b"k"), 1, KAFKA_REFUSES),
    "a value longer than its record": (body(sized(b"k"), varint(1000), b"v"), 1, KAFKA_REFUSES),
    "a header longer than its record": (
        body(sized(b"k"), sized(b"v"), varint(1), sized(b"a"), varint(1000)),
        1,
        KAFKA_REFUSES,
    ),
    "more headers than there can be": (
        body(sized(b"k"), sized(b"v"), varint(2**31 - 1)),
        1,
        KAFKA_REFUSES,
    ),
    "a null header name": (
        body(sized(b"k"), sized(b"v"), varint(1), varint(-1), varint(-1)),
        1,
        KAFKA_REFUSES,
    ),
    "garbage behind the records": (GOOD + GARBAGE, 1, KAFKA_REFUSES),
    "more records than it says": (GOOD + SECOND, 1, KAFKA_REFUSES),
    "fewer records than it says": (GOOD + SECOND, 5, KAFKA_REFUSES),
    "no records": (b"", 0, KAFKA_REFUSES),
    "as many records as a number can say": (GOOD, 2**31 - 1, KAFKA_REFUSES),
}
# Enough of one codec: each is a dead letter.
MANY_RECORDS = {"many records": (TOMBSTONES, MANY, "empty_value")}
# Of what is compressed Kafka counts the records, and looks less at what they say of themselves; of
# what is not, it does not look at their places.
PACKED: dict[str, tuple[bytes, int, str]] = {
    "a bomb": (BOMB, 1, "undecodable_batch"),
    "a record that says it is longer": (record(b"k", b"{}", size=10_000), 1, "corrupt_batch"),
    "a record that says it is shorter": (record(b"k", b"{}", size=3), 1, "corrupt_batch"),
    "a record of negative size": (record(b"k", b"{}", size=-7), 1, "corrupt_batch"),
    "a place beyond the batch": (record(b"k", b"{}", at=9), 1, KAFKA_REFUSES),
}
PLAIN: dict[str, tuple[bytes, int, str]] = {
    "a record that says it is longer": (record(b"k", b"{}", size=10_000), 1, KAFKA_REFUSES),
    "a place beyond the batch": (record(b"k", b"{}", at=9), 1, "corrupt_batch"),
    "a place beyond the log": (record(b"k", b"{}", at=2**31 - 1), 1, "corrupt_batch"),
    "a place before the batch": (record(b"k", b"{}", at=-9), 1, "corrupt_batch"),
    TAKEN: (GOOD + GOOD, 2, "corrupt_batch"),
}


def raw_batches(codec: str) -> dict[str, tuple[bytes, int, str]]:
    """Return batches of a codec, how many offsets each takes, and what must come of it."""
    kinds = RECORDS | (PLAIN if codec == "none" else PACKED)
    if codec == "zstd":
        kinds |= MANY_RECORDS
    found = {
        kind: (batch(records, codec=codec, count=count), count, ends)
        for kind, (records, count, ends) in kinds.items()
    }
    odd = {"timestamp_ms": -5}, {"attributes": 0b1_1100_0000}
    for kind, fields in zip(("a time before 1970", "attributes of no meaning"), odd, strict=True):
        found[kind] = (batch(GOOD, codec=codec, **fields), 1, "invalid_request")
    if codec == "none":
        return found
    behind = "undecodable_batch" if codec in {"gzip", "lz4"} else KAFKA_REFUSES
    frames = "invalid_request" if codec in {"gzip", "zstd"} else KAFKA_REFUSES
    for kind, data, count, ends in (
        ("garbage", GARBAGE, 1, KAFKA_REFUSES),
        ("less than was compressed", pack(codec, GOOD)[:-5], 1, KAFKA_REFUSES),
        ("garbage behind it", pack(codec, GOOD) + GARBAGE, 1, behind),
        ("two frames", pack(codec, GOOD) + pack(codec, SECOND), 2, frames),
    ):
        found[kind] = (batch(data, codec=codec, count=count, is_packed=True), count, ends)
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    directory, prefix = tmp_path_factory.mktemp("system"), f"raw-{os.getpid()}"
    async with System(kafka, prefix, directory, fleet=FLEET_WITH_ABSENT) as system:
        system.start("router", *FLEET["pools"])
        await system.publish(later("warm-up"))
        await system.wait_for_results(["warm-up"], timeout_s=120)
        yield system


def later(request_id: str) -> dict[str, Any]:
    return chat(request_id, deadline=time.time() + 600)


async def publish_beside(system: System, name: str, data: bytes) -> tuple[int, int]:
    """Publish a batch and a request behind it; return Kafka's error code and the offset."""
    topic = system.catalogue.requests
    error, offset = await publish_batch(system, topic, PARTITION, data)
    await system.publish(later(name), partition=PARTITION)
    return error, offset


def letters_of(offset: int, count: int, ends: str) -> dict[int, str]:
    """Return the offsets of the dead letters that must come of a batch, and their reason.

    Of one that can't be read there is one letter, at its last offset.
    """
    first = offset + count - 1 if ends in {"undecodable_batch", "corrupt_batch"} else offset
    return dict.fromkeys(range(first, offset + count), ends)


@pytest.mark.parametrize("codec", CODECS)
async def test_each_batch_ends_and_those_beside_it_are_served(system: System, codec: str) -> None:
    topic = system.catalogue.requests
    expected: dict[Place, list[str]] = {}
    beside = []
    for kind, (data, count, ends) in raw_batches(codec).items():
        beside.append(f"beside {kind}, {codec}")
        error, offset = await publish_beside(system, beside[-1], data)
        is_as_expected = (error != 0) == (ends == KAFKA_REFUSES)
        assert is_as_expected or IS_KAFKA_ANOTHER, f"{kind}: Kafka's error is {error}"
        if not error and is_as_expected:
            letters = letters_of(offset, count, ends)
            expected |= {(topic, PARTITION, at): [reason] for at, reason in letters.items()}
        if kind == TAKEN:
            expected[topic, PARTITION, offset] = ["invalid_request"]
    await ends_are(system, expected)
    await system.wait_for_results(beside, ENDS_S_MAX)
    assert {system.result(each)["status"] for each in beside} == {"completed"}


async def ends_are(system: System, expected: dict[Place, list[str]]) -> None:
    """Wait until each of these places has a dead letter, and see that it has this one."""

    async def all_there() -> bool:
        await system.read()
        return expected.keys() <= system.reasons().keys()

    try:
        await eventually(all_there, "each batch has its dead letter", ENDS_S_MAX)
    except AssertionError as error:
        without = sorted(expected.keys() - system.reasons().keys())
        raise AssertionError(f"{error}: {without[:5]}\n{system.logs()}") from error
    reasons = system.reasons()
    assert {place: reasons[place] for place in expected} == expected
    assert system.ended() == [], system.logs()


@pytest.mark.parametrize("codec", CODECS)
async def test_who_reads_cancellations_reads_on(system: System, codec: str) -> None:
    topic = system.catalogue.cancellations
    expected: dict[Place, list[str]] = {}
    for data, count, ends in raw_batches(codec).values():
        if len(data) > CANCELLATION_BYTES_MAX or count > 2:
            continue
        error, offset = await publish_batch(system, topic, PARTITION, data)
        assert (error != 0) == (ends == KAFKA_REFUSES) or IS_KAFKA_ANOTHER
        # What is no request may be a cancellation.
        if not error and ends in {"undecodable_batch", "corrupt_batch"}:
            letters = letters_of(offset, count, ends)
            expected |= {(topic, PARTITION, at): [reason] for at, reason in letters.items()}
    name = f"to be cancelled, {codec}"
    await system.publish(held_chat(name))
    await system.producer.send_and_wait(topic, None, key=name.encode(), partition=PARTITION)
    await system.wait_for_results([name], ENDS_S_MAX)
    assert system.result(name)["status"] == "cancelled"
    await ends_are(system, expected)


async def test_a_router_that_starts_reads_past_all_of_it(system: System) -> None:
    """What came last on a partition it reads back, to know a request that comes twice."""
    await system.publish(later("before the start"), partition=PARTITION)
    await system.wait_for_results(["before the start"], ENDS_S_MAX)
    system.kill("router")
    system.start("router")
    await system.publish(later("before the start"), partition=PARTITION)
    await system.publish(later("after the start"), partition=PARTITION)
    await system.publish(held_chat("held after the start"))
    key = b"held after the start"
    await system.producer.send_and_wait(system.catalogue.cancellations, None, key=key)
    await system.wait_for_results(["after the start", key.decode()], ENDS_S_MAX)
    assert system.result("after the start")["status"] == "completed"
    assert system.result(key.decode())["status"] == "cancelled"
    await system.wait_for_steps("before the start", "placed", "executed", "duplicate")


async def test_a_batch_that_compaction_has_emptied_is_passed(kafka: str, prefix: str) -> None:
    """Kafka keeps the last batch of a producer that counts its batches, with nothing in it."""
    ground = KafkaGround(kafka, prefix)
    home = Partition(f"{prefix}.compacted", 0)
    await ground.create({home.topic: 1}, compacted=[home.topic])
    async with AIOKafkaProducer(bootstrap_servers=kafka, enable_idempotence=True) as first:
        await first.send_and_wait(home.topic, b"1", key=b"x", partition=0)
    for value in (b"2", b"3"):
        await ground.publish(Outgoing(home.topic, b"x", value, [], 0))
    await ground.look()
    await ground.compact(home)
    assert (await counts(ground._producer.client, *home))[0] == 0
    found = [record async for records in ground.log().read({home: 0}) for record in records]
    assert [(r.offset, r.value) for r in kept(found)] == [(2, b"3")]
    await ground.close()


async def test_no_process_said_worse_than_what_it_set_aside(system: System) -> None:
    assert "Traceback" not in system.logs(), system.logs()
