"""A takeover on a real Kafka that takes longer than the session of a member."""

import asyncio
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from copy_stage import TOPICS, Copier
from stream_cases import make_transactor
from two_logs import KafkaGround

from streams.engine.log import Log, Outgoing, Partition, Record
from streams.engine.stage import Effect
from topics import Progress

pytestmark = pytest.mark.kafka

SESSION_S = 6.0


class SlowToRestore(Copier):
    """Restores each of two partitions for most of a session, as one with much to read back does."""

    def __init__(self, prefix: str) -> None:
        super().__init__()
        self.group, self.topics, self.prefix = f"{prefix}.copiers", (f"{prefix}.in",), prefix
        self.restores = 0

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        self.restores += 1
        await asyncio.sleep(0.75 * SESSION_S)

    def copy(self, record: Record) -> Effect:
        out = Outgoing(f"{self.prefix}.out", record.key, record.value, partition=0)
        return Effect(record, [out])


async def test_a_takeover_that_outlasts_the_session_keeps_its_partitions(
    kafka: str, prefix: str
) -> None:
    """Else it is given to another, who takes as long, and so on for ever."""
    ground = KafkaGround(kafka, prefix)
    ground.settings = ground.settings.model_copy(
        update={"session_timeout_ms": int(SESSION_S * 1000)}
    )
    await ground.create({f"{prefix}.{name}": count for name, count in TOPICS.items()})
    stage = SlowToRestore(prefix)
    log = ground.log()
    transactor = make_transactor(log, stage, f"{prefix}.progress")
    try:
        await ground.publish(Outgoing(f"{prefix}.in", b"k", b"r0", partition=0))
        await ground.own(transactor, 2)
        for _ in range(20):
            await transactor.step()
        await ground.look()
        assert [record.value for record in ground.records(f"{prefix}.out")] == [b"r0"]
        assert stage.restores == 2
        await transactor.stop()
    finally:
        await ground.close()


async def test_a_member_joins_with_one_request(kafka: str, prefix: str) -> None:
    """A second one, with another assignor, would have all members join again."""
    ground = KafkaGround(kafka, prefix)
    await ground.create({f"{prefix}.{name}": count for name, count in TOPICS.items()})
    stage = Copier()
    stage.group, stage.topics = f"{prefix}.copiers", (f"{prefix}.in",)
    log = ground.log()
    transactor = make_transactor(log, stage, f"{prefix}.progress")
    try:
        await ground.own(transactor, 2)
        assert log._member._coordinator.generation == 1
        (group,) = (await described(kafka, stage.group)).groups
        assert group[4] == f"roundrobin-{ground.settings.partitions}"
        await transactor.stop()
    finally:
        await ground.close()


async def test_a_read_that_is_given_up_leaves_no_connection(
    kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given up while its reader starts, as those are that have a limit on their time."""
    ground = KafkaGround(kafka, prefix)
    log = ground.log()
    started: list[AIOKafkaConsumer] = []
    start = AIOKafkaConsumer.start

    async def start_and_stand_still(reader: AIOKafkaConsumer) -> None:
        started.append(reader)
        await start(reader)
        await asyncio.Event().wait()

    await ground.create({f"{prefix}.in": 1})
    only = Partition(f"{prefix}.in", 0)

    async def read() -> None:
        async for _ in log.read({only: 0}, {only: 1}):
            pass

    with monkeypatch.context() as patched:
        patched.setattr(AIOKafkaConsumer, "start", start_and_stand_still)
        for attempt in (log.bounds([only]), log.fetch(only, [0]), read()):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(1.0):
                    await attempt
    await ground.close()
    assert len(started) == 3
    assert not any(conn.connected() for r in started for conn in r._client._conns.values())


async def described(kafka: str, group: str) -> Any:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka)
    await client.start()
    try:
        (answer,) = await client.describe_consumer_groups([group])
    finally:
        await client.close()
    return answer
