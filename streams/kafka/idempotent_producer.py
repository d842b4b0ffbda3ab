"""A producer for records beside the transactions."""

import asyncio
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from streams.kafka.broker_loss import client_options
from streams.kafka.writer import let_go
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


async def close_producer(producer: AIOKafkaProducer, s_max: float) -> bool:
    """Close a producer once it has sent what it has, or so many seconds later.

    Return False if it had more to send. Its connections are closed in any case, also if the caller
    is cancelled: else it would send that whenever a broker is back, and be there for ever.
    """
    has_sent = False
    try:
        async with asyncio.timeout(s_max):
            await producer.stop()
            has_sent = True
    except (TimeoutError, KafkaError):
        pass
    finally:
        if not has_sent:
            await let_go(producer)
    return has_sent
