"""Five requests of Kafka's protocol that aiokafka lacks, each in one version of it.

Shapes from the message definitions of Apache Kafka. DescribeTransactions, DescribeProducers and
ListTransactions (KIP-664): the first two need no right beyond those of a transactional writer; the
third leaves out transactions that the client may not describe. Metadata 12, which has the ids of
topics (KIP-516), and OffsetForLeaderEpoch 4 (KIP-320): the right to describe the topic, which
every reader has.
"""

from collections.abc import Collection, Iterator
from typing import Any

from aiokafka import TopicPartition
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import (
    Boolean,
    CompactArray,
    CompactString,
    Int16,
    Int32,
    Int64,
    Schema,
    TaggedFields,
)

_TEXT = CompactString("utf-8")
_ANY_EPOCH = -1
_CONSUMER = -1
# A name and a type of this library.
_Field = tuple[str, Any]


class _UUID:
    """Sixteen bytes."""

    NONE = bytes(16)

    @staticmethod
    def encode(value: bytes) -> bytes:
        return value

    @staticmethod
    def decode(data: Any) -> bytes:
        found: bytes = data.read(16)
        return found

    @staticmethod
    def repr(value: bytes) -> str:
        return value.hex()


def _schema(*fields: _Field) -> Schema:
    """Return a structure of a flexible version, which ends with tagged fields."""
    return Schema(*fields, ("tags", TaggedFields))


def _array(*fields: _Field) -> CompactArray:
    return CompactArray(*fields, ("tags", TaggedFields))


def _topics(name: str, *of_partition: _Field) -> _Field:
    """Return the field with a structure for each partition of each topic."""
    return "topics", _array((name, _TEXT), ("partitions", _array(*of_partition)))


class _DescribeTransactionsResponse(Response):  # type: ignore[misc]
    API_KEY = 65
    API_VERSION = 0
    SCHEMA = _schema(
        ("throttle_time_ms", Int32),
        (
            "transaction_states",
            _array(
                ("error_code", Int16),
                ("transactional_id", _TEXT),
                ("transaction_state", _TEXT),
                ("transaction_timeout_ms", Int32),
                ("transaction_start_time_ms", Int64),
                ("producer_id", Int64),
                ("producer_epoch", Int16),
                ("topics", _array(("topic", _TEXT), ("partitions", CompactArray(Int32)))),
            ),
        ),
    )


class _DescribeTransactionsRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 65
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeTransactionsResponse
    SCHEMA = _schema(("transactional_ids", CompactArray(_TEXT)))


class DescribeTransactions(Request[_DescribeTransactionsRequest]):  # type: ignore[misc]
    """Asks a coordinator for the state of the newest transaction of each id."""

    API_KEY = 65

    def __init__(self, *transactional_ids: str) -> None:
        self._transactional_ids = transactional_ids

    def build(self, struct: Any) -> Any:
        """Return the request in the version that the broker understands."""
        return struct(list(self._transactional_ids), {})


class _DescribeProducersResponse(Response):  # type: ignore[misc]
    API_KEY = 61
    API_VERSION = 0
    SCHEMA = _schema(
        ("throttle_time_ms", Int32),
        _topics(
            "name",
            ("partition_index", Int32),
            ("error_code", Int16),
            ("error_message", _TEXT),
            (
                "active_producers",
                _array(
                    ("producer_id", Int64),
                    ("producer_epoch", Int32),
                    ("last_sequence", Int32),
                    ("last_timestamp", Int64),
                    ("coordinator_epoch", Int32),
                    ("current_txn_start_offset", Int64),
                ),
            ),
        ),
    )


class _DescribeProducersRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 61
    API_VERSION = 0
    RESPONSE_TYPE = _DescribeProducersResponse
    SCHEMA = _schema(
        ("topics", _array(("name", _TEXT), ("partition_indexes", CompactArray(Int32)))),
    )


def by_topic(partitions: Collection[TopicPartition]) -> dict[str, list[int]]:
    """Return the numbers of partitions by topic, as requests have them."""
    found: dict[str, list[int]] = {}
    for topic, number in partitions:
        found.setdefault(topic, []).append(number)
    return found


def codes_by_partition(answer: Any) -> Iterator[tuple[str, int]]:
    """Yield topic and error code of each partition of an answer, 0 for no error."""
    for topic, partitions in answer.errors:
        for _, code in partitions:
            yield topic, code


