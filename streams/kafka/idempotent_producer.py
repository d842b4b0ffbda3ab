"""A producer for records beside the transactions."""

from typing import Any

from aiokafka import AIOKafkaProducer

from streams.kafka.broker_loss import client_options
from topics import Settings


async def started_producer(settings: Settings, **options: Any) -> AIOKafkaProducer:
    """Start an idempotent producer that waits for all replicas in sync.

    Raises:
        KafkaError: no broker answers.
    """
    producer = AIOKafkaProducer(
        **client_options(settings), acks="all", enable_idempotence=True, **options
    )
    try:
        await producer.start()
    except BaseException:
        await producer.stop()
        raise
    return producer
