"""`shunter topics tidy`: what is deleted of those that are gone, and what is not."""

import json
import time

import pytest
from client_commands import installation, producing, shunter
from memory_log import MemoryCluster, MemoryLog
from stream_cases import START, make_key, make_settings

from shunter.logs.reading import read_all
from shunter.logs.tidy import silent_heartbeats, spent_keys
from streams.engine.log import Outgoing
from streams.kafka.log import KafkaLog
from topics import Catalogue, KeyEntry, KeyStatement, PublishedKey, Settings, encode, progress_key
from topics.admin.provisioning import apply
from topics.signing.introductions import introduce
from topics.signing.keys import SigningKey

DAY_MS = 86_400_000
NOW_MS = int(START * 1000)
CATALOGUE = Catalogue(make_settings())


def key_entry(name: str, endorser: str | None = None) -> bytes:
    statement = KeyStatement(name, "public", "w", 0.0)
    return encode(KeyEntry(published=PublishedKey(statement, "s", endorser, None)))


@pytest.fixture
def cluster() -> MemoryCluster:
    return MemoryCluster({topic.name: topic.partitions for topic in CATALOGUE.topics(["p"])})


def put(cluster: MemoryCluster, topic: str, key: str, value: bytes | None, days: float) -> None:
    cluster.publish(Outgoing(topic, key.encode(), value), int(NOW_MS + days * DAY_MS))


async def test_an_instance_is_silent_by_its_last_heartbeat(cluster: MemoryCluster) -> None:
    topic = CATALOGUE.pool_status
    for key, days in (("p/gone", -9), ("p/here", -9), ("p/here", -0.5), ("p/buried", -9)):
        put(cluster, topic, key, b"{}", days)
    put(cluster, topic, "p/buried", None, -8)
    found = await silent_heartbeats(MemoryLog(cluster), CATALOGUE, START - 86_400)
    assert found == [b"p/gone"]


async def test_a_key_is_spent_once_all_that_it_may_have_signed_is_gone(
    cluster: MemoryCluster,
) -> None:
    topic = CATALOGUE.evidence_keys
    put(cluster, topic, "key/old", key_entry("old"), -90)
    put(cluster, topic, "heads/old", b"{}", -60)
    put(cluster, topic, "revoked/old", b"{}", -90)
    put(cluster, topic, "key/working", key_entry("working", "parent"), -90)
    put(cluster, topic, "heads/working", b"{}", -0.1)
    put(cluster, topic, "key/parent", key_entry("parent", "grandparent"), -90)
    put(cluster, topic, "key/grandparent", key_entry("grandparent"), -99)
    put(cluster, topic, "key/odd", b"?", -90)
    put(cluster, topic, "key/near", key_entry("near"), -44.5)
    log = MemoryLog(cluster)
    assert await spent_keys(log, CATALOGUE) == []
    put(cluster, CATALOGUE.evidence, "r", b"{}", -20)
    put(cluster, CATALOGUE.evidence_roots, "chain", b"{}", -44)
    assert await spent_keys(log, CATALOGUE) == [b"key/old", b"heads/old", b"key/odd"]


async def test_an_introduction_goes_with_its_key_and_introducers_stay(
    cluster: MemoryCluster,
) -> None:
    topic, installation, hosts = CATALOGUE.evidence_keys, make_key(1), make_key(2)

    def put_introduction(by: SigningKey, name: str, *, introduces: bool) -> None:
        made = introduce(by, name, "*", 0.0, introduces=introduces)
        put(cluster, topic, f"introduced/{name}", encode(KeyEntry(introduction=made)), -90)

    put_introduction(installation, hosts.id, introduces=True)
    for name, days in (("old", -90), ("working", -0.1)):
        put_introduction(hosts, name, introduces=False)
        put(cluster, topic, f"key/{name}", key_entry(name), days)
    put(cluster, topic, "introduced/odd", b"?", -90)
    put(cluster, CATALOGUE.evidence, "r", b"{}", -20)
    spent = await spent_keys(MemoryLog(cluster), CATALOGUE)
    assert sorted(spent) == [b"introduced/odd", b"introduced/old", b"key/old"]


@pytest.mark.kafka
class TestCommand:
    @pytest.fixture
    async def settings(self, kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
        return await installation(kafka, prefix, monkeypatch)

    async def test_it_deletes_what_is_gone_and_tells_before(self, settings: Settings) -> None:
        names = Catalogue(settings)
        old = int((time.time() - 3 * 86_400) * 1000)
        lane = names.pool_lane("p", "direct")
        async with producing(settings) as producer:
            for key, at in ((b"p/gone", old), (b"p/here", None)):
                await producer.send_and_wait(names.pool_status, b"{}", key=key, timestamp_ms=at)
            key = progress_key(names.worker_group("p"), lane, 1)
            await producer.send_and_wait(names.progress, b"{}", key=key, partition=1)
        words = ("topics", "tidy", "--gone", "p", "--json")
        wanted = {names.pool_status: 1, names.evidence_keys: 0, names.progress: 8}
        outcome = await shunter(*words, "--dry-run")
        assert json.loads(outcome.stdout) == {"deleted": False, **wanted}
        before = {b"p/gone": b"{}", b"p/here": b"{}"}
        assert await self.newest(settings, names.pool_status) == before
        outcome = await shunter(*words)
        assert json.loads(outcome.stdout) == {"deleted": True, **wanted}
        assert await self.newest(settings, names.pool_status) == before | {b"p/gone": None}
        assert (await self.newest(settings, names.progress))[key] is None

    async def test_it_keeps_the_progress_of_a_pool_that_is_there(self, settings: Settings) -> None:
        await apply(settings, ["p"])
        outcome = await shunter("topics", "tidy", "--gone", "p")
        assert "delete the topics of the pool first" in str(outcome.exception)

    async def newest(self, settings: Settings, topic: str) -> dict[bytes | None, bytes | None]:
        partitions = 1 if topic.endswith("status") else settings.partitions
        return {r.key: r.value async for r in read_all(KafkaLog(settings), topic, partitions)}
