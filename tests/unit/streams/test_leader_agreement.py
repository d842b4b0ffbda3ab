"""Leaders: whose a takeover waits for, and whom of them it believes."""

from collections.abc import Mapping
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.errors import KafkaError, LeaderNotAvailableError

from streams.engine.log import LogError
from streams.kafka import leader_agreement as leaders
from streams.kafka import transaction_recovery
from streams.kafka.leader_agreement import ask_leaders
from streams.kafka.transaction_recovery import Producer, abort_rest
from topics import Catalogue, Settings

CATALOGUE = Catalogue(Settings(topic_prefix="inference"))


@pytest.mark.parametrize(
    ("topic", "is_ours"),
    [
        ("inference.requests", True),
        ("inference.evidence-roots", True),
        ("inference.pool.premium-eu.direct", True),
        ("inference.pool.a-pool-that-is-gone.batch", True),
        ("inference.eu.requests", False),
        ("inference.eu.pool.premium.direct", False),
        ("inference.pool.requests", False),
        ("inference.pool.x.requests", False),
        ("inference.pool.x.pool.y.direct", False),
        ("inference", False),
        ("inferences.requests", False),
        ("somebody.elses", False),
    ],
)
def test_an_installation_owns_what_it_makes(topic: str, is_ours: bool) -> None:
    assert CATALOGUE.owns(topic) == is_ours


class Cluster:
    """What the brokers say of topics of one partition each, and who leads them."""

    def __init__(self, leaders: Mapping[str, int]) -> None:
        self._leaders = leaders

    def topics(self) -> set[str]:
        return {*self._leaders}

    def partitions_for_topic(self, _topic: str) -> set[int]:
        return {0}

    def leader_for_partition(self, partition: TopicPartition) -> int:
        return self._leaders[partition.topic]


class Client:
    """Brokers that know no open transaction; the first calls find none of them."""

    def __init__(self, leaders: Mapping[str, int], failures: int = 0) -> None:
        self._cluster = Cluster(leaders)
        self._failures = failures
        self.asked: list[list[str]] = []

    async def fetch_all_metadata(self) -> Cluster:
        if self._failures:
            self._failures -= 1
            raise KafkaError("Unable to get cluster metadata over all known brokers")
        return self._cluster

    async def send(self, _node: int, request: Any) -> Any:
        self.asked.append(sorted(request._topics))
        return type("Response", (), {"topics": []})()


FENCED = Producer("inference.router-inference.requests-0", 7, 1)


async def test_a_topic_of_another_without_a_leader_stops_no_takeover() -> None:
    client: Any = Client({"inference.requests": 1, "inference.eu.requests": -1})
    await abort_rest(client, FENCED, CATALOGUE.owns)
    assert client.asked == [["inference.requests"]]


async def test_a_topic_of_ours_without_a_leader_is_waited_for_and_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(transaction_recovery, "PATIENCE_S", 0.3)
    client: Any = Client({"inference.requests": 1, "inference.results": -1})
    with pytest.raises(LogError, match=r"has no leader in 0.3 s: .*inference\.results\[0\]"):
        await abort_rest(client, FENCED, CATALOGUE.owns)


async def test_a_moment_without_any_broker_passes() -> None:
    client: Any = Client({"inference.requests": 1}, failures=2)
    await abort_rest(client, FENCED, CATALOGUE.owns)
    assert client.asked == [["inference.requests"]]


PARTITION = TopicPartition("inference.progress", 0)


class Brokers:
    """A client of three brokers; ``told`` is whom each names as the leader, None for silence."""

    def __init__(self, *told: tuple[int | None, ...]) -> None:
        self.told = list(told)
        self.known = 1
        self.asked: list[int] = []
        self.cluster = self

    def brokers(self) -> list[Any]:
        return [type("Broker", (), {"nodeId": node})() for node in (1, 2, 3)]

    def leader_for_partition(self, _partition: TopicPartition) -> int:
        return self.known

    async def force_metadata_update(self) -> None:
        self.known = 2

    async def ask(self) -> int:
        self.asked.append(self.known)
        return self.known


@pytest.fixture
def brokers(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(leaders, "RETRY_S", 0.0)

    async def leaders_by(client: Any, node: int, _wanted: object) -> Any:
        leader = client.told[0][node - 1]
        if node == 3 and len(client.told) > 1:
            del client.told[0]
        return None if leader is None else {PARTITION: leader}

    monkeypatch.setattr(leaders, "_leaders_by", leaders_by)
    return Brokers


async def test_a_deposed_leader_is_not_believed(brokers: Any) -> None:
    client = brokers((1, 2, 2), (2, 2, 2))
    assert await ask_leaders(client, [PARTITION], client.ask) == 2
    assert client.asked == [1, 2]


async def test_a_leader_whom_nobody_disputes_is_asked_once(brokers: Any) -> None:
    client = brokers((1, 1, None))
    assert await ask_leaders(client, [PARTITION], client.ask) == 1
    assert client.asked == [1]


async def test_one_broker_of_three_is_not_believed_alone(
    brokers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leaders, "AGREED_S_MAX", 0.2)
    client = brokers((1, None, None))
    with pytest.raises(LeaderNotAvailableError, match=r"no leader of inference\.progress that"):
        await ask_leaders(client, [PARTITION], client.ask)
