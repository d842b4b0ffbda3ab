"""A transactional producer on a real Kafka, through aiokafka."""

import asyncio
import logging
from collections.abc import Awaitable, Sequence
from itertools import chain, count
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    InvalidTimestampError,
    InvalidTransactionTimeout,
    KafkaError,
    MessageSizeTooLargeError,
    RecordListTooLargeError,
    RecordTooLargeError,
)
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.producer.message_accumulator import BatchBuilder

from streams.engine.log import GroupOffset, LogError, Outgoing
from streams.kafka.broker_loss import client_options
from streams.kafka.transaction import TransactionRequests
from streams.kafka.transaction_recovery import Producer, has_committed
from topics import Settings
from topics.registry import OUTPUT_BYTES_MAX

# Larger than any topic allows, so that the broker decides, by the topic's own limit.
PRODUCER_BYTES_MAX = 2 * OUTPUT_BYTES_MAX
# Size of one produce batch. The client sends one per partition in a request, and what does not fit
# into it waits for another round trip: of two requests of 400 KB for one pool, the second. Below
# Kafka's own `max.message.bytes` of 1,048,588, which a batch counts against.
BATCH_BYTES_MAX = 1_000_000
# Limit of a transaction's records that are not handed over yet.
WAITING_BYTES_MAX = 8 * 1024 * 1024
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError, RecordTooLargeError)
REFUSALS = (InvalidTimestampError, *TOO_LARGE)
"""Errors that mean: this one record is unfit, others may pass."""
# With the client's default of 100 ms the p99 of routing is 165 ms; with 5 ms it is 14 ms
# (measured; docs/decisions/0002).
TRANSACTION_RETRY_MS = 5
CLOSE_S_MAX = 2.0

logger = logging.getLogger(__name__)

_PARTITIONER = DefaultPartitioner()


class TransactionTimeoutError(LogError):
    """The brokers' limit for transactions is below the settings' timeout."""


def partition_of(key: bytes, partitions: int) -> int:
    """Return the partition that Kafka's default partitioner (murmur2) gives a key."""
    number: int = DefaultPartitioner()(key, list(range(partitions)), [])
    return number


class _Batch:
    """Records for one partition, and the future that ends when the broker has or refuses them."""

    def __init__(self, builder: BatchBuilder) -> None:
        self.builder = builder
        self.records: list[Outgoing] = []
        self.outcome: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def takes(self, record: Outgoing) -> bool:
        """Add a record, and return True, unless the batch is full."""
        key, value, headers = record.key, record.value, record.headers
        if self.builder.append(timestamp=None, key=key, value=value, headers=headers) is None:
            return False
        self.records.append(record)
        return True

    def end(self, error: BaseException | None) -> None:
        """Tell all that wait; whoever was cancelled does so no more."""
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(None)
        else:
            self.outcome.set_exception(error)
            # A first failure may be all that a caller wants to know.
            self.outcome.exception()


