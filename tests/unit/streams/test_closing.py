"""A consumer that closes: no moment in which its caller's cancellation is lost."""

import asyncio

import pytest
from aiokafka import AIOKafkaConsumer

from streams.kafka.reader import close_consumer, consumer_options
from topics import Settings

pytestmark = pytest.mark.kafka
# Closing takes some twenty turns of the loop.
MOMENTS = 30


async def test_whoever_is_cancelled_while_it_closes_ends(kafka: str, prefix: str) -> None:
    settings = Settings(bootstrap_servers=kafka, topic_prefix=prefix)
    lost = []
    for moment in range(1, MOMENTS):
        consumer = AIOKafkaConsumer(**consumer_options(settings))
        await consumer.start()
        closing = asyncio.ensure_future(close_consumer(consumer))
        for _ in range(moment):
            await asyncio.sleep(0)
        is_asked = closing.cancel()
        (found,) = await asyncio.gather(closing, return_exceptions=True)
        if is_asked and not isinstance(found, asyncio.CancelledError):
            lost.append(moment)
        # It is closed all the same: what is left open warns, and a warning fails the test.
    assert not lost
