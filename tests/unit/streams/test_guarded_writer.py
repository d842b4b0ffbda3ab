"""Transactions through each kind of door of a real Kafka, whose logins end again and again."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from guarded_doors import ALL, Door, Doors

from streams.engine.log import GroupOffset, Outgoing, Partition
from streams.kafka.log import KafkaLog
from topics import Settings
from topics.admin import provisioning
from topics.embedded_broker.broker import EmbeddedBroker, Listener
from topics.embedded_broker.settings import HOST, free_port

pytestmark = pytest.mark.kafka

# A login ends so soon that each round of a test meets a new one.
SESSION_MS = 1000
ROUNDS = 3
# A request that a broker has closed its connection over is sent again at once.
LATE_S = 1.0


@dataclass(frozen=True)
class GuardedKafka:
    """A running broker with every door, each at a port of its own."""

    broker: EmbeddedBroker
    doors: Doors
    ports: dict[Door, int]

    def settings(self, door: Door, prefix: str) -> Settings:
        """What a process has that comes in by a door."""
        told = self.doors.variables(door)
        names = {name.removeprefix("SHUNTER_").lower(): value for name, value in told.items()}
        return Settings(
            **names,  # type: ignore[arg-type]
            bootstrap_servers=f"{HOST}:{self.ports[door]}",
            topic_prefix=prefix,
        )


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GuardedKafka]:
    directory: Path = tmp_path_factory.mktemp("guarded")
    doors = Doors(ALL, directory, SESSION_MS)
    ports = {door: free_port() for door in ALL}
    listeners = [Listener(door.name, port, port) for door, port in ports.items()]
    with EmbeddedBroker(properties=doors.properties, extra_listeners=listeners) as broker:
        doors.add_user(broker.bootstrap_servers)
        yield GuardedKafka(broker, doors, ports)


@pytest.fixture(params=ALL, ids=lambda door: door.name)
def door(request: pytest.FixtureRequest) -> Door:
    found: Door = request.param
    return found


@pytest_asyncio.fixture
async def log(guarded: GuardedKafka, prefix: str, door: Door) -> AsyncIterator[KafkaLog]:
    settings = guarded.settings(door, prefix)
    await provisioning.apply(settings, [])
    log = KafkaLog(settings)
    yield log
    await log.leave()


async def test_transactions_outlive_the_login_of_their_writer(
    log: KafkaLog, prefix: str, door: Door
) -> None:
    topic, group = f"{prefix}.requests", f"{prefix}.readers"
    lanes = [Partition(topic, number) for number in range(2)]
    writer = await log.fence(f"{prefix}.writer")
    connections: list[Any] = []
    for number in range(ROUNDS):
        await writer.begin()
        sent = [
            await writer.send(Outgoing(topic, b"k", b"%d" % number, [], lane.number))
            for lane in lanes
        ]
        await asyncio.gather(*sent)
        async with asyncio.timeout(LATE_S):
            await writer.commit(GroupOffset(group, lanes[0], number))
        connections.append(writer._connections[-1])
        await asyncio.sleep(1.2 * SESSION_MS / 1000)
    assert await writer.has_ended()
    await writer.close()
    # Kafka closes a connection over the first request after its login has ended.
    assert len(set(connections)) == (ROUNDS if door.mechanism else 1)
    ends = {lane: end for lane, (_, end) in (await log.bounds(lanes)).items()}
    found: dict[Partition, list[bytes | None]] = {}
    async for records in log.read(dict.fromkeys(lanes, 0), ends):
        for record in records:
            found.setdefault(record.partition, []).append(record.value)
    assert found == {lane: [b"%d" % number for number in range(ROUNDS)] for lane in lanes}
