"""Patch of the Kafka client: detect a lost broker.

A broker that freezes or loses its power closes no connection. aiokafka waits for each request to it
for 40 s, still asks it for metadata, and opens connections one after the other, so that one that
hangs delays all others. The other brokers know after the broker's session: a broker that is no
longer in their metadata is taken for lost. And aiokafka asks those brokers alone that it knows:
where all of them came back under other addresses, it would ask in vain for ever, so the bootstrap
addresses are asked again.
"""

import asyncio
import logging
import math
import random
from collections import defaultdict
from collections.abc import Awaitable, Collection, Iterator
from contextlib import AbstractAsyncContextManager, nullcontext
from itertools import count
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from aiokafka import client as aiokafka_client
from aiokafka import conn as aiokafka_conn
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.consumer import consumer as aiokafka_consumer
from aiokafka.errors import KafkaError
from aiokafka.producer import producer as aiokafka_producer
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.group import HeartbeatRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.structs import BrokerMetadata

from streams.kafka.cluster_identity import KnownCluster, OtherClusterError, identity_of
from topics import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

# How often the first client of a process asks for the brokers, and how often each other asks for
# metadata that only it needs.
WATCH_MS = 500
METADATA_MS = 5000
CONNECT_S_MAX = 3.0
# For requests that a broker answers at once; two heartbeats must fit into a session of 10 s.
ANSWER_S_MAX = 4.0
# By default the client retries after 5 ms, for as long as a broker is away.
RECONNECT_S = 0.1
# A client may ask for metadata so often at once, when it starts, and then once in so long.
METADATA_TURNS = 10
METADATA_TURN_S = 0.1
_QUICK = (MetadataRequest, FindCoordinatorRequest, HeartbeatRequest)

_create_conn = aiokafka_client.create_conn
_failed_at: dict[tuple[str, int], float] = {}
"""The time of a broker's last failure to answer, by host and port, by the event loop's clock."""
_lost: set[tuple[str, int]] = set()
"""The brokers that the others no longer name, by host and port."""
_connecting: defaultdict[tuple[str, int], set[asyncio.Timeout]] = defaultdict(set)
"""The limits of the connections that are being opened, by the broker's host and port."""
_numbers = count()
_clients: "WeakValueDictionary[int, _Client]" = WeakValueDictionary()
"""The clients of this process, by an ascending number."""


async def soon(answer: Awaitable[T]) -> T:
    """Wait for an answer that any broker gives at once.

    Before Python 3.12 ``asyncio.wait_for`` would return it even if the task was cancelled at that
    moment: a closed client would go on asking, and its close would wait for that for ever.
    """
    async with asyncio.timeout(ANSWER_S_MAX):
        return await answer


class _Connection(AIOKafkaConnection):  # type: ignore[misc]
    def send(self, request: Any, expect_response: bool = True) -> Any:
        sent = super().send(request, expect_response)
        return self._soon(sent) if isinstance(request, _QUICK) else sent

    async def _soon(self, answer: Awaitable[T]) -> T:
        where = (self.host, self.port)
        try:
            told = await soon(answer)
        except TimeoutError:
            _failed_at[where] = asyncio.get_running_loop().time()
            raise
        except asyncio.CancelledError:
            if self._on_close_cb is None:
                # Of a client that was cancelled as it started, which keeps its first connection in
                # a variable alone. All others have whom to tell of their end.
                self.close()
            raise
        _failed_at.pop(where, None)
        return told


