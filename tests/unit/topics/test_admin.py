"""Topic administration: what is missing is made, what differs is told, what exists is kept."""

import asyncio
import random
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import NodeNotReadyError

from topics import Catalogue, Settings
from topics.admin import provisioning as administration
from topics.admin.provisioning import AdminError, apply, describe, partition_counts
from topics.admin.topic_report import Difference
from topics.embedded_broker.broker import EmbeddedBroker, Listener
from topics.embedded_broker.settings import free_port

POOLS = ("premium-eu", "cpu-eu")


@pytest.fixture
def settings(kafka: str, prefix: str) -> Settings:
    return Settings(bootstrap_servers=kafka, topic_prefix=prefix, partitions=3)


async def create(settings: Settings, name: str, partitions: int, config: dict[str, str]) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    try:
        await admin.create_topics([NewTopic(name, partitions, 1, topic_configs=config)])
    finally:
        await admin.close()


async def topics_with(settings: Settings) -> set[str]:
    admin = AIOKafkaAdminClient(bootstrap_servers=settings.bootstrap_servers)
    await admin.start()
    try:
        return {t for t in await admin.list_topics() if t.startswith(f"{settings.topic_prefix}.")}
    finally:
        await admin.close()


@pytest.mark.kafka
class TestTopics:
    async def test_apply_creates_the_whole_catalogue_as_it_is_declared(
        self, settings: Settings
    ) -> None:
        wanted = [topic.name for topic in Catalogue(settings).topics(POOLS)]

        applied = await apply(settings, POOLS)

        assert applied.names("created") == wanted
        assert await topics_with(settings) == set(wanted)
        # Partitions and each configured setting are read back from the broker.
        described = await describe(settings, POOLS)
        assert described.names("ok") == wanted
        assert described.is_complete

    async def test_a_second_apply_finds_all_in_order(self, settings: Settings) -> None:
        await apply(settings, POOLS)
        again = await apply(settings, POOLS)
        assert again.is_complete
        assert again.names("created") == []

    async def test_describe_tells_what_is_missing_and_creates_nothing(
        self, settings: Settings
    ) -> None:
        await apply(settings, POOLS[:1])
        before = await topics_with(settings)

        report = await describe(settings, POOLS)

        catalogue = Catalogue(settings)
        assert report.names("missing") == [
            catalogue.pool_lane(POOLS[1], "direct"),
            catalogue.pool_lane(POOLS[1], "batch"),
        ]
        assert not report.is_complete
        assert await topics_with(settings) == before

    async def test_a_topic_that_differs_is_reported_and_left_as_it_is(
        self, settings: Settings
    ) -> None:
        results = Catalogue(settings).results
        await create(settings, results, 2, {"retention.ms": "1000", "cleanup.policy": "compact"})

        report = await apply(settings, POOLS)

        (differing,) = [topic for topic in report.topics if topic.state == "differs"]
        assert differing.name == results
        assert set(differing.differences) >= {
            Difference("partitions", "3", "2"),
            Difference("retention.ms", str(7 * 24 * 3600 * 1000), "1000"),
            Difference("cleanup.policy", "delete", "compact"),
        }
        assert "max.message.bytes" in {d.setting for d in differing.differences}
        assert await describe(settings, POOLS) == await describe(settings, POOLS)
        assert (await partition_counts(settings, [results])) == {results: 2}
        assert (await describe(settings, POOLS)).names("differs") == [results]

    async def test_applies_at_the_same_time_all_succeed(self, settings: Settings) -> None:
        reports = await asyncio.gather(*(apply(settings, POOLS) for _ in range(3)))
        assert all(report.is_complete for report in reports)
        made = [name for report in reports for name in report.names("created")]
        assert sorted(made) == sorted(await topics_with(settings))

    async def test_partition_counts_neither_creates_nor_forgives_a_missing_topic(
        self, settings: Settings
    ) -> None:
        with pytest.raises(AdminError, match=r"no topic .*\.requests; create it with `shunter"):
            await partition_counts(settings, [Catalogue(settings).requests])
        assert await topics_with(settings) == set()

    async def test_an_impossible_replication_factor_names_its_setting(
        self, settings: Settings
    ) -> None:
        impossible = settings.model_copy(update={"replication_factor": 9})
        with pytest.raises(AdminError, match="SHUNTER_REPLICATION_FACTOR=9"):
            await apply(impossible, POOLS)

    async def test_a_plain_broker_asked_for_tls_says_which_settings_to_check(
        self, settings: Settings
    ) -> None:
        wrong = settings.model_copy(update={"security_protocol": "SSL"})
        with pytest.raises(AdminError, match="SHUNTER_SECURITY_PROTOCOL=SSL"):
            await apply(wrong, POOLS)

    async def test_a_dead_broker_among_those_named_is_no_obstacle(self, settings: Settings) -> None:
        servers = f"127.0.0.1:{free_port()},{settings.bootstrap_servers}"
        report = await apply(settings.model_copy(update={"bootstrap_servers": servers}), POOLS)
        assert report.is_complete

    @pytest.mark.parametrize("shuffle", [lambda _hosts: None, list.reverse])
    async def test_a_silent_server_among_those_named_is_no_obstacle(
        self,
        settings: Settings,
        monkeypatch: pytest.MonkeyPatch,
        shuffle: Callable[[list[Any]], None],
    ) -> None:
        """As a proxy before a broker that is gone, in whichever order the client asks."""
        monkeypatch.setattr(random, "shuffle", shuffle)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            servers = f"127.0.0.1:{silent.getsockname()[1]},{settings.bootstrap_servers}"
            report = await apply(settings.model_copy(update={"bootstrap_servers": servers}), POOLS)
        assert report.is_complete


