"""The requests of a transaction, each sent and awaited by whoever makes the transaction.

aiokafka's own producer gives them to a task that looks after each answer what to do next, with a
future and a wake-up for each, and waits for 20 ms where the markers of the last transaction are not
all written yet (docs/decisions/0058-requests-of-a-transaction.md). The client, its connections, its
metadata and the forms of requests and batches are still its own.
"""

import asyncio
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorNotAvailableError,
    DuplicateSequenceNumber,
    GroupAuthorizationFailedError,
    InvalidProducerEpoch,
    KafkaError,
    NotCoordinatorError,
    OperationNotAttempted,
    ProducerFenced,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
    for_code,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    TxnOffsetCommitRequest,
)

from streams.kafka.pauses import Pauses
from streams.kafka.protocol import by_topic, codes_by_partition
from streams.kafka.transaction_recovery import Producer, leader_of

# The markers of the last transaction are written within some ms, by all brokers that have one.
PAUSE_S, PAUSE_S_MAX = 0.002, 0.02
ALL_IN_SYNC = -1
# A producer's records on a partition are numbered so, and begin again at 0, as Kafka expects.
SEQUENCES = 2**31
# So long a leader waits for the other replicas: the client's limit of a request.
REPLICAS_MS = 40_000

# The markers of the last transaction, and a request of which another part was refused.
TRIED_AGAIN = (ConcurrentTransactions, OperationNotAttempted)
KEYED = (GroupAuthorizationFailedError, TransactionalIdAuthorizationFailed)

Codes = Iterator[tuple[str | None, int]]
"""What an answer tells of: a topic or None, and its error code, 0 for none."""

_Outcomes = list[tuple[TopicPartition, KafkaError | None]]