class _Client(AIOKafkaClient):  # type: ignore[misc]
    _is_let_go = False
    _known: frozenset[Any] = frozenset()
    _addresses: frozenset[tuple[str, int]] = frozenset()
    _turns = 0.0
    _turn_at = -math.inf

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._identity = identity_of(self._loop, self._bootstrap_servers)
        self._metadata_max_age_ms = WATCH_MS
        self.cluster = KnownCluster(self._identity, metadata_max_age_ms=METADATA_MS)
        self._answered_at = self._loop.time()
        self._locks: defaultdict[Any, asyncio.Lock] = defaultdict(asyncio.Lock)
        _clients[next(_numbers)] = self

    async def bootstrap(self) -> None:
        """Ask the bootstrap servers for the brokers.

        Raises:
            OtherClusterError: they lead to another cluster than this process began with.
        """
        await super().bootstrap()
        if self._identity.is_away:
            raise OtherClusterError(self._identity.told())

    async def close(self) -> None:
        """Close the connections; the next client asks in place of this one."""
        self._is_let_go = True
        await super().close()
        for client in self._beside()[:1]:
            client.force_metadata_update()

    @property
    def _get_conn_lock(self) -> AbstractAsyncContextManager[None]:
        """No lock: the library's is one for all brokers, and is held while a connection opens.

        One that hangs would keep all from the brokers that are there.
        """
        return nullcontext()

    @property
    def silent_s(self) -> float:
        """For how long no broker has told this client which brokers there are, in seconds."""
        return float(self._loop.time() - self._answered_at)

    @property
    def _cluster(self) -> tuple[Any, Any] | None:
        """The cluster of this client, None while it is not in use, as after its loop's end."""
        is_used = self._sync_task is not None and not (self._is_let_go or self._loop.is_closed())
        return (self._loop, self._bootstrap_servers) if is_used else None

    def _beside(self) -> list["_Client"]:
        """Return the clients of the same cluster that are in use, in order of creation."""
        own = (self._loop, self._bootstrap_servers)
        return [client for client in _in_use() if client._cluster == own]  # noqa: SLF001

    @property
    def hosts(self) -> list[tuple[str, int, Any]]:
        """The bootstrap hosts, those that recently did not answer at the end."""
        found: list[tuple[str, int, Any]] = super().hosts
        return sorted(found, key=lambda host: _failed_at.get((host[0], host[1]), 0.0))

    def get_random_node(self) -> Any:
        """Return any broker that answers, else the one that failed the longest time ago."""
        return next(iter(self._nodes()), None)

    def _nodes(self) -> list[Any]:
        brokers = list(self.cluster.brokers())
        random.shuffle(brokers)
        brokers.sort(key=lambda broker: _failed_at.get((broker.host, broker.port), 0.0))
        return [broker.nodeId for broker in brokers]

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        await self._metadata_turn()
        nodes = self._nodes()
        if not nodes or ("bootstrap", ConnectionGroup.DEFAULT) in self._conns:
            known: bool = await super()._metadata_update(cluster_metadata, topics)
            if known:
                self._answered_at = self._loop.time()
            return known
        # An empty list asks for the brokers alone; the library asks for each topic of the cluster.
        request = MetadataRequest(None if topics is None else list(topics))
        for node in () if self._identity.is_away else nodes:
            connection = await self._get_conn(node)
            if connection is None:
                continue
            try:
                metadata = await connection.send(request)
            except (KafkaError, TimeoutError) as error:
                logger.warning("broker %s does not say which brokers there are: %r", node, error)
                continue
            if self._learn(cluster_metadata, metadata):
                return True
            _failed_at[connection.host, connection.port] = asyncio.get_running_loop().time()
        for host, port in self._first_addresses():
            metadata = await self._told_by_bootstrap(host, port, request)
            if metadata is not None and self._learn(cluster_metadata, metadata):
                return True
        cluster_metadata.failed_update(None)
        return False

    def _learn(self, cluster_metadata: Any, metadata: Any) -> bool:
        if not metadata.brokers:
            return False
        if not self._identity.is_of(metadata):
            # Nobody uses what leads there: `_get_conn` opens nothing until ours is back.
            for client in {self, *self._beside()}:
                client._drop_all()  # noqa: SLF001 - one of these
            return False
        cluster_metadata.update_metadata(metadata)
        self._look_round(cluster_metadata)
        return True

    def _first_addresses(self) -> Iterator[tuple[str, int]]:
        """Yield where to ask besides the brokers; while another cluster is there, theirs too."""
        known = {(broker.host, broker.port) for broker in self.cluster.brokers()}
        for host, port, _ in self.hosts:
            if self._identity.is_away or (host, port) not in known:
                yield host, port
                known.discard((host, port))
        if self._identity.is_away:
            yield from known

    async def _told_by_bootstrap(self, host: str, port: int, request: Any) -> Any:
        """Return the answer of a bootstrap address, or None.

        Where all brokers came back under other addresses, nobody is at those that the library goes
        by for as long as it runs.
        """
        name = f"bootstrap {host}:{port}"
        self.cluster._bootstrap_brokers[name] = BrokerMetadata(name, host, port, None)  # noqa: SLF001 - where the library looks for an address
        # Not by this class: an address that was a lost broker's may be that of a new one.
        connection = await super()._get_conn(name)
        try:
            return None if connection is None else await connection.send(request)
        except (KafkaError, TimeoutError) as error:
            logger.warning("%s does not say which brokers there are: %r", name, error)
            return None
        finally:
            if connection is not None:
                self._conns.pop((name, ConnectionGroup.DEFAULT), None)
                connection.close()

    async def _metadata_turn(self) -> None:
        """Wait if this client has asked often lately.

        While a partition has no leader, or is gone, the library's producer asks again at each
        answer: 1,500 times a second, one processor of ours and most of the broker's.
        """
        now = asyncio.get_running_loop().time()
        refilled = self._turns + (now - self._turn_at) / METADATA_TURN_S
        self._turns, self._turn_at = min(refilled, METADATA_TURNS) - 1, now
        if self._turns < 0:
            await asyncio.sleep(-self._turns * METADATA_TURN_S)

    def _look_round(self, cluster_metadata: Any) -> None:
        """Drop brokers that are no longer listed, and notify the other clients of a change."""
        self._answered_at = self._loop.time()
        brokers = cluster_metadata.brokers()
        there = frozenset(broker.nodeId for broker in brokers)
        addresses = frozenset((broker.host, broker.port) for broker in brokers)
        gone = self._addresses - addresses
        _give_up(gone)
        _lost.difference_update(addresses)
        self._addresses = addresses
        for (node, _), connection in list(self._conns.items()):
            if node not in there:
                now = asyncio.get_running_loop().time()
                _failed_at[connection.host, connection.port] = now
                connection.close(reason=CloseReason.CONNECTION_BROKEN)
        beside = self._beside()
        if gone:
            # Each would find out by itself, from a broker that may be slow in such a moment.
            for client in beside:
                client._drop(gone)  # noqa: SLF001 - one of these
        is_first = beside[:1] == [self]
        self._metadata_max_age_ms = WATCH_MS if is_first else METADATA_MS
        if is_first and there != self._known:
            for client in beside[1:]:
                client.force_metadata_update()
        self._known = there

    def _drop(self, gone: Collection[tuple[str, int]]) -> None:
        """Close the connections to brokers that another client has found to be gone."""
        for connection in list(self._conns.values()):
            if (connection.host, connection.port) in gone:
                connection.close(reason=CloseReason.CONNECTION_BROKEN)

    def _drop_all(self) -> None:
        """Close all connections: they lead to another cluster, or to brokers that are gone."""
        for connection in list(self._conns.values()):
            connection.close()

    def _is_lost(self, node_id: Any) -> bool:
        """Return whether a broker is gone, although this client may not know that yet.

        By metadata of 5 s ago it may lead a partition; whether it coordinates a group or
        transactions is asked only when it can't be reached.
        """
        broker = self.cluster.broker_metadata(node_id)
        is_lost = broker is not None and (broker.host, broker.port) in _lost
        if is_lost:
            self.force_metadata_update()
        return is_lost

    async def _get_conn(
        self,
        node_id: Any,
        *,
        group: ConnectionGroup = ConnectionGroup.DEFAULT,
        no_hint: bool = False,
    ) -> AIOKafkaConnection | None:
        connection = None
        async with self._locks[node_id, group]:
            if not (self._is_lost(node_id) or self._identity.is_away):
                connection = await super()._get_conn(node_id, group=group, no_hint=no_hint)
        if connection is not None and (self._is_let_go or self._identity.is_away):
            # Opened while this client closed its connections: nobody would close it.
            connection.close()
            connection = None
        if connection is None:
            await asyncio.sleep(RECONNECT_S)
        return connection


