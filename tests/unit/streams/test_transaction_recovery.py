"""A transaction without an end, as a dying broker leaves it, on real Kafka."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from hanging_transactions import TOPIC, leave_hanging

from streams.engine.log import Outgoing, Partition
from streams.kafka import transaction_recovery
from streams.kafka.log import KafkaLog
from streams.kafka.offset_requests import ASIDE
from streams.kafka.transaction_recovery import complete_commit
from streams.kafka.writer import KafkaWriter
from topics import Catalogue, Settings
from topics.admin import provisioning
from topics.embedded_broker.broker import EmbeddedBroker

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

ID = "inference.test-0"


class Bystander:
    async def assigned(self, partitions: Any) -> None:
        pass

    async def revoked(self, partitions: Any) -> None:
        pass


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def settings(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Settings]:
    # Without its verification the broker takes records of a partition that was never added to the
    # transaction, and ends the transaction without a marker there: the same hanging transaction
    # that a killed broker leaves, but on purpose.
    lenient = {"transaction.partition.verification.enable": "false"}
    with EmbeddedBroker(properties=lenient) as broker:
        settings = Settings(bootstrap_servers=broker.bootstrap_servers)
        await provisioning.apply(settings, [])
        yield settings


async def visible(settings: Settings, number: int, after: bytes) -> list[bytes]:
    """Return the values of a partition up to ``after``, which must become visible."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.bootstrap_servers, isolation_level="read_committed"
    )
    consumer.assign([TopicPartition(TOPIC, number)])
    await consumer.start()
    await consumer.seek_to_beginning()
    values: list[bytes] = []
    try:
        async with asyncio.timeout(90):
            while after not in values:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    values += [record.value for record in records]
    finally:
        await consumer.stop()
    return values


async def joined(settings: Settings, group: str) -> KafkaLog:
    log = KafkaLog(settings)
    await log.join(group, ["inference.reroutes"], Bystander())
    return log


async def seen_by_successor(
    settings: Settings, log: KafkaLog, transactional_id: str
) -> list[bytes]:
    """Let a successor fence and commit a record, and return what a reader then sees up to it."""
    value = f"after {transactional_id}".encode()
    writer = await log.fence(transactional_id)
    await writer.begin()
    await (await writer.send(Outgoing(TOPIC, b"k", value, partition=1)))
    await writer.commit()
    values = await visible(settings, 1, value)
    await writer.close()
    await log.leave()
    return values


@pytest.mark.parametrize("committed", [False, True])
async def test_a_successor_ends_it_as_the_coordinator_had(
    settings: Settings, committed: bool
) -> None:
    name = f"{ID}-{committed}"
    lost = f"lost {committed}".encode()
    await leave_hanging(settings, name, lost, committed=committed)
    log = await joined(settings, f"inference.test-{committed}")

    assert (lost in await seen_by_successor(settings, log, name)) == committed


async def fence_and_die(settings: Settings, transactional_id: str) -> None:
    """Fence as a process does that ends before anything else: the coordinator has forgotten."""
    forgetful = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id=transactional_id
    )
    await forgetful.start()
    await forgetful.stop()


@pytest.mark.parametrize("committed", [False, True])
async def test_a_successor_that_died_after_fencing_changes_no_outcome(
    settings: Settings, committed: bool
) -> None:
    name = f"{ID}-twice-{committed}"
    lost = f"lost twice {committed}".encode()
    await leave_hanging(settings, name, lost, committed=committed)
    log = await joined(settings, f"inference.test-twice-{committed}")
    await complete_commit(log._member._client, name, Catalogue(settings).owns)
    await fence_and_die(settings, name)

    assert (lost in await seen_by_successor(settings, log, name)) == committed


