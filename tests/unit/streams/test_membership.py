"""A member of a group that has nothing to ask for: it stays one, or learns why not."""

import asyncio
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions
from aiokafka.errors import GroupAuthorizationFailedError
from stream_cases import make_settings, soon
from two_logs import KafkaGround, until

from streams.engine.log import Partition
from streams.kafka import rebalance_patch
from streams.kafka.group_members import GroupMember, member_named
from streams.kafka.instance_name import _ask
from streams.kafka.log import KafkaLog
from streams.kafka.process_name import Process, this_process
from streams.kafka.reader import reader
from topics.embedded_broker.broker import EmbeddedBroker

YEAR_S = 365 * 86_400


class Witness:
    """Remembers what the member was given, and what was taken from it."""

    def __init__(self) -> None:
        self.given: list[Partition] = []
        self.taken: list[Partition] = []

    async def assigned(self, partitions: Collection[Partition]) -> None:
        self.given += partitions

    async def revoked(self, partitions: Collection[Partition]) -> None:
        self.taken += partitions


@asynccontextmanager
async def member_of(kafka: str, prefix: str) -> AsyncIterator[tuple[KafkaLog, Witness, Partition]]:
    """Lend the only member of a group, with what it was given, and its only partition."""
    ground = KafkaGround(kafka, prefix)
    await ground.create({f"{prefix}.in": 1})
    log, witness, only = ground.log(), Witness(), Partition(f"{prefix}.in", 0)
    try:
        await log.join(f"{prefix}.group", [only.topic], witness)
        await until(lambda: witness.given == [only])
        yield log, witness, only
        await log.leave()
    finally:
        await ground.close()


@pytest.mark.kafka
async def test_a_member_that_takes_nothing_for_a_year_stays_in_its_group(
    kafka: str, prefix: str
) -> None:
    """The client lets go of one that has not asked for records, by default after 5 minutes."""
    async with member_of(kafka, prefix) as (log, witness, only):
        member = log._member
        generation = member._coordinator.generation
        assert generation > 0
        member._subscription._last_fetch_ended -= YEAR_S
        # Two heartbeats.
        for _ in range(25):
            await log.poll(0.1, 10, [only])
        assert member._coordinator.generation == generation
        assert member._subscription.fetcher_idle_time > YEAR_S
        assert not witness.taken


@pytest.mark.kafka
async def test_what_was_just_assigned_is_not_fetched_until_it_is_polled(
    kafka: str, prefix: str
) -> None:
    """Else what a takeover asks waits for a fetch, for half a second where nothing is new."""
    async with member_of(kafka, prefix) as (log, _, only):
        assert log._member.paused() == {only}
        await log.poll(0.1, 10, [])
        assert not log._member.paused()


@pytest.mark.kafka
async def test_who_comes_back_under_its_name_starts_no_rebalance_and_is_known_by_its_word(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kafka 4.3.1 tells the client id of the first that had the name, whoever has it by now."""
    async with member_of(kafka, prefix) as (log, _, only):
        name = log._member._coordinator._group_instance_id
        send = log._member._coordinator._send_req
        generation = log._member._coordinator.generation
        assert await member_named(send, f"{prefix}.group", name) == GroupMember(
            "127.0.0.1", this_process(), has_left=False
        )
        await log.leave()
        successor = Process("shunter.host.a.1234.0123456789abcdef", "host.a", 1234)
        monkeypatch.setattr(rebalance_patch, "this_process", lambda: successor)
        witness = Witness()
        await log.join(f"{prefix}.group", [only.topic], witness)
        await until(lambda: witness.given == [only])
        assert log._member._coordinator.generation == generation
        send = log._member._coordinator._send_req
        found = await member_named(send, f"{prefix}.group", name)
        assert found == GroupMember("127.0.0.1", successor, has_left=False)
        assert await member_named(send, f"{prefix}.group", "another") is None
        assert await member_named(send, f"{prefix}.no-group", name) is None


@pytest.mark.kafka
async def test_who_stops_says_farewell_and_keeps_its_place_for_its_session(
    kafka: str, prefix: str
) -> None:
    async with member_of(kafka, prefix) as (log, _, _):
        await log.leave()
        async with reader(log._settings) as client:
            found = await _ask(client, f"{prefix}.group", log._settings.instance)
        assert found == GroupMember("127.0.0.1", this_process(), has_left=True)


@pytest.mark.slow
@pytest.mark.kafka
async def test_after_a_restart_of_the_broker_a_group_takes_in_who_knows_of_more_partitions(
    tmp_path: Path,
) -> None:
    """Of a group that it has read back the broker knows one name, which counts the old ones."""
    topic = "grown.in"
    with EmbeddedBroker(data_dir=tmp_path / "kafka") as broker:
        old = KafkaGround(broker.bootstrap_servers, "grown")
        await old.create({topic: 2})
        before, after = Witness(), Witness()
        settings = make_settings(bootstrap_servers=broker.bootstrap_servers)
        log = KafkaLog(settings.model_copy(update={"partitions": 2}))
        await log.join("grown.group", [topic], before)
        await until(lambda: len(before.given) == 2)
        await log.leave()
        await old.close()
        broker.stop()
        broker.start()
        client = AIOKafkaAdminClient(bootstrap_servers=broker.bootstrap_servers)
        await client.start()
        await client.create_partitions({topic: NewPartitions(3)})
        await client.close()
        log = KafkaLog(settings.model_copy(update={"partitions": 3}))
        await log.join("grown.group", [topic], after)
        await until(lambda: {p.number for p in after.given} == {0, 1, 2})
        await log.leave()


async def test_a_member_that_has_nothing_to_ask_for_learns_what_the_group_refuses() -> None:
    def check_errors() -> None:
        raise GroupAuthorizationFailedError("copiers")

    standby = SimpleNamespace(
        assignment=set,
        paused=set,
        pause=lambda *_: None,
        resume=lambda *_: None,
        _coordinator=SimpleNamespace(check_errors=check_errors),
    )
    log = KafkaLog(make_settings())
    log._consumer = cast("AIOKafkaConsumer", standby)
    with pytest.raises(GroupAuthorizationFailedError):
        await soon(log.poll(0.1, 10, []), "the poll")


async def test_a_member_that_is_still_connecting_has_no_lag_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    connects = asyncio.Event()

    async def start(_: AIOKafkaConsumer) -> None:
        connects.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(AIOKafkaConsumer, "start", start)
    log = KafkaLog(make_settings())
    joining = asyncio.create_task(log.join("slow.group", ["slow.in"], Witness()))
    await soon(connects.wait(), "the start")
    assert await log.lag() == {}
    joining.cancel()
    await log._member.stop()
