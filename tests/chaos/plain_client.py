"""A plain aiokafka producer and consumer, to tell Kafka's part of a delay from Shunter's.

python tests/chaos/plain_client.py BOOTSTRAP_SERVERS TOPIC >> FILE

Five records a second, in transactions one after the other, to each partition of a topic in turn; a
committed reader writes down when each was due and how long it took to come out. It is a process of
its own, with the library's defaults: Shunter's patches of aiokafka hold for a whole process.
"""

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError
from confluent_kafka.admin import AdminClient, NewTopic

TOPIC, PARTITIONS = "bare", 4
EVERY_S = 0.2
AGAIN_S = 0.1


async def measure(servers: str, topic: str) -> None:
    """Write and read until killed, or until the run that started it has ended."""
    parent = os.getppid()
    consumer = AIOKafkaConsumer(
        bootstrap_servers=servers, isolation_level="read_committed", enable_auto_commit=False
    )
    # By name it would read nothing for minutes where the broker that it asks first does not know
    # the topic yet.
    consumer.assign([TopicPartition(topic, number) for number in range(PARTITIONS)])
    await consumer.start()
    writing = asyncio.create_task(_write(servers, topic))
    while not writing.done() and os.getppid() == parent:
        with contextlib.suppress(KafkaError):
            for records in (await consumer.getmany(timeout_ms=100)).values():
                for record in records:
                    due = float(record.value or b"0")
                    print(f"{due:.3f} {time.time() - due:.3f}", flush=True)
    if writing.done():
        await writing


async def _write(servers: str, topic: str) -> None:
    number, due = 0, time.time()
    while True:
        producer = AIOKafkaProducer(bootstrap_servers=servers, transactional_id=topic)
        try:
            await producer.start()
            while True:
                waiting = [due + EVERY_S * n for n in range(int((time.time() - due) / EVERY_S) + 1)]
                async with producer.transaction():
                    for at in waiting:
                        partition = (number + waiting.index(at)) % PARTITIONS
                        await producer.send_and_wait(topic, b"%.3f" % at, partition=partition)
                number, due = number + len(waiting), waiting[-1] + EVERY_S
                await asyncio.sleep(max(0.0, due - time.time()))
        except KafkaError:
            # What was due is written again by a new producer, which fences this one.
            await asyncio.sleep(AGAIN_S)
        finally:
            with contextlib.suppress(KafkaError, TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await producer.stop()


@contextlib.contextmanager
def plain_client(kafka: AdminClient, servers: str, directory: Path) -> Iterator[Path]:
    """Make the topic, and have the process run meanwhile; yield the file that it writes."""
    topic = NewTopic(TOPIC, num_partitions=PARTITIONS, replication_factor=3)
    for made in kafka.create_topics([topic]).values():
        made.result(20)
    path = directory / "bare.txt"
    with path.open("ab") as told:
        process = subprocess.Popen([sys.executable, __file__, servers, TOPIC], stdout=told)
    try:
        yield path
    finally:
        process.kill()
        process.wait()


def read_bare(path: Path) -> Sequence[tuple[float, float]]:
    """Return when each record was due, and how long it took, in seconds; one may be there twice."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [(float(due), float(took)) for due, took in (line.split() for line in lines)]


if __name__ == "__main__":
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    asyncio.run(measure(*sys.argv[1:]))