async def test_half_a_transaction_of_a_predecessor_that_lives_is_not_committed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It slept, and begins its next transaction while the successor looks for a lost marker."""
    log = await joined(settings, "inference.test-lives")
    name = f"{ID}-lives"
    sleeper = await log.fence(name)
    await sleeper.begin()
    await (await sleeper.send(Outgoing(TOPIC, b"k", b"whole", partition=1)))
    await sleeper.commit()
    look = transaction_recovery._hanging_partitions
    looks = 0

    async def wake_up_and_look(*args: Any) -> Any:
        nonlocal looks
        looks += 1
        if looks == 1:
            await sleeper.begin()
            await (await sleeper.send(Outgoing(TOPIC, b"k", b"half", partition=1)))
        return await look(*args)

    monkeypatch.setattr(transaction_recovery, "_hanging_partitions", wake_up_and_look)
    seen = await seen_by_successor(settings, log, name)
    await sleeper.close()
    assert looks
    assert b"whole" in seen
    assert b"half" not in seen


async def test_a_writer_knows_that_it_was_cut_off(settings: Settings) -> None:
    log = await joined(settings, "inference.test-cut")
    writer = await log.fence(f"{ID}-cut")
    assert isinstance(writer, KafkaWriter)
    await writer.begin()
    await (await writer.send(Outgoing(TOPIC, b"k", b"cut", partition=0)))
    await writer.commit()
    before = writer.is_cut_off
    for connection in list(writer._producer.client._conns.values()):
        connection.close()
    after = writer.is_cut_off
    await writer.close()
    await log.leave()

    assert (before, after) == (False, True)


async def test_a_writer_that_was_cut_off_goes_on_where_nothing_of_it_hangs(
    settings: Settings,
) -> None:
    log = await joined(settings, "inference.test-whole")
    writer = await log.fence(f"{ID}-whole")
    producer = writer._producer

    async def write(number: int, *, counted: bool = True) -> bool:
        """Commit a record, lose all connections, and return whether the writer may go on."""
        await writer.begin()
        if not counted:
            # As `leave_hanging` does: this partition gets no marker.
            writer._requests._added.add(TopicPartition(TOPIC, number))
        await (await writer.send(Outgoing(TOPIC, b"k", b"whole", partition=number)))
        await (await writer.send(Outgoing(TOPIC, b"k", b"whole", partition=2)))
        await writer.commit()
        for connection in list(producer.client._conns.values()):
            connection.close()
        assert writer.is_cut_off
        has_ended = await writer.has_ended()
        assert writer.is_cut_off == (not has_ended)
        return has_ended

    told = [await write(0), await write(0), await write(3, counted=False)]
    await writer.close()
    successor = await log.fence(f"{ID}-whole")
    await successor.close()
    await log.leave()
    assert told == [True, True, False]


async def test_the_end_of_an_epoch_is_asked_beside_the_fetches(settings: Settings) -> None:
    log = await joined(settings, "inference.test-aside")
    assert await log.epoch_end(Partition("inference.reroutes", 0), 0) == 0
    groups = {group for _, group in log._member._client._conns}
    await log.leave()

    assert ASIDE in groups


class Idle:
    """A connection to a broker that leads nothing of what is written, which closed it."""

    _last_action = 0.0
    host, port = "idle.example", 9092

    def connected(self) -> bool:
        return False

    def close(self, **_: object) -> "asyncio.Future[None]":
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        closed.set_result(None)
        return closed


async def test_a_connection_that_no_transaction_used_cuts_no_writer_off(
    settings: Settings,
) -> None:
    log = await joined(settings, "inference.test-idle")
    writer = await log.fence(f"{ID}-idle")
    writer._producer.client._conns[7, "group"] = Idle()
    await writer.begin()
    await (await writer.send(Outgoing(TOPIC, b"k", b"idle", partition=0)))
    await writer.commit()
    is_cut_off = writer.is_cut_off
    await writer.close()
    await log.leave()

    assert not is_cut_off


async def test_a_writer_knows_that_it_was_cut_off_in_the_commit(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = await joined(settings, "inference.test-cut-commit")
    writer = await log.fence(f"{ID}-cut-commit")
    assert isinstance(writer, KafkaWriter)
    producer, commit = writer._producer, writer._requests.commit

    async def commit_cut_off() -> None:
        for connection in list(producer.client._conns.values()):
            connection.close()
        # As the client does when it has lost a broker: over a new connection.
        await producer.client.force_metadata_update()
        await commit()

    monkeypatch.setattr(writer._requests, "commit", commit_cut_off)
    await writer.begin()
    await (await writer.send(Outgoing(TOPIC, b"k", b"cut in the commit", partition=0)))
    await writer.commit()
    is_cut_off = writer.is_cut_off
    await writer.close()
    await log.leave()

    assert is_cut_off


async def test_nothing_is_ended_where_nothing_hangs(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = await joined(settings, "inference.test-fresh")
    for _ in range(2):
        writer = await log.fence(f"{ID}-fresh")
        await writer.close()
    await log.leave()
    assert not [r for r in caplog.records if r.name == "streams.kafka.transaction_recovery"]


async def test_a_poll_in_a_rebalance_ends_so_that_the_rebalance_can_go_on(
    settings: Settings,
) -> None:
    """The client's own poll would wait for the new assignment, and that for its caller's lock."""
    log = await joined(settings, "inference.test-rebalance")
    async with asyncio.timeout(60):
        while not log._member.assignment():  # noqa: ASYNC110 - the client tells nobody
            await asyncio.sleep(0.05)
    log._member._subscription.begin_reassignment()
    async with asyncio.timeout(90):
        assert await log.poll(0.1, 100, ()) == {}
    await log.leave()
