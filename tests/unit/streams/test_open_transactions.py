"""Open transactions of a partition: whose they are, and whether one hangs, by a real Kafka."""

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
import pytest_asyncio
from aiokafka import AIOKafkaProducer, TopicPartition
from hanging_transactions import leave_hanging
from open_client import client_that_hangs
from running_system import eventually

from streams.engine.log import Partition
from streams.kafka.log import KafkaLog
from streams.kafka.open_transactions import find_open
from streams.kafka.writer import TransactionTimeoutError
from topics import Settings
from topics.admin import provisioning
from topics.embedded_broker.broker import EmbeddedBroker

pytestmark = [pytest.mark.kafka, pytest.mark.asyncio(loop_scope="module")]

REQUESTS, RESULTS = "inference.requests", "inference.results"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def settings() -> AsyncIterator[Settings]:
    # As in test_hanging: a broker on which a transaction can be made to hang.
    with EmbeddedBroker(
        properties={"transaction.partition.verification.enable": "false"}
    ) as broker:
        settings = Settings(bootstrap_servers=broker.bootstrap_servers)
        await provisioning.apply(settings, [])
        yield settings


async def test_a_client_that_hangs_is_named_with_the_end_of_its_transaction(
    settings: Settings,
) -> None:
    where, other = Partition(REQUESTS, 0), Partition(REQUESTS, 1)
    began_at = time.time()
    async with client_that_hangs(settings.bootstrap_servers, REQUESTS, "the client", 45_000):
        found = await find_open(settings, [where, other])
    assert found.keys() == {where}
    assert found[where].transactional_id == "the client"
    assert found[where].start_offset == 0
    assert not found[where].hangs
    assert found[where].timeout_s_max == 60
    written_at, ends_at = found[where].written_at, found[where].ends_at
    assert written_at is not None
    assert ends_at is not None
    assert began_at - 1 < written_at < time.time() + 1
    assert began_at + 44 < ends_at < time.time() + 46


async def test_one_that_its_coordinator_has_ended_hangs(settings: Settings) -> None:
    await leave_hanging(settings, "ended", b"lost", committed=False)
    places = [Partition(RESULTS, 0), Partition(RESULTS, 1)]

    async def is_ended() -> bool:
        # A marker is written on partition 0, and only then is the coordinator through with it.
        return {p.number: o.hangs for p, o in (await find_open(settings, places)).items()} == {
            1: True
        }

    await eventually(is_ended, "one that hangs on partition 1")
    found = (await find_open(settings, places))[places[1]]
    assert found.transactional_id == "ended"
    assert found.ends_at is None


async def test_one_hangs_on_a_partition_that_its_coordinator_does_not_count_to_it(
    settings: Settings,
) -> None:
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id="half known"
    )
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(RESULTS, b"known", partition=2)
    producer._txn_manager._txn_partitions.add(TopicPartition(RESULTS, 3))
    await producer.send_and_wait(RESULTS, b"unknown", partition=3)
    found = await find_open(settings, [Partition(RESULTS, 2), Partition(RESULTS, 3)])
    await producer.abort_transaction()
    await producer.stop()
    assert {p.number: each.hangs for p, each in found.items()} == {2: False, 3: True}
    assert found[Partition(RESULTS, 2)].ends_at is not None
    assert found[Partition(RESULTS, 3)].ends_at is None


async def test_one_that_ends_while_brokers_are_asked_does_not_hang(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streams.kafka import open_transactions

    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id="in time"
    )
    await producer.start()
    await producer.begin_transaction()
    await producer.send_and_wait(REQUESTS, b"{}", partition=2)
    ask = open_transactions._coordinated

    async def ask_once_it_has_ended(client: Any, producer_ids: set[int]) -> object:
        await producer.commit_transaction()

        async def is_marked() -> bool:
            return not await open_transactions._oldest(client, [Partition(REQUESTS, 2)])

        # Kafka writes the marker after its answer.
        await eventually(is_marked, "the end of a committed transaction")
        return await ask(client, producer_ids)

    monkeypatch.setattr(open_transactions, "_coordinated", ask_once_it_has_ended)
    found = await find_open(settings, [Partition(REQUESTS, 2)])
    await producer.stop()
    assert found == {}


class Member:
    """A membership that takes whatever comes."""

    async def assigned(self, partitions: object) -> None:
        """Take it."""

    async def revoked(self, partitions: object) -> None:
        """Let it go."""


async def test_what_a_member_may_not_read_yet_is_seen_in_what_it_fetches(
    settings: Settings,
) -> None:
    log, where = KafkaLog(settings), Partition(REQUESTS, 3)
    assert log.unstable() == {}
    producer = AIOKafkaProducer(
        bootstrap_servers=settings.bootstrap_servers, transactional_id="unstable"
    )
    await producer.start()
    await log.join("inference.test-unstable", [REQUESTS], Member())
    seen = []
    try:
        async with asyncio.timeout(60):
            while len(log._member.assignment()) < 4:  # noqa: ASYNC110 - the client tells nobody
                await asyncio.sleep(0.05)
            for partition in log._member.assignment():
                log.seek(Partition(*partition), 0)
            await producer.begin_transaction()
            await producer.send_and_wait(REQUESTS, b"{}", partition=3)
            while where not in log.unstable():
                await log.poll(0.1, 100, ())
            seen.append(log.unstable()[where])
            await producer.commit_transaction()
            while where in log.unstable():
                await log.poll(0.1, 100, ())
    finally:
        await producer.stop()
        await log.leave()
    assert seen == [(0, 1)]


async def test_a_longer_transaction_than_brokers_allow_is_refused_with_what_to_do(
    settings: Settings,
) -> None:
    log = KafkaLog(settings.model_copy(update={"transaction_timeout_ms": 60_001}))
    with pytest.raises(TransactionTimeoutError, match=r"TIMEOUT_MS=60001.*transaction\.max") as got:
        await log.fence("inference.test-refused")
    assert not log.is_passing(got.value)
