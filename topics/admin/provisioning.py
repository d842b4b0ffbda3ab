"""Provisioning: create and check the catalogue's topics on a real Kafka."""

import asyncio
import contextlib
import ssl
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, TypeVar

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    AuthenticationFailedError,
    ClusterAuthorizationFailedError,
    InvalidReplicationFactorError,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    SaslAuthenticationFailed,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    for_code,
)

from topics.admin.replication import IN_SYNC, Replication
from topics.admin.topic_report import CatalogueReport, Shape, State, TopicReport, differences
from topics.registry import Catalogue, Topic
from topics.settings import Settings

T = TypeVar("T")

CONNECT_S_MAX = 5.0
# For a broker to say anything, while there are others to try.
LOGIN_S_MAX = 2.0
REQUEST_S_MAX = 30.0
LEADERS_S_MAX = 30.0
LEADERS_POLL_S = 0.1
PROBLEMS_SHOWN_MAX = 5
BROKERS_ASKED_MAX = 8


class AdminError(Exception):
    """Kafka can't be reached or has refused; the message says where, and what to do."""


async def apply(settings: Settings, pools: Iterable[str]) -> CatalogueReport:
    """Create missing topics, and report those that differ.

    Existing topics are neither changed nor deleted. Returns when each topic has its leaders.
    Several calls may run at once.

    Raises:
        AdminError: Kafka can't be reached, or refuses.
    """
    wanted = Catalogue(settings).topics(pools)
    async with _administration(settings) as admin:
        before = await _shapes(admin)
        missing = [topic for topic in wanted if topic.name not in before]
        replication = await _replication(admin, settings)
        created = await _create(admin, missing, replication) if missing else set()
        if missing:
            await _wait_for_leaders(admin, [topic.name for topic in missing])
        return await _compare(admin, wanted, replication, created)


async def describe(settings: Settings, pools: Iterable[str]) -> CatalogueReport:
    """Report the state of this fleet's topics.

    Raises:
        AdminError: Kafka can't be reached, or refuses.
    """
    async with _administration(settings) as admin:
        replication = await _replication(admin, settings)
        return await _compare(admin, Catalogue(settings).topics(pools), replication, created=set())


async def has_topics(settings: Settings, topics: Mapping[str, int]) -> bool:
    """Return True if each of these topics exists with its number of partitions.

    Raises:
        AdminError: Kafka can't be reached, or refuses.
    """
    async with _administration(settings) as admin:
        found = await _shapes(admin)
    return all(n in found and found[n].partitions == count for n, count in topics.items())


async def partition_counts(settings: Settings, topics: Collection[str]) -> dict[str, int]:
    """Return the number of partitions of each of these topics.

    The metadata of all topics is requested: a request for one topic by name may create it, with
    the broker's default settings.

    Raises:
        AdminError: Kafka can't be reached, or a topic is missing.
    """
    async with _administration(settings) as admin:
        found = await _shapes(admin)
    missing = [topic for topic in topics if topic not in found]
    if missing:
        raise AdminError(
            f"{settings.bootstrap_servers} has no topic {', '.join(missing)}; create it with"
            " `shunter topics apply`, or set SHUNTER_TOPIC_PREFIX to the prefix that is in use"
            f"{_perhaps_hidden(settings)}"
        )
    return {topic: found[topic].partitions for topic in topics}


async def retention_ms(settings: Settings, topic: str) -> int | None:
    """Return how long a topic keeps records by its settings on Kafka; None is for ever.

    Raises:
        AdminError: Kafka can't be reached, or refuses: this takes the right DescribeConfigs.
    """
    async with _administration(settings) as admin:
        found = await _configs(admin, {topic: {"retention.ms": ""}})
    told = int(found.get(topic, {}).get("retention.ms") or -1)
    return None if told < 0 else told


def _perhaps_hidden(settings: Settings) -> str:
    """Return a hint that Kafka hides topics that a user may not describe."""
    if settings.security_protocol == "PLAINTEXT":
        return ""
    user = settings.sasl_username or "this user"
    return f"; or {user} has no right to it: `shunter topics acls` lists the rights of each role"


@contextlib.asynccontextmanager
async def _administration(settings: Settings) -> AsyncIterator[AIOKafkaAdminClient]:
    """Connect, within ``3 * CONNECT_S_MAX``, and raise later failures as AdminError."""
    answering = await _answering(settings.bootstrap_servers)
    try:
        options = settings.kafka_options()
    except (ValueError, OSError) as error:
        raise AdminError(f"the connection settings can't be used: {error}") from error
    del options["bootstrap_servers"]
    with _refusal_told(settings, answering):
        server = await _log_in(options, answering)
    admin = AIOKafkaAdminClient(
        **options, bootstrap_servers=server, request_timeout_ms=int(REQUEST_S_MAX * 1000)
    )
    try:
        with _refusal_told(settings, answering):
            async with asyncio.timeout(CONNECT_S_MAX):
                await admin.start()
        yield admin
    except NodeNotReadyError as error:
        raise AdminError(
            f"a broker of the cluster behind {settings.bootstrap_servers} does not answer at the"
            " address it gives to clients; check its advertised.listeners"
        ) from error
    except (KafkaError, TimeoutError) as error:
        raise AdminError(f"{settings.bootstrap_servers}: {_told(error)}") from error
    finally:
        await admin.close()