class TestDeadBroker:
    async def test_another_is_asked(self) -> None:
        answers: list[Exception | str] = [NodeNotReadyError(), NodeNotReadyError(), "topics"]

        async def ask() -> str:
            answer = answers.pop(0)
            if isinstance(answer, Exception):
                raise answer
            return answer

        assert await administration._of_any(ask) == "topics"
        assert not answers

    async def test_where_none_answers_it_is_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(administration, "LEADERS_POLL_S", 0.0)
        asked = []

        async def ask() -> None:
            asked.append(1)
            raise NodeNotReadyError

        with pytest.raises(NodeNotReadyError):
            await administration._of_any(ask)
        assert len(asked) == administration.BROKERS_ASKED_MAX


class TestUnreachable:
    async def test_a_closed_port_is_told_at_once(self) -> None:
        server = f"127.0.0.1:{free_port()}"
        began = time.monotonic()
        with pytest.raises(AdminError, match=f"no Kafka broker answers at {server}") as caught:
            await describe(Settings(bootstrap_servers=server), POOLS)
        assert time.monotonic() - began < 2
        assert "shunter broker" in str(caught.value)

    async def test_a_server_that_says_nothing_is_given_up(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(administration, "CONNECT_S_MAX", 0.2)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            server = f"127.0.0.1:{silent.getsockname()[1]}"
            with pytest.raises(AdminError, match="answers, but not as a Kafka broker"):
                await apply(Settings(bootstrap_servers=server), POOLS)

    async def test_an_address_that_is_none_is_told_as_such(self) -> None:
        with pytest.raises(AdminError, match="SHUNTER_BOOTSTRAP_SERVERS=here:there: not HOST:PORT"):
            await describe(Settings(bootstrap_servers="here:there"), POOLS)

    async def test_sasl_without_a_password_names_the_variables(self, unused_server: str) -> None:
        settings = Settings(bootstrap_servers=unused_server, security_protocol="SASL_PLAINTEXT")
        with pytest.raises(AdminError, match="SHUNTER_SASL_PASSWORD"):
            await describe(settings, POOLS)

    @pytest.fixture
    def unused_server(self) -> Iterator[str]:
        with socket.create_server(("127.0.0.1", 0)) as server:
            yield f"127.0.0.1:{server.getsockname()[1]}"


@pytest.fixture(scope="module")
def guarded() -> Iterator[tuple[str, str]]:
    """A broker with a listener for users, who have no rights, and an open one for itself."""
    port = free_port()
    with EmbeddedBroker(
        extra_listeners=[Listener("USERS", port, port)],
        properties={
            "listener.security.protocol.map": (
                "CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_PLAINTEXT"
            ),
            "listener.name.users.sasl.enabled.mechanisms": "PLAIN",
            "listener.name.users.plain.sasl.jaas.config": (
                'org.apache.kafka.common.security.plain.PlainLoginModule required user_bob="bobs";'
            ),
            "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
            "super.users": "User:ANONYMOUS",
        },
    ) as broker:
        yield broker.bootstrap_servers, f"127.0.0.1:{port}"


@pytest.mark.kafka
class TestRights:
    def as_bob(self, server: str, password: str) -> Settings:
        return Settings(
            bootstrap_servers=server,
            security_protocol="SASL_PLAINTEXT",
            sasl_mechanism="PLAIN",
            sasl_username="bob",
            sasl_password=password,
        )

    async def test_a_user_who_may_not_create_topics_is_told_so(
        self, guarded: tuple[str, str]
    ) -> None:
        with pytest.raises(AdminError, match="needs the right to create topics") as caught:
            await apply(self.as_bob(guarded[1], "bobs"), POOLS)
        assert "bobs" not in str(caught.value)

    async def test_a_wrong_password_is_told_without_showing_it(
        self, guarded: tuple[str, str]
    ) -> None:
        with pytest.raises(AdminError, match="SHUNTER_SASL_") as caught:
            await apply(self.as_bob(guarded[1], "wrong-one"), POOLS)
        assert "wrong-one" not in str(caught.value)