class DescribeProducers(Request[_DescribeProducersRequest]):  # type: ignore[misc]
    """Asks a leader which producers have open transactions on its partitions."""

    API_KEY = 61

    def __init__(self, partitions: Collection[TopicPartition]) -> None:
        self._topics = by_topic(partitions)

    def build(self, struct: Any) -> Any:
        """Return the request in the version that the broker understands."""
        return struct([(topic, numbers, {}) for topic, numbers in self._topics.items()], {})


class _ListTransactionsResponse(Response):  # type: ignore[misc]
    API_KEY = 66
    API_VERSION = 0
    SCHEMA = _schema(
        ("throttle_time_ms", Int32),
        ("error_code", Int16),
        ("unknown_state_filters", CompactArray(_TEXT)),
        (
            "transaction_states",
            _array(
                ("transactional_id", _TEXT),
                ("producer_id", Int64),
                ("transaction_state", _TEXT),
            ),
        ),
    )


class _ListTransactionsRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 66
    API_VERSION = 0
    RESPONSE_TYPE = _ListTransactionsResponse
    SCHEMA = _schema(
        ("state_filters", CompactArray(_TEXT)),
        ("producer_id_filters", CompactArray(Int64)),
    )


class ListTransactions(Request[_ListTransactionsRequest]):  # type: ignore[misc]
    """Asks a broker for the transactional ids that it coordinates, of these producers."""

    API_KEY = 66

    def __init__(self, producer_ids: Collection[int]) -> None:
        self._producer_ids = producer_ids

    def build(self, struct: Any) -> Any:
        """Return the request in the version that the broker understands."""
        return struct([], list(self._producer_ids), {})


class _MetadataResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 12
    SCHEMA = _schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            _array(("node_id", Int32), ("host", _TEXT), ("port", Int32), ("rack", _TEXT)),
        ),
        ("cluster_id", _TEXT),
        ("controller_id", Int32),
        (
            "topics",
            _array(
                ("error_code", Int16),
                ("name", _TEXT),
                ("topic_id", _UUID),
                ("is_internal", Boolean),
                (
                    "partitions",
                    _array(
                        ("error_code", Int16),
                        ("partition_index", Int32),
                        ("leader_id", Int32),
                        ("leader_epoch", Int32),
                        ("replica_nodes", CompactArray(Int32)),
                        ("isr_nodes", CompactArray(Int32)),
                        ("offline_replicas", CompactArray(Int32)),
                    ),
                ),
                ("topic_authorized_operations", Int32),
            ),
        ),
    )


class _MetadataRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 3
    API_VERSION = 12
    RESPONSE_TYPE = _MetadataResponse
    SCHEMA = _schema(
        ("topics", _array(("topic_id", _UUID), ("name", _TEXT))),
        ("allow_auto_topic_creation", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class DescribeTopics(Request[_MetadataRequest]):  # type: ignore[misc]
    """Asks any broker for topics, with their ids."""

    API_KEY = 3

    def __init__(self, topics: Collection[str]) -> None:
        self._topics = topics

    def build(self, struct: Any) -> Any:
        """Return the request in the version that the broker understands."""
        topics: list[Any] = [(_UUID.NONE, topic, {}) for topic in self._topics]
        return struct(topics, False, False, {})


class _EpochEndResponse(Response):  # type: ignore[misc]
    API_KEY = 23
    API_VERSION = 4
    SCHEMA = _schema(
        ("throttle_time_ms", Int32),
        _topics(
            "topic",
            ("error_code", Int16),
            ("partition", Int32),
            ("leader_epoch", Int32),
            ("end_offset", Int64),
        ),
    )


class _EpochEndRequest(RequestStruct):  # type: ignore[misc]
    FLEXIBLE_VERSION = True
    API_KEY = 23
    API_VERSION = 4
    RESPONSE_TYPE = _EpochEndResponse
    SCHEMA = _schema(
        ("replica_id", Int32),
        _topics(
            "topic",
            ("partition", Int32),
            ("current_leader_epoch", Int32),
            ("leader_epoch", Int32),
        ),
    )


class EpochEnd(Request[_EpochEndRequest]):  # type: ignore[misc]
    """Asks a leader where the records of one of its epochs, or of an earlier one, end."""

    API_KEY = 23

    def __init__(self, partition: TopicPartition, leader_epoch: int) -> None:
        self._partition = partition
        self._leader_epoch = leader_epoch

    def build(self, struct: Any) -> Any:
        """Return the request in the version that the broker understands."""
        topic, number = self._partition
        asked: list[Any] = [(number, _ANY_EPOCH, self._leader_epoch, {})]
        return struct(_CONSUMER, [(topic, asked, {})], {})