class TransactionRequests:
    """Sends what the transactions of one producer consist of, one after the other.

    A passing error is met by another try, which may go to another broker; whoever calls sets a
    limit. After any other error, and after a cancelled call, the producer has to be replaced.
    """

    def __init__(self, client: AIOKafkaClient, producer: Producer) -> None:
        """Take the client of a started producer, and what its coordinator knows it by."""
        self._client = client
        self._producer = producer
        self._coordinators: dict[CoordinationType, int] = {}
        self._added: set[TopicPartition] = set()
        self._is_open = False
        self._sequences: dict[TopicPartition, int] = {}

    def begin(self) -> None:
        """Begin a transaction, of which its coordinator knows from the first that is added on."""
        self._added.clear()
        self._is_open = False

    async def add(self, partitions: Collection[TopicPartition]) -> None:
        """Add partitions to the transaction, as far as they are not in it.

        Raises:
            TopicAuthorizationFailedError: some may not be written to.
            KafkaError: the coordinator refuses.
        """
        new = [p for p in partitions if p not in self._added]
        if not new:
            return
        request = AddPartitionsToTxnRequest(*self._producer, list(by_topic(new).items()))
        await self._ask_coordinator(CoordinationType.TRANSACTION, request, codes_by_partition)
        self._added.update(new)
        self._is_open = True

    async def produce(
        self, batches: Mapping[TopicPartition, BatchBuilder]
    ) -> Mapping[TopicPartition, KafkaError | None]:
        """Send one batch to each of some partitions that were added; return what is refused.

        What one leader refuses for now is sent again while another still writes: a new one may
        wait a second for its replicas.

        Returns:
            The error by which the leader refuses the batch, None if it has it, of each partition.

        Raises:
            UnknownTopicOrPartitionError: there is no such partition.
        """
        sent = {where: self._built(where, builder) for where, builder in batches.items()}
        outcomes: dict[TopicPartition, KafkaError | None] = {}
        left: Collection[TopicPartition] = sent
        asked: set[asyncio.Future[_Outcomes]] = set()
        pauses = Pauses(PAUSE_S, PAUSE_S_MAX)
        try:
            while left or asked:
                requests = [self._ask_leader(led, sent) for led in self._by_leader(left)]
                left = []
                for where, error in await _first_of(requests, asked):
                    # An earlier try wrote a duplicate; its answer was lost.
                    refusal = None if isinstance(error, DuplicateSequenceNumber) else error
                    if refusal is not None and refusal.retriable:
                        left.append(where)
                        continue
                    outcomes[where] = refusal
                    if refusal is None:
                        counted = batches[where].record_count()
                        at = self._sequences.get(where, 0) + counted
                        self._sequences[where] = at % SEQUENCES
                if left:
                    # Whoever leads may have changed; the client asks in turn.
                    await pauses.pause()
                    await self._client.force_metadata_update()
                    self._require(left)
        finally:
            for each in asked:
                each.cancel()
        return outcomes

    async def set_offset(self, group: str, partition: TopicPartition, offset: int) -> None:
        """Set a group's offset with the transaction.

        Raises:
            KafkaError: a coordinator refuses.
        """
        added = AddOffsetsToTxnRequest(*self._producer, group)
        await self._ask_coordinator(CoordinationType.TRANSACTION, added, _code)
        self._is_open = True
        topics = [(partition.topic, [(partition.partition, offset, "")])]
        name, producer_id, epoch = self._producer
        committed = TxnOffsetCommitRequest(name, group, producer_id, epoch, topics)
        await self._ask_coordinator(CoordinationType.GROUP, committed, codes_by_partition, group)

    async def commit(self) -> None:
        """Commit; it is decided when this ends, and readers see it some ms later.

        Raises:
            KafkaError: the coordinator refuses.
        """
        if self._is_open:
            request = EndTxnRequest(*self._producer, True)
            await self._ask_coordinator(CoordinationType.TRANSACTION, request, _code)

    def _require(self, partitions: Collection[TopicPartition]) -> None:
        for topic, number in partitions:
            known = self._client.cluster.partitions_for_topic(topic)
            if known is not None and number not in known:
                raise UnknownTopicOrPartitionError(f"{topic} has no partition {number}")

    def _built(self, where: TopicPartition, builder: BatchBuilder) -> bytes:
        _, producer_id, epoch = self._producer
        builder._set_producer_state(producer_id, epoch, self._sequences.get(where, 0))  # noqa: SLF001 - as its client does
        built: bytes = builder._build()  # noqa: SLF001 - likewise
        return built

    def _by_leader(self, partitions: Iterable[TopicPartition]) -> Collection[list[TopicPartition]]:
        """Return partitions, those with the same leader together."""
        found: dict[int | None, list[TopicPartition]] = {}
        for where in partitions:
            found.setdefault(self._client.cluster.leader_for_partition(where), []).append(where)
        return found.values()

    async def _ask_leader(
        self, led: list[TopicPartition], batches: Mapping[TopicPartition, bytes]
    ) -> _Outcomes:
        """Send the batches of partitions with the same leader; return what it says of each."""
        topics: dict[str, list[tuple[int, bytes]]] = {}
        for where in led:
            topics.setdefault(where.topic, []).append((where.partition, batches[where]))
        request = ProduceRequest(
            self._producer.transactional_id, ALL_IN_SYNC, REPLICAS_MS, list(topics.items())
        )
        try:
            answer = await self._send(leader_of(self._client.cluster, led[0]), request)
        except KafkaError as error:
            if not error.retriable:
                raise
            return [(where, error) for where in led]
        outcomes = []
        for topic, partitions in answer.topics:
            for number, code, *_ in partitions:
                refusal = _error(code, topic, self._producer.transactional_id)
                outcomes.append((TopicPartition(topic, number), refusal))
        return outcomes

    async def _ask_coordinator(
        self,
        kind: CoordinationType,
        request: Any,
        codes: Callable[[Any], Codes],
        group: str | None = None,
    ) -> None:
        """Ask until nothing of the answer is an error that passes.

        Raises:
            KafkaError: the first that doesn't.
        """
        key = group or self._producer.transactional_id
        pauses = Pauses(PAUSE_S, PAUSE_S_MAX)
        while True:
            try:
                node = await self._coordinator(kind, key)
                answer = await self._send(node, request)
            except KafkaError as error:
                if not error.retriable:
                    raise
                self._coordinators.pop(kind, None)
            else:
                errors = [e for topic, code in codes(answer) if (e := _error(code, topic, key))]
                if not errors:
                    return
                for each in errors:
                    if isinstance(each, NotCoordinatorError | CoordinatorNotAvailableError):
                        self._coordinators.pop(kind, None)
                    elif not each.retriable and not isinstance(each, TRIED_AGAIN):
                        raise each
            await pauses.pause()

    async def _coordinator(self, kind: CoordinationType, key: str) -> int:
        node = self._coordinators.get(kind)
        if node is None:
            node = await self._client.coordinator_lookup(kind, key)
            self._coordinators[kind] = node
        return node

    async def _send(self, node: int, request: Any) -> Any:
        """Send a request over the connection to a broker, which is opened if there is none."""
        known: AIOKafkaConnection | None = self._client._conns.get((node, ConnectionGroup.DEFAULT))  # noqa: SLF001 - `send` looks for it twice
        if known is None or not known.connected():
            return await self._client.send(node, request)
        answer: Awaitable[Any] = known.send(request)
        try:
            return await answer
        except TimeoutError as error:
            known.close()
            raise RequestTimedOutError(f"broker {node} does not answer") from error


async def _first_of(
    requests: Sequence[Coroutine[Any, Any, _Outcomes]], asked: set[asyncio.Future[_Outcomes]]
) -> _Outcomes:
    """Send requests beside what was asked before; return the first answers, keep who is left."""
    if len(requests) == 1 and not asked:
        # One leader, which is all there is on one broker, needs no task.
        return await requests[0]
    asked.update(asyncio.ensure_future(each) for each in requests)
    done, _ = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    asked -= done
    return [outcome for each in done for outcome in each.result()]


def _code(answer: Any) -> Codes:
    yield None, answer.error_code


def _error(code: int, topic: str | None, key: str) -> KafkaError | None:
    """Return the error of a code, None of 0, with the name of what it is about."""
    if code == 0:
        return None
    kind = for_code(code)
    if kind is InvalidProducerEpoch:
        return ProducerFenced()
    error: KafkaError
    if kind is TopicAuthorizationFailedError:
        error = kind({topic})
    else:
        error = kind(key) if kind in KEYED else kind()
    return error