@contextlib.contextmanager
def _refusal_told(settings: Settings, answering: Sequence[str]) -> Iterator[None]:
    try:
        yield
    except (AuthenticationFailedError, SaslAuthenticationFailed) as error:
        raise AdminError(
            f"{', '.join(answering)} refuses SHUNTER_SASL_USERNAME={settings.sasl_username}:"
            f" {' '.join(map(str, error.args)) or 'authentication failed'}; check"
            " SHUNTER_SASL_PASSWORD, SHUNTER_SASL_MECHANISM and that the user exists"
        ) from error
    except ssl.SSLCertVerificationError as error:
        raise AdminError(
            f"the certificate of {', '.join(answering)} is not trusted: {error.verify_message};"
            " set SHUNTER_SSL_CAFILE to the authority that signed it, and"
            " SHUNTER_BOOTSTRAP_SERVERS to a name that it is for"
        ) from error
    except (KafkaError, OSError, TimeoutError) as error:
        raise AdminError(
            f"{', '.join(answering)} answers, but not as a Kafka broker with"
            f" SHUNTER_SECURITY_PROTOCOL={settings.security_protocol} does; check that and the"
            " SHUNTER_SASL_* and SHUNTER_SSL_* settings"
        ) from error


async def _log_in(options: Mapping[str, Any], answering: Sequence[str]) -> str:
    """Return a broker that accepts the login: the client itself hides why none does.

    If a broker accepts connections but doesn't answer, as a proxy before a dead broker does, the
    next is tried. A refusal is final: another try with the same password may lock the user out.
    """
    for number, address in enumerate(answering, start=1):
        host, _, port = address.rpartition(":")
        is_last = number == len(answering)
        wait_s = CONNECT_S_MAX if is_last else LOGIN_S_MAX
        try:
            async with asyncio.timeout(wait_s):
                connection = await create_conn(
                    host.strip("[]"), int(port), **options, request_timeout_ms=int(wait_s * 1000)
                )
        except (KafkaConnectionError, ConnectionError, TimeoutError):
            if is_last:
                raise
            continue
        closed = connection.close()
        if closed is not None:
            await closed
        # Alone: the client would ask them in any order, and a silent one for a whole request.
        return address
    raise AssertionError("the last broker lets in or raises")


async def _answering(bootstrap_servers: str) -> list[str]:
    """Return the brokers that accept a connection.

    The Kafka client would try them in sequence, each for a full request timeout.
    """
    try:
        hosts = [(host, port) for host, port, _ in collect_hosts(bootstrap_servers)]
    except ValueError as error:
        raise AdminError(
            f"SHUNTER_BOOTSTRAP_SERVERS={bootstrap_servers}: not HOST:PORT, separated by commas"
        ) from error
    failures = await asyncio.gather(*(_connect(host, port) for host, port in hosts))
    answering = [
        f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        for (host, port), failure in zip(hosts, failures, strict=True)
        if not failure
    ]
    if not answering:
        raise AdminError(
            f"no Kafka broker answers at {bootstrap_servers} ({failures[0]}); start one with"
            " `shunter broker`, or set SHUNTER_BOOTSTRAP_SERVERS or --bootstrap-servers"
        )
    return answering


async def _connect(host: str, port: int) -> str | None:
    """Return why the broker doesn't answer, or None."""
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            _, writer = await asyncio.open_connection(host, port)
    except TimeoutError:
        return f"no answer within {CONNECT_S_MAX:g} s"
    except ConnectionRefusedError:
        return "connection refused"
    except OSError as error:
        return error.strerror or str(error)
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()
    return None


