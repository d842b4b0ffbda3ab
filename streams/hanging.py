"""Ending transactions that a dying broker left without an end.

Checked on Kafka 4.3.1, one broker, ``kill -9`` of the broker while a transaction was open: the
restarted coordinator aborted it in its own log, but wrote no marker to the partitions. For their
readers that transaction is open for ever, and none passes it: all routers and workers stood still
(docs/decisions/0002). Kafka's own cure is an operator with ``kafka-transactions.sh``.

A marker closes whatever its producer id has open on a partition. So the successor, which has the
same transactional id and so the same producer id, adds the partition to a transaction without a
record and ends that the way the coordinator had ended the lost one.

aiokafka has neither of the two requests, and no way to add a partition without a record.
"""

import asyncio
import logging
from collections.abc import Collection
from typing import Any, Literal

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.errors import (
    GroupCoordinatorNotAvailableError as CoordinatorNotAvailable,
)
from aiokafka.errors import (
    GroupLoadInProgressError as CoordinatorLoadInProgress,
)
from aiokafka.errors import (
    KafkaConnectionError,
    NodeNotReadyError,
    NotCoordinatorForGroupError,
    RequestTimedOutError,
)
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

from streams.log import LogError

logger = logging.getLogger(__name__)

Outcome = Literal["commit", "abort"]

COORDINATOR_TRIES_MAX = 150
COORDINATOR_RETRY_S = 0.2
_PASSING_ERRORS = (
    CoordinatorNotAvailable,
    CoordinatorLoadInProgress,
    NodeNotReadyError,
    KafkaConnectionError,
    RequestTimedOutError,
)
_PASSING_CODES = frozenset(
    {
        CoordinatorLoadInProgress.errno,
        CoordinatorNotAvailable.errno,
        NotCoordinatorForGroupError.errno,
    }
)

_TEXT = CompactString("utf-8")
_OUTCOMES: dict[str, Outcome] = {
    "Ongoing": "abort",
    "PrepareAbort": "abort",
    "CompleteAbort": "abort",
    "PrepareEpochFence": "abort",
    "PrepareCommit": "commit",
    "CompleteCommit": "commit",
}


class _DescribeTransactionsResponse(Response):  # type: ignore[misc]
    API_KEY = 65
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "transaction_states",
            CompactArray(
                ("error_code", Int16),
                ("transactional_id", _TEXT),
                ("transaction_state", _TEXT),
                ("transaction_timeout_ms", Int32),
                ("transaction_start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                (
                    "topics",
                    CompactArray(
                        ("topic", _TEXT),
                        ("partitions", CompactArray(Int32)),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeTransactionsRequestV0(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 65
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeTransactionsResponse
    SCHEMA = Schema(("transactional_ids", CompactArray(_TEXT)), ("tags", TaggedFields))


class _DescribeTransactions(Request[_DescribeTransactionsRequestV0]):  # type: ignore[misc]
    API_KEY = 65

    def __init__(self, transactional_id: str) -> None:
        self._transactional_id = transactional_id

    def build(self, struct: Any) -> Any:
        return struct([self._transactional_id], {})


class _DescribeProducersResponse(Response):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "topics",
            CompactArray(
                ("name", _TEXT),
                (
                    "partitions",
                    CompactArray(
                        ("partition_index", Int32),
                        ("error_code", Int16),
                        ("error_message", _TEXT),
                        (
                            "active_producers",
                            CompactArray(
                                ("producer_id", Int64),
                                ("producer_epoch", Int32),
                                ("last_sequence", Int32),
                                ("last_timestamp", Int64),
                                ("coordinator_epoch", Int32),
                                ("current_txn_start_offset", Int64),
                                ("tags", TaggedFields),
                            ),
                        ),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeProducersRequestV0(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 61
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeProducersResponse
    SCHEMA = Schema(
        (
            "topics",
            CompactArray(
                ("name", _TEXT),
                ("partition_indexes", CompactArray(Int32)),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class _DescribeProducers(Request[_DescribeProducersRequestV0]):  # type: ignore[misc]
    API_KEY = 61

    def __init__(self, partitions: Collection[TopicPartition]) -> None:
        self._topics: dict[str, list[int]] = {}
        for topic, number in partitions:
            self._topics.setdefault(topic, []).append(number)

    def build(self, struct: Any) -> Any:
        return struct([(topic, numbers, {}) for topic, numbers in self._topics.items()], {})


async def last_outcome(client: AIOKafkaClient, transactional_id: str) -> Outcome | None:
    """Return how the newest transaction of an id ended, or will end once its owner is fenced.

    To be asked before fencing, which makes the coordinator forget. None where there was none.

    Raises:
        LogError: the coordinator can't be asked.
    """
    for _ in range(COORDINATOR_TRIES_MAX):
        try:
            node = await client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
            response = await client.send(node, _DescribeTransactions(transactional_id))
            code, _, state = response.transaction_states[0][:3]
            if code not in _PASSING_CODES:
                return _OUTCOMES.get(state)
        except _PASSING_ERRORS as error:
            # It is starting, or moving; on a new broker its topic is made by this very question.
            logger.debug("no coordinator of %s yet: %r", transactional_id, error)
        await asyncio.sleep(COORDINATOR_RETRY_S)
    raise LogError(f"no broker coordinates the transactions of {transactional_id}")


async def hanging_partitions(
    client: AIOKafkaClient, producer_id: int, topics_prefix: str
) -> list[TopicPartition]:
    """Return the partitions on which a producer that was just fenced has a transaction open.

    Fencing ends every transaction of the id, so that there should be none. A partition that we
    may not look into is passed over: we may not write to it either.
    """
    by_leader: dict[int, list[TopicPartition]] = {}
    cluster = await client.fetch_all_metadata()
    for topic in cluster.topics():
        if topic.startswith(topics_prefix):
            for number in cluster.partitions_for_topic(topic) or ():
                partition = TopicPartition(topic, number)
                by_leader.setdefault(cluster.leader_for_partition(partition), []).append(partition)
    hanging = []
    for node, partitions in by_leader.items():
        response = await client.send(node, _DescribeProducers(partitions))
        for topic, found, _ in response.topics:
            for number, _, _, producers, _ in found:
                if any(p[0] == producer_id and p[5] >= 0 for p in producers or ()):
                    hanging.append(TopicPartition(topic, number))
    return hanging


async def end_hanging(
    producer: AIOKafkaProducer, partitions: Collection[TopicPartition], outcome: Outcome | None
) -> None:
    """Write the markers that are missing on these partitions.

    Raises:
        LogError: nobody knows how the transaction ended; an operator must decide.
    """
    names = ", ".join(f"{topic}[{number}]" for topic, number in partitions)
    manager = producer._txn_manager  # noqa: SLF001 - see above
    if outcome is None:
        raise LogError(
            f"a broker died and left a transaction of {manager.transactional_id} without an end on"
            f" {names}, and its outcome is not known any more; no reader gets past it. Find it with"
            " kafka-transactions.sh find-hanging, and end it with kafka-transactions.sh abort"
        )
    logger.warning(
        "a broker died and left a transaction of %s without its %s on %s; writing it now",
        manager.transactional_id,
        outcome,
        names,
    )
    await producer.begin_transaction()
    for partition in partitions:
        manager.maybe_add_partition_to_txn(partition)
    if outcome == "commit":
        await producer.commit_transaction()
    else:
        await producer.abort_transaction()
