"""End transactions that a dying broker left open.

Checked on Kafka 4.3.1, one broker, ``kill -9`` of the broker while a transaction was open or had
just been committed: the restarted coordinator ended it in its own log while the partitions had no
leader yet, and wrote no marker to them. For their readers that transaction is open for ever, and
blocks them: all routers and workers stood still (docs/decisions/0002). Kafka's own cure is an
operator with ``kafka-transactions.sh``.

A marker closes any transaction that its producer id has open on a partition. So the successor adds
the partition to a transaction without a record and ends that as the lost one had ended:

- a commit *before* it fences the predecessor, in the predecessor's name: fencing makes the
  coordinator forget how the last transaction ended, and if a successor died right after it, nobody
  would know;
- an abort *after* fencing. Any transaction open then must be aborted: commits are complete.

A live predecessor that has lost a marker can't be in another transaction meanwhile: what loses a
marker also cuts its connection, and a writer that was cut off is replaced before it continues. One
that has lost none may be in one, which looks the same while it is written to. So a commit is
completed only if a transaction was open both before and after the coordinator said that there is
none.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, ref

from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.cluster import ClusterMetadata
from aiokafka.errors import (
    ConcurrentTransactions,
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.protocol.transaction import AddPartitionsToTxnRequest, EndTxnRequest

from streams.engine.concurrency import Shared
from streams.engine.log import LogError
from streams.kafka.pauses import Pauses
from streams.kafka.protocol import (
    DescribeProducers,
    DescribeTransactions,
    by_topic,
    codes_by_partition,
)

logger = logging.getLogger(__name__)

T = TypeVar("T")

# A lone broker that was killed is back in about 5 s; of several another leads after its session.
PATIENCE_S = 30.0
PAUSE_S, PAUSE_S_MAX = 0.005, 0.2
# A code of the protocol for which aiokafka has no class.
TRANSACTIONAL_ID_NOT_FOUND = 105
NO_LEADER = -1
Owns = Callable[[str], bool]
"""Returns whether the producers may have written to a topic."""
OpenByProducer = dict[int, dict[TopicPartition, int]]

# A process has a writer per partition, and all of them look when a broker has died.
_looks: WeakKeyDictionary[AIOKafkaClient, Shared[OpenByProducer]] = WeakKeyDictionary()


class Producer(NamedTuple):
    """A transactional producer as its coordinator knows it."""

    transactional_id: str
    producer_id: int
    epoch: int


async def complete_commit(client: AIOKafkaClient, transactional_id: str, owns: Owns) -> None:
    """Write the missing markers of an id's newest transaction, if it was committed.

    Call this before fencing.

    Raises:
        LogError: the cluster can't be asked, or the predecessor lives and has gone on.
    """
    state, predecessor = await _last_transaction(client, transactional_id)
    if state != "CompleteCommit":
        return
    before = await _hanging_partitions(client, predecessor.producer_id, owns)
    if not before or await _last_transaction(client, transactional_id) != (state, predecessor):
        return
    after = await _hanging_partitions(client, predecessor.producer_id, owns)
    hanging = [p for p, started_at in before.items() if after.get(p) == started_at]
    if hanging:
        await _end(client, predecessor, hanging, "commit")


async def abort_rest(client: AIOKafkaClient, fenced: Producer, owns: Owns) -> None:
    """Write the missing markers of the newest transaction of a producer just fenced.

    Raises:
        LogError: the cluster can't be asked, or the producer was fenced in turn.
    """
    hanging = await _hanging_partitions(client, fenced.producer_id, owns)
    if hanging:
        await _end(client, fenced, hanging, "abort")


async def has_committed(
    client: AIOKafkaClient, producer: Producer, written: Collection[TopicPartition]
) -> bool:
    """Return whether a producer's newest transaction is committed, with all markers written.

    Call this between two of its transactions, with the client of that very producer: one that
    fetches may wait for half a second before each answer.

    Args:
        client: knows the topics that were written to.
        producer: as it was fenced.
        written: the partitions of the transaction.

    Returns:
        False if it can't be told in time.
    """
    try:
        last = await _last_transaction(client, producer.transactional_id)
        if last != ("CompleteCommit", producer):
            return False
        is_open = partial(_is_open, client, producer.producer_id, written)
        return not await _patiently("some partition of ours has no leader", is_open)
    except (LogError, KafkaError):
        return False


async def _is_open(
    client: AIOKafkaClient, producer_id: int, partitions: Collection[TopicPartition]
) -> bool:
    """Return whether a producer has a transaction open on any of these partitions."""
    try:
        by_leader: dict[int, list[TopicPartition]] = {}
        for partition in partitions:
            by_leader.setdefault(leader_of(client.cluster, partition), []).append(partition)
        return producer_id in await _open_on(client, by_leader)
    except KafkaError:
        await client.force_metadata_update()
        raise


async def _last_transaction(
    client: AIOKafkaClient, transactional_id: str
) -> tuple[str | None, Producer]:
    """Return the state of an id's newest transaction, None if there was none, and its owner."""

    async def ask() -> tuple[str | None, Producer]:
        # On a new broker this request creates the coordinator's topic.
        response = await _ask_coordinator(
            client, transactional_id, DescribeTransactions(transactional_id)
        )
        code, _, state, _, _, producer_id, epoch = response.transaction_states[0][:7]
        if code == TRANSACTIONAL_ID_NOT_FOUND:
            return None, Producer(transactional_id, -1, -1)
        _raise_for(code)
        if state.startswith("Prepare"):
            # The outcome is known and its markers are in flight, or about to be left out.
            raise ConcurrentTransactions(state)
        return state, Producer(transactional_id, producer_id, epoch)

    return await _patiently(f"no broker coordinates the transactions of {transactional_id}", ask)


