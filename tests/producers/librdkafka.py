"""A producer on librdkafka, through confluent-kafka."""

import sys
from typing import Any

from confluent_kafka import KafkaException, Producer
from dialogue import Outcome, converse

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


converse(publish)
