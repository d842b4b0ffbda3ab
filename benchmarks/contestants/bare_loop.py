"""The bare loop: aiokafka alone copies as many records of the same size, exactly once.

    python -m benchmarks.contestants.bare_loop SERVERS PREFIX [--evidence-bytes N]

It has one transactional producer per partition and one transaction per poll and partition. A
transaction has for each record a copy with headers and a second record as long as its evidence,
and one progress record and one root, as the router writes them. Nothing is decoded.
"""

import argparse
import asyncio
import os

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from mode import loop as event_loop

from benchmarks.cluster_fixture import PARTITIONS
from streams.kafka.writer import BATCH_BYTES_MAX

ROOT_BYTES, LEAF_BYTES, PROGRESS_BYTES = 345, 44, 250


class Loop:
    """Copies from one topic to others."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.servers, self.prefix = arguments.servers, arguments.prefix
        self.poll_records = arguments.poll_records
        self.numbers = range(arguments.share, PARTITIONS, arguments.shares)
        self.group = f"{self.prefix}.bare"
        self.evidence = os.urandom(arguments.evidence_bytes)
        third = arguments.header_bytes // 3
        self.headers = [(f"shunter-bench-{n}", os.urandom(third - 15)) for n in range(3)]
        self.progress, self.producers = os.urandom(PROGRESS_BYTES), {}

    async def run(self) -> None:
        """Copy until the process is ended."""
        consumer = AIOKafkaConsumer(
            bootstrap_servers=self.servers,
            group_id=self.group,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        for number in self.numbers:
            self.producers[number] = AIOKafkaProducer(
                bootstrap_servers=self.servers,
                transactional_id=f"{self.group}-{number}",
                retry_backoff_ms=5,
                max_request_size=1 << 25,
                max_batch_size=BATCH_BYTES_MAX,
            )
            await self.producers[number].start()
        partitions = [TopicPartition(f"{self.prefix}.requests", n) for n in self.numbers]
        consumer.assign(partitions)
        while True:
            polled = await consumer.getmany(timeout_ms=100, max_records=self.poll_records)
            for partition in partitions:
                if partition not in polled:
                    polled |= await consumer.getmany(partition, max_records=self.poll_records)
            await asyncio.gather(*(self.copy(p, records) for p, records in polled.items()))

    async def copy(self, partition: TopicPartition, records: list) -> None:
        """Copy a poll of a partition in one transaction."""
        producer, number = self.producers[partition.partition], partition.partition
        await producer.begin_transaction()
        sent = []
        for record in records:
            lane, key = f"{self.prefix}.pool.pool-00{record.offset % 2}.direct", record.key
            sent += [
                await producer.send(lane, record.value, key, number, headers=self.headers),
                await producer.send(f"{self.prefix}.evidence", self.evidence, key),
            ]
        root = bytes(ROOT_BYTES + LEAF_BYTES * len(records))
        sent += [
            await producer.send(f"{self.prefix}.progress", self.progress, b"bare", number),
            await producer.send(f"{self.prefix}.evidence-roots", root, b"bare"),
        ]
        await asyncio.gather(*sent)
        await producer.send_offsets_to_transaction({partition: records[-1].offset + 1}, self.group)
        await producer.commit_transaction()


def main() -> None:
    """Run the loop."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("servers")
    parser.add_argument("prefix")
    parser.add_argument("--evidence-bytes", type=int, default=11_700)
    parser.add_argument("--header-bytes", type=int, default=900)
    parser.add_argument("--poll-records", type=int, default=100)
    parser.add_argument("--share", type=int, default=0, help="which of all")
    parser.add_argument("--shares", type=int, default=1)
    # As a router does.
    event_loop.use(os.environ.get("FAUST_LOOP", "aio"))
    asyncio.run(Loop(parser.parse_args()).run())


if __name__ == "__main__":
    main()