class KafkaWriter:
    """A transactional producer that takes batches, not records.

    What was queued goes out together when the caller waits for it, or when it is too much.
    """

    def __init__(self, producer: AIOKafkaProducer, fenced: Producer) -> None:
        """Take a started producer, and what its coordinator knows it by."""
        self._producer = producer
        self._fenced = fenced
        self._requests = TransactionRequests(producer.client, fenced)
        self._written: set[TopicPartition] = set()
        self._began_at = 0.0
        self._connections: list[Any] = []
        # The batches to send, by partition; the last of them takes more.
        self._waiting: dict[TopicPartition, list[_Batch]] = {}
        self._waiting_bytes = 0
        self._partitions: dict[str, list[int]] = {}
        self._sending = asyncio.Lock()
        self._sends: set[asyncio.Task[None]] = set()

    @property
    def is_cut_off(self) -> bool:
        """True if a connection that the last transaction used is gone, even in its commit.

        It does not use all brokers, and idle connections are cut after a while.
        """
        return not all(connection.connected() for connection in self._connections)

    async def has_ended(self) -> bool:
        """Return whether the last transaction is committed on each partition, by all leaders."""
        has_ended = await has_committed(self._producer.client, self._fenced, self._written)
        if has_ended:
            self._connections.clear()
        return has_ended

    async def begin(self) -> None:
        """Open a transaction."""
        self._began_at = asyncio.get_running_loop().time()
        self._requests.begin()
        self._written.clear()
        # Partitions may have been added to a topic.
        self._partitions.clear()

    async def send(self, record: Outgoing) -> Awaitable[object]:
        """Queue a record; the records of a batch share the returned future."""
        key, value = record.key, record.value
        if value is not None and len(value) > OUTPUT_BYTES_MAX:
            raise MessageSizeTooLargeError(f"a value of {len(value):,} bytes")
        partitions = await self._partitions_of(record.topic)
        number = record.partition
        if number is None:
            number = _PARTITIONER(key, partitions, [])
        where = TopicPartition(record.topic, number)
        if self._waiting_bytes > WAITING_BYTES_MAX:
            await self._send_waiting()
        if not self._waiting:
            # It begins when the caller waits for the first time: for what it has queued.
            sending = asyncio.ensure_future(self._send_waiting())
            self._sends.add(sending)
            sending.add_done_callback(self._sends.discard)
        self._waiting_bytes += 0 if value is None else len(value)
        batches = self._waiting.setdefault(where, [])
        while not batches or not batches[-1].takes(record):
            batches.append(_Batch(self._producer.create_batch()))
        return batches[-1].outcome

    async def _send_waiting(self) -> None:
        """Send the queued records, in one request to each leader where that is possible.

        A request has one batch of a partition. So partitions take turns, and all of them are added
        to the transaction at once.
        """
        async with self._sending:
            waiting, self._waiting, self._waiting_bytes = self._waiting, {}, 0
            self._written.update(waiting)
            try:
                await self._requests.add(waiting)
                for turn in count():
                    batches = {where: of[turn] for where, of in waiting.items() if turn < len(of)}
                    if not batches:
                        return
                    builders = {where: batch.builder for where, batch in batches.items()}
                    for where, error in (await self._requests.produce(builders)).items():
                        batch = batches[where]
                        batch.end(await self._in_halves(where, batch.records, error))
            except Exception as error:  # noqa: BLE001 - whoever waits for a batch is told
                for batch in chain.from_iterable(waiting.values()):
                    batch.end(error)

    async def _in_halves(
        self, where: TopicPartition, records: Sequence[Outgoing], error: KafkaError | None
    ) -> KafkaError | None:
        """Send a batch again in two that was refused for its size alone; return what is refused.

        A topic may take less than a batch of ours has, though it takes each of the records.
        """
        if len(records) == 1 or not isinstance(error, TOO_LARGE):
            return error
        middle = len(records) // 2
        for half in (records[:middle], records[middle:]):
            batch = _Batch(self._producer.create_batch())
            for record in half:
                batch.takes(record)
            outcome = (await self._requests.produce({where: batch.builder}))[where]
            if (refusal := await self._in_halves(where, half, outcome)) is not None:
                return refusal
        return None

    async def commit(self, moved: GroupOffset | None = None) -> None:
        """Commit, with a group's offset if one is set with it."""
        if moved is not None:
            partition = TopicPartition(*moved.partition)
            await self._requests.set_offset(moved.group, partition, moved.next_offset)
        # If the broker dies in the commit, it is retried over others, and succeeds.
        before = self._used()
        await self._requests.commit()
        self._connections = before + self._used()

    async def close(self) -> None:
        """Close the connections, without waiting for an answer that never comes."""
        for sending in self._sends:
            sending.cancel()
        await let_go(self._producer)

    def _used(self) -> list[Any]:
        """Return the connections that have answered since the transaction began."""
        connections = self._producer.client._conns.values()  # noqa: SLF001
        # The event loop's clock is the same, the monotonic one.
        return [each for each in connections if each._last_action >= self._began_at]  # noqa: SLF001

    async def _partitions_of(self, topic: str) -> list[int]:
        found = self._partitions.get(topic)
        if found is None:
            found = sorted(await self._producer.partitions_for(topic))
            self._partitions[topic] = found
        return found


def transactional_producer(settings: Settings, transactional_id: str) -> AIOKafkaProducer:
    """Return a producer of this id that is not started yet."""
    return AIOKafkaProducer(
        **client_options(settings),
        transactional_id=transactional_id,
        transaction_timeout_ms=settings.transaction_timeout_ms,
        max_request_size=PRODUCER_BYTES_MAX,
        max_batch_size=BATCH_BYTES_MAX,
        retry_backoff_ms=TRANSACTION_RETRY_MS,
    )


async def start_writing(producer: AIOKafkaProducer, settings: Settings) -> None:
    """Start a transactional producer: the broker fences the earlier ones of its id.

    Raises:
        TransactionTimeoutError: its transactions may be open for longer than brokers allow.
    """
    try:
        await producer.start()
    except InvalidTransactionTimeout as error:
        raise TransactionTimeoutError(
            f"Kafka refuses SHUNTER_TRANSACTION_TIMEOUT_MS={settings.transaction_timeout_ms}: it is"
            " more than transaction.max.timeout.ms of the brokers; lower it to that"
        ) from error


async def let_go(producer: AIOKafkaProducer) -> None:
    """Close a producer without ending what it has in flight.

    Its own close waits until all is sent, and for each answer, perhaps of a broker that is gone.
    """
    for connection in list(producer.client._conns.values()):  # noqa: SLF001
        connection.close()
    producer._closed = True  # noqa: SLF001
    try:
        async with asyncio.timeout(CLOSE_S_MAX):
            await producer._sender.close()  # noqa: SLF001
    except (TimeoutError, KafkaError):
        logger.debug("a producer had something under way", exc_info=True)
    finally:
        await producer.client.close()
