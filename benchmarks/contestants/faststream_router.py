"""FastStream with the router's decision as its handler: ``-m benchmarks.contestants...``.

FastStream has no consume-and-produce transaction on Kafka, so this one is at least once: offsets
are committed by the client, records sent without waiting for each.
"""

import asyncio
import os

from faststream.kafka import KafkaBroker
from faststream.kafka.annotations import KafkaMessage

from benchmarks.contestants.decider import Decider


async def run() -> None:
    """Serve until the process is ended."""
    prefix = os.environ["SHUNTER_TOPIC_PREFIX"]
    broker = KafkaBroker(
        os.environ["SHUNTER_BOOTSTRAP_SERVERS"],
        max_request_size=8_000_000,
        max_batch_size=1 << 18,
        acks="all",
    )
    decider = Decider()

    @broker.subscriber(
        f"{prefix}.requests", group_id=f"{prefix}.faststream", auto_offset_reset="earliest"
    )
    async def route(message: KafkaMessage) -> None:
        raw = message.raw_message
        placed, told = decider.route(raw.value, raw.key, raw.partition, raw.offset)
        headers = {name: text.decode() for name, text in placed.headers}
        lane = f"{prefix}.pool.pool-000.direct"
        await broker.publish(
            placed.value,
            lane,
            key=placed.key,
            headers=headers,
            partition=raw.partition,
            no_confirm=True,
        )
        await broker.publish(told.value, f"{prefix}.evidence", key=told.key, no_confirm=True)

    await broker.start()
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(run())