async def _hanging_partitions(
    client: AIOKafkaClient, producer_id: int, owns: Owns
) -> dict[TopicPartition, int]:
    """Return where a producer without a transaction has one open, and its first offset.

    A partition that we may not describe is skipped: we may not write to it either.
    """
    look = _looks.get(client)
    if look is None:
        look = _looks[client] = Shared(partial(_look_for, ref(client), owns))
    found = await _patiently("some partition of ours has no leader", look)
    return found.get(producer_id, {})


async def _look_for(client: "ref[AIOKafkaClient]", owns: Owns) -> OpenByProducer:
    """Return the open transactions on our partitions, by producer."""
    asked = client()
    if asked is None:
        raise NodeNotReadyError("whoever asked is gone")
    return await _open_on(asked, await _by_leader(asked, owns))


async def _open_on(
    client: AIOKafkaClient, by_leader: Mapping[int, Sequence[TopicPartition]]
) -> OpenByProducer:
    """Return the open transactions on partitions, by producer, as their leaders tell."""
    found: OpenByProducer = {}
    for response in await asyncio.gather(
        *(client.send(node, DescribeProducers(led)) for node, led in by_leader.items())
    ):
        for topic, partitions, _ in response.topics:
            for number, code, _, producers, _ in partitions:
                if code == TopicAuthorizationFailedError.errno:
                    continue
                _raise_for(code)
                where = TopicPartition(topic, number)
                for producer_id, _, _, _, _, started_at in (p[:6] for p in producers):
                    if started_at >= 0:
                        found.setdefault(producer_id, {})[where] = started_at
    return found


async def _by_leader(client: AIOKafkaClient, owns: Owns) -> dict[int, list[TopicPartition]]:
    by_leader: dict[int, list[TopicPartition]] = {}
    try:
        cluster = await client.fetch_all_metadata()
    except KafkaError as error:
        raise NodeNotReadyError(str(error)) from error
    for topic in cluster.topics():
        if owns(topic):
            for number in cluster.partitions_for_topic(topic) or ():
                partition = TopicPartition(topic, number)
                by_leader.setdefault(leader_of(cluster, partition), []).append(partition)
    return by_leader


def leader_of(cluster: ClusterMetadata, partition: TopicPartition) -> int:
    """Return the broker that leads a partition.

    Raises:
        LeaderNotAvailableError: none that is known.
    """
    leader: int | None = cluster.leader_for_partition(partition)
    if leader is None or leader == NO_LEADER:
        raise LeaderNotAvailableError(f"{partition.topic}[{partition.partition}]")
    return leader


async def _end(
    client: AIOKafkaClient,
    producer: Producer,
    partitions: Collection[TopicPartition],
    outcome: Literal["commit", "abort"],
) -> None:
    """Write the missing markers on these partitions."""
    names = ", ".join(f"{topic}[{number}]" for topic, number in partitions)
    logger.warning(
        "a broker died and left a transaction of %s without its %s on %s; writing it now",
        producer.transactional_id,
        outcome,
        names,
    )
    add = AddPartitionsToTxnRequest(*producer, list(by_topic(partitions).items()))
    end = EndTxnRequest(*producer, outcome == "commit")
    try:
        for request in (add, end):
            await _send_until_done(client, producer.transactional_id, request)
    except KafkaError as error:
        raise LogError(
            f"the {outcome} of {producer.transactional_id} can't be written on {names}: {error!r}"
        ) from error
    # It is written when the coordinator is done with it.
    await _last_transaction(client, producer.transactional_id)


async def _send_until_done(client: AIOKafkaClient, transactional_id: str, request: Any) -> None:
    async def ask() -> None:
        response = await _ask_coordinator(client, transactional_id, request)
        if isinstance(request, EndTxnRequest):
            _raise_for(response.error_code)
        else:
            for _, code in codes_by_partition(response):
                _raise_for(code)

    await _patiently(f"no broker coordinates the transactions of {transactional_id}", ask)


async def _patiently(what: str, ask: Callable[[], Awaitable[T]]) -> T:
    """Retry while errors are passing: of a broker that starts, is gone, or moves."""
    last: KafkaError | None = None
    pauses = Pauses(PAUSE_S, PAUSE_S_MAX)
    try:
        async with asyncio.timeout(PATIENCE_S):
            while True:
                try:
                    return await ask()
                except KafkaError as error:
                    if not error.retriable and not isinstance(error, ConcurrentTransactions):
                        raise
                    logger.debug("%s yet: %r", what, error)
                    last = error
                await pauses.pause()
    except TimeoutError as error:
        raise LogError(f"{what} in {PATIENCE_S:g} s: {last!r}") from error


async def _ask_coordinator(client: AIOKafkaClient, transactional_id: str, request: Any) -> Any:
    node = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
    return await client.send(node, request)


def _raise_for(code: int) -> None:
    if code:
        raise for_code(code)(f"error code {code}")
