"""How the Kafka client learns that a broker is gone, mended.

A broker that freezes or loses its power closes no connection. aiokafka waits for each request to it
for 40 s, asks it for the addresses of the others as gladly as any, and opens connections one after
the other, so that one that hangs keeps all others waiting. The other brokers know after the
broker's session: whoever is no longer among those that they name is taken for gone.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable
from typing import Any, TypeVar

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

from topics import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

# So often is asked which brokers there are, and so often while one of them does not answer: it is
# that until the others have seen the end of its session, 18 s by Kafka's defaults.
METADATA_MS = 2000
METADATA_MS_OF_LOSS = 500
LOSS_S_MAX = 20.0
CONNECT_S_MAX = 3.0
# For what a broker answers at once; of heartbeats two must fit into a session of 10 s.
ANSWER_S_MAX = 4.0
# By its default the client tries again after 5 ms, for as long as a broker is away.
RECONNECT_S = 0.1
_QUICK = (MetadataRequest, FindCoordinatorRequest, HeartbeatRequest)

_create_conn = aiokafka_client.create_conn
_failed_at: dict[tuple[str, int], float] = {}
"""When a broker last did not answer, by host and port, in the time of the event loop."""


async def soon(answer: Awaitable[T]) -> T:
    """Wait for an answer that any broker gives at once.

    ``asyncio.wait_for`` would return it, before Python 3.12, where the task was cancelled at that
    moment: a client that is closed then would go on asking, and its close wait for that, for ever.
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
        _failed_at.pop(where, None)
        return told


class _Client(AIOKafkaClient):  # type: ignore[misc]
    @property
    def hosts(self) -> list[tuple[str, int, Any]]:
        """Those to begin with, the ones that did not answer lately at the end."""
        found: list[tuple[str, int, Any]] = super().hosts
        return sorted(found, key=lambda host: _failed_at.get((host[0], host[1]), 0.0))

    def get_random_node(self) -> Any:
        """Return any of the brokers that answer, else of those that did the longest time ago."""
        return next(iter(self._nodes()), None)

    def _nodes(self) -> list[Any]:
        brokers = list(self.cluster.brokers())
        random.shuffle(brokers)
        brokers.sort(key=lambda broker: _failed_at.get((broker.host, broker.port), 0.0))
        return [broker.nodeId for broker in brokers]

    async def _metadata_update(self, cluster_metadata: Any, topics: Any) -> bool:
        nodes = self._nodes()
        if not nodes or ("bootstrap", ConnectionGroup.DEFAULT) in self._conns:
            known: bool = await super()._metadata_update(cluster_metadata, topics)
            return known
        request = MetadataRequest(list(topics) if topics else None)
        for node in nodes:
            connection = await self._get_conn(node)
            if connection is None:
                continue
            try:
                metadata = await connection.send(request)
            except (KafkaError, TimeoutError) as error:
                logger.warning("broker %s does not say which brokers there are: %r", node, error)
                continue
            if not metadata.brokers:
                return False
            cluster_metadata.update_metadata(metadata)
            self._let_go_of_gone(cluster_metadata)
            return True
        cluster_metadata.failed_update(None)
        return False

    def _let_go_of_gone(self, cluster_metadata: Any) -> None:
        now = asyncio.get_running_loop().time()
        there = {broker.nodeId for broker in cluster_metadata.brokers()} | {"bootstrap"}
        for (node, _), connection in list(self._conns.items()):
            if node not in there:
                _failed_at[connection.host, connection.port] = now
                connection.close(reason=CloseReason.CONNECTION_BROKEN)
        is_losing = any(now - failed_at < LOSS_S_MAX for failed_at in _failed_at.values())
        self._metadata_max_age_ms = METADATA_MS_OF_LOSS if is_losing else METADATA_MS

    async def _get_conn(
        self,
        node_id: Any,
        *,
        group: ConnectionGroup = ConnectionGroup.DEFAULT,
        no_hint: bool = False,
    ) -> AIOKafkaConnection | None:
        connection = await super()._get_conn(node_id, group=group, no_hint=no_hint)
        if connection is None:
            await asyncio.sleep(RECONNECT_S)
        return connection


async def _connect(host: str, port: int, **options: Any) -> AIOKafkaConnection:
    try:
        async with asyncio.timeout(CONNECT_S_MAX):
            connection = await _create_conn(host, port, **options)
    except (OSError, KafkaError):
        _failed_at[host, port] = asyncio.get_running_loop().time()
        raise
    _failed_at.pop((host, port), None)
    return connection


def client_options(settings: Settings) -> dict[str, Any]:
    """Return what every consumer and producer here is made with; from then on they are mended."""
    aiokafka_conn.AIOKafkaConnection = _Connection
    aiokafka_client.create_conn = _connect
    aiokafka_consumer.AIOKafkaClient = _Client
    aiokafka_producer.AIOKafkaClient = _Client
    return {**settings.kafka_options(), "metadata_max_age_ms": METADATA_MS}
