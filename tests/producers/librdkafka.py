"""A producer, and a reader, on librdkafka, through confluent-kafka."""

import sys
from typing import Any

from confluent_kafka import OFFSET_BEGINNING, Consumer, KafkaException, Producer, TopicPartition
from dialogue import MORE_S, Outcome, converse, told

SERVERS = sys.argv[1]
REQUEST_BYTES_MAX = 8_000_000
PATIENCE_S = 60
left_open = []


def publish(batch: dict[str, Any]) -> list[Outcome]:
    options = {
        "bootstrap.servers": SERVERS,
        "compression.codec": batch["codec"],
        "enable.idempotence": batch["mode"] != "plain",
        "message.max.bytes": REQUEST_BYTES_MAX,
        "linger.ms": 500,
    }
    transactional = batch["transactional_id"] is not None
    if transactional:
        options["transactional.id"] = batch["transactional_id"]
        options["transaction.timeout.ms"] = batch["transaction_timeout_ms"]
    producer = Producer(options)
    if transactional:
        producer.init_transactions(PATIENCE_S)
        producer.begin_transaction()
    outcomes: list[Outcome] = ["not sent"] * len(batch["records"])
    for index, record in enumerate(batch["records"]):
        _send(producer, batch["topic"], record, index, outcomes)
    producer.flush(PATIENCE_S)
    if batch["mode"] == "committed":
        producer.commit_transaction(PATIENCE_S)
    elif batch["mode"] == "aborted":
        producer.abort_transaction(PATIENCE_S)
    elif transactional:
        left_open.append(producer)
    return outcomes


def _send(
    producer: Producer, topic: str, record: dict[str, Any], index: int, outcomes: list[Outcome]
) -> None:
    def delivered(error: Any, message: Any) -> None:
        outcomes[index] = message.offset() if error is None else str(error)

    try:
        producer.produce(
            topic,
            record["value"],
            record["key"],
            record["partition"],
            on_delivery=delivered,
            timestamp=record["timestamp_ms"] or 0,
            headers=record["headers"],
        )
    except (KafkaException, TypeError, ValueError) as error:
        outcomes[index] = repr(error)


def read(asked: dict[str, Any]) -> list[list[Any]]:
    consumer = Consumer(
        {
            "bootstrap.servers": SERVERS,
            "group.id": "unused",
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
        }
    )
    numbers = range(asked["partitions"])
    consumer.assign([TopicPartition(asked["read"], n, OFFSET_BEGINNING) for n in numbers])
    found: list[list[Any]] = []
    while (polled := consumer.poll(MORE_S)) is not None or len(found) < asked["count"]:
        if polled is not None and polled.error() is None:
            place = (polled.partition(), polled.offset())
            found.append(told(*place, polled.key(), polled.value(), polled.headers()))
    consumer.close()
    return found


converse(publish, read)
