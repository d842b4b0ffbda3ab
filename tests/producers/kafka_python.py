"""A producer, and a reader, on kafka-python."""

import sys
from typing import Any

from dialogue import MORE_S, Outcome, converse, told
from kafka import KafkaConsumer, KafkaProducer, TopicPartition

SERVERS = sys.argv[1]
REQUEST_BYTES_MAX = 8_000_000
PATIENCE_S = 60
left_open = []


def publish(batch: dict[str, Any]) -> list[Outcome]:
    producer = KafkaProducer(
        bootstrap_servers=SERVERS,
        compression_type=None if batch["codec"] == "none" else batch["codec"],
        enable_idempotence=batch["mode"] != "plain",
        acks="all",
        max_request_size=REQUEST_BYTES_MAX,
        batch_size=REQUEST_BYTES_MAX,
        linger_ms=500,
        transactional_id=batch["transactional_id"],
        transaction_timeout_ms=batch["transaction_timeout_ms"],
    )
    if batch["transactional_id"] is not None:
        producer.init_transactions()
        producer.begin_transaction()
    sent = [_send(producer, batch["topic"], record) for record in batch["records"]]
    producer.flush(PATIENCE_S)
    outcomes = [each if isinstance(each, str) else _outcome(each) for each in sent]
    if batch["mode"] == "committed":
        producer.commit_transaction()
    elif batch["mode"] == "aborted":
        producer.abort_transaction()
    if batch["mode"] == "left open":
        left_open.append(producer)
    else:
        producer.close()
    return outcomes


def _send(producer: KafkaProducer, topic: str, record: dict[str, Any]) -> Any:
    try:
        return producer.send(
            topic,
            record["value"],
            record["key"],
            record["headers"],
            record["partition"],
            record["timestamp_ms"],
        )
    except (TypeError, ValueError) as error:
        return repr(error)


def _outcome(future: Any) -> Outcome:
    if future.failed():
        return repr(future.exception)
    offset: int = future.value.offset
    return offset


def read(asked: dict[str, Any]) -> list[list[Any]]:
    consumer = KafkaConsumer(
        bootstrap_servers=SERVERS,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
    )
    consumer.assign([TopicPartition(asked["read"], n) for n in range(asked["partitions"])])
    found: list[list[Any]] = []
    while (polled := consumer.poll(1000 * MORE_S)) or len(found) < asked["count"]:
        found += [
            told(r.partition, r.offset, r.key, r.value, r.headers)
            for records in polled.values()
            for r in records
        ]
    consumer.close()
    return found


converse(publish, read)
