"""Replicas of topics: three where there are three brokers, two of which must have each record."""

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from topics import Catalogue, Settings
from topics.admin.provisioning import apply, describe
from topics.admin.replication import IN_SYNC, REPLICAS, Replication
from topics.admin.topic_report import Difference
from topics.embedded_broker.cluster import EmbeddedCluster

POOLS = ("premium-eu",)


@pytest.mark.parametrize(
    ("factor", "brokers", "requested", "config"),
    [
        (-1, 1, -1, {}),
        (-1, 2, 2, {}),
        (-1, 3, 3, {IN_SYNC: "2"}),
        (-1, 7, 3, {IN_SYNC: "2"}),
        (1, 3, 1, {}),
        (5, 7, 5, {IN_SYNC: "2"}),
    ],
)
def test_what_kafka_is_asked_for(
    factor: int, brokers: int, requested: int, config: dict[str, str]
) -> None:
    replication = Replication(factor, brokers)
    assert replication.requested == requested
    assert replication.config() == config


@pytest.mark.parametrize(
    ("factor", "brokers", "replicas", "in_sync", "wrong"),
    [
        (-1, 1, 1, 1, {}),
        # A lone broker's topics may be left of a time when there were more.
        (-1, 1, 3, 2, {}),
        (-1, 3, 3, 2, {}),
        (-1, 3, 5, 3, {}),
        (-1, 3, 3, 1, {IN_SYNC: "2"}),
        (-1, 3, 1, 1, {REPLICAS: "3", IN_SYNC: "2"}),
        (-1, 3, 2, 2, {REPLICAS: "3"}),
        # No broker can be missed.
        (-1, 3, 3, 3, {IN_SYNC: "2"}),
        (-1, 2, 2, 2, {IN_SYNC: "1"}),
        (1, 3, 1, 1, {}),
    ],
)
def test_what_is_wrong_with_a_topic(
    factor: int, brokers: int, replicas: int, in_sync: int, wrong: dict[str, str]
) -> None:
    found = Replication(factor, brokers).differences(replicas, {IN_SYNC: str(in_sync)})
    assert found == wrong


def test_too_few_brokers_are_told() -> None:
    assert "1 broker, too few" in str(Replication(-1, 1).shortfall())
    assert "2 brokers, too few" in str(Replication(-1, 2).shortfall())
    assert Replication(-1, 3).shortfall() is None


@pytest.mark.slow
@pytest.mark.kafka
async def test_on_three_brokers_topics_have_three_replicas_and_those_with_fewer_are_told() -> None:
    with EmbeddedCluster(3, properties={"min.insync.replicas": "1"}) as cluster:
        settings = Settings(bootstrap_servers=cluster.bootstrap_servers, topic_prefix="three")
        results = Catalogue(settings).results
        admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap_servers)
        await admin.start()
        try:
            await admin.create_topics([NewTopic(results, 4, 1)])
            applied = await apply(settings, POOLS)
            described = await admin.describe_topics()
        finally:
            await admin.close()
        made = {t["topic"]: t for t in described if t["topic"] in applied.names("created")}
        assert all(len(p["replicas"]) == 3 for t in made.values() for p in t["partitions"])
        report = await describe(settings, POOLS)
        assert report.replication.brokers == 3
        assert {t.replicas for t in report.topics if t.name != results} == {3}
        (differing,) = [topic for topic in report.topics if topic.state == "differs"]
        assert differing.name == results
        assert {Difference(REPLICAS, "3", "1"), Difference(IN_SYNC, "2", "1")} <= {
            *differing.differences
        }
