"""A bare hop: aiokafka alone copies each record of some topics to another, exactly once.

    python -m benchmarks.contestants.hop SERVERS GROUP --from TOPIC --to TOPIC --beside TOPIC

It has one transactional producer, and one transaction for all records of a poll, with the group's
offsets. Beside the copy it writes a second record, as long as evidence. Nothing is decoded.
"""

import argparse
import asyncio
import os

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from mode import loop as event_loop

from streams.kafka.writer import TRANSACTION_RETRY_MS

# Of each partition that has them, at most; as a router polls.
POLL_RECORDS = 100


async def hop(asked: argparse.Namespace) -> None:
    """Copy until the process is ended."""
    consumer = AIOKafkaConsumer(
        *asked.sources,
        bootstrap_servers=asked.servers,
        group_id=asked.group,
        isolation_level="read_committed",
        enable_auto_commit=False,
        auto_offset_reset="earliest",
    )
    producer = AIOKafkaProducer(
        bootstrap_servers=asked.servers,
        transactional_id=asked.group,
        retry_backoff_ms=TRANSACTION_RETRY_MS,
    )
    await consumer.start()
    await producer.start()
    beside = os.urandom(asked.beside_bytes)
    while True:
        polled = await consumer.getmany(timeout_ms=100, max_records=POLL_RECORDS)
        if not polled:
            continue
        async with producer.transaction():
            sent = []
            for partition, records in polled.items():
                for record in records:
                    number = partition.partition
                    sent += [
                        await producer.send(asked.to, record.value, record.key, number),
                        await producer.send(asked.beside, beside, record.key),
                    ]
            await asyncio.gather(*sent)
            ends = {partition: records[-1].offset + 1 for partition, records in polled.items()}
            await producer.send_offsets_to_transaction(ends, asked.group)


def main() -> None:
    """Run the hop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers")
    parser.add_argument("group")
    parser.add_argument("--from", dest="sources", nargs="+", required=True)
    parser.add_argument("--to", required=True)
    parser.add_argument("--beside", required=True)
    parser.add_argument("--beside-bytes", type=int, default=1500)
    # As a router does.
    event_loop.use(os.environ.get("FAUST_LOOP", "aio"))
    asyncio.run(hop(parser.parse_args()))


if __name__ == "__main__":
    main()