def _told(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {REQUEST_S_MAX:g} s; is the cluster healthy?"
    if isinstance(error, TopicAuthorizationFailedError | ClusterAuthorizationFailedError):
        return f"{error}; this user (SHUNTER_SASL_USERNAME) needs the right to do that"
    return str(error)


async def _shapes(admin: AIOKafkaAdminClient) -> dict[str, Shape]:
    """Return each topic's number of partitions and the fewest replicas of any of them."""
    return {
        topic["topic"]: Shape(
            len(topic["partitions"]),
            min((len(p["replicas"]) for p in topic["partitions"]), default=0),
        )
        for topic in await _of_any(admin.describe_topics)
    }


async def _of_any(ask: Callable[[], Awaitable[T]]) -> T:
    """Return the answer of any broker, since the metadata may still list one that has just died."""
    for _ in range(BROKERS_ASKED_MAX - 1):
        with contextlib.suppress(NodeNotReadyError):
            return await ask()
        await asyncio.sleep(LEADERS_POLL_S)
    return await ask()


async def _replication(admin: AIOKafkaAdminClient, settings: Settings) -> Replication:
    brokers = (await _of_any(admin.describe_cluster))["brokers"]
    return Replication(settings.replication_factor, len(brokers))


async def _create(
    admin: AIOKafkaAdminClient, missing: Sequence[Topic], replication: Replication
) -> set[str]:
    """Return the topics created here; another process may have created some."""
    factor = replication.requested
    response = await admin.create_topics(
        [
            # aiokafka takes -1, the broker's default, only beside an assignment, here an empty one.
            NewTopic(
                topic.name,
                topic.partitions,
                factor,
                {} if factor == -1 else None,
                topic.config() | replication.config(),
            )
            for topic in missing
        ]
    )
    created, problems = set[str](), list[str]()
    for name, code, message in response.topic_errors:
        kind = for_code(code)
        if code == 0:
            created.add(name)
        elif kind is not TopicAlreadyExistsError:
            problems.append(f"{name}: {_why_refused(kind, message, factor)}")
    if problems:
        hidden = len(problems) - PROBLEMS_SHOWN_MAX
        more = [f"and {hidden} more"] if hidden > 0 else []
        raise AdminError(
            "\n".join(["Kafka refuses to create topics:", *problems[:PROBLEMS_SHOWN_MAX], *more])
        )
    return created


def _why_refused(kind: type[KafkaError], message: str | None, factor: int) -> str:
    if kind in {TopicAuthorizationFailedError, ClusterAuthorizationFailedError}:
        return "this user (SHUNTER_SASL_USERNAME) needs the right to create topics"
    told = message or kind.__name__
    if kind is InvalidReplicationFactorError:
        return f"{told} (SHUNTER_REPLICATION_FACTOR={factor})"
    return told


async def _wait_for_leaders(admin: AIOKafkaAdminClient, names: Collection[str]) -> None:
    waiting = set(names)
    try:
        async with asyncio.timeout(LEADERS_S_MAX):
            # The brokers send no event.
            while waiting := waiting - await _led(admin):  # noqa: ASYNC110
                await asyncio.sleep(LEADERS_POLL_S)
    except TimeoutError as error:
        raise AdminError(
            f"{', '.join(sorted(waiting))}: no leader of each partition within"
            f" {LEADERS_S_MAX:g} s; is the cluster healthy, and may this user describe the topic?"
        ) from error


async def _led(admin: AIOKafkaAdminClient) -> set[str]:
    return {
        topic["topic"]
        for topic in await admin.describe_topics()
        if topic["partitions"]
        and all(p["error_code"] == 0 and p["leader"] >= 0 for p in topic["partitions"])
    }


async def _compare(
    admin: AIOKafkaAdminClient,
    wanted: Sequence[Topic],
    replication: Replication,
    created: Collection[str],
) -> CatalogueReport:
    shapes = await _shapes(admin)
    asked = {t.name: {**t.config(), IN_SYNC: ""} for t in wanted if t.name in shapes}
    configs = await _configs(admin, asked)
    reports = []
    for topic in wanted:
        if topic.name not in configs:
            reports.append(TopicReport(topic.name, "missing", topic.partitions, 0))
            continue
        shape, config = shapes[topic.name], configs[topic.name]
        differing = differences(topic, replication, shape, config)
        state: State = "created" if topic.name in created else "differs" if differing else "ok"
        reports.append(TopicReport(topic.name, state, *shape, differing))
    return CatalogueReport(tuple(reports), replication)


async def _configs(
    admin: AIOKafkaAdminClient, asked: Mapping[str, Mapping[str, str]]
) -> dict[str, dict[str, str | None]]:
    """Return the configuration of topics, limited to the settings that are asked for of each."""
    if not asked:
        return {}
    responses = await admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, t, dict(names)) for t, names in asked.items()]
    )
    found: dict[str, dict[str, str | None]] = {}
    resources = [resource for response in responses for resource in response.resources]
    for code, message, _, name, entries in resources:
        kind = for_code(code)
        if kind is UnknownTopicOrPartitionError:
            continue
        if code != 0:
            raise kind(f"the configuration of {name} can't be read: {message or kind.__name__}")
        found[name] = {entry[0]: entry[1] for entry in entries}
    return found