def _in_use() -> list[_Client]:
    """Return the clients of this process that are in use, in order of creation."""
    # Copied in one go: clients of other threads come and go meanwhile.
    found = (known() for known in _clients.valuerefs())
    return [each for each in found if each is not None and each._cluster is not None]  # noqa: SLF001


def silent_s() -> float:
    """Return for how long no broker has answered any client of this process, in seconds.

    One of them asks every 0.5 s. 0 if none is in use. Any thread may call this.
    """
    return min((client.silent_s for client in _in_use()), default=0.0)


def _give_up(addresses: frozenset[tuple[str, int]]) -> None:
    """Wait no more for brokers that are gone."""
    _lost.update(addresses)
    now = asyncio.get_running_loop().time()
    for address in addresses:
        for limit in _connecting[address]:
            # One that is over already can't be changed.
            if (limit.when() or now) > now:
                limit.reschedule(now)


async def _connect(host: str, port: int, **options: Any) -> AIOKafkaConnection:
    try:
        async with asyncio.timeout(CONNECT_S_MAX) as limit:
            _connecting[host, port].add(limit)
            try:
                connection = await _create_conn(host, port, **options)
            finally:
                _connecting[host, port].discard(limit)
    except (OSError, KafkaError):
        _failed_at[host, port] = asyncio.get_running_loop().time()
        raise
    _failed_at.pop((host, port), None)
    return connection


def client_options(settings: Settings) -> dict[str, Any]:
    """Return the options for every consumer and producer, and install the patch."""
    aiokafka_conn.AIOKafkaConnection = _Connection
    aiokafka_client.create_conn = _connect
    aiokafka_consumer.AIOKafkaClient = _Client
    aiokafka_producer.AIOKafkaClient = _Client
    return {**settings.kafka_options(), "metadata_max_age_ms": METADATA_MS}
