"""Time for a new owner to restore the ids of a full window: from blocks, and from the requests.

    python benchmarks/seen_ids.py
    python benchmarks/seen_ids.py --records 20000 --rounds 5 --json

One ingest partition of a real Kafka is full of requests of 1 KB. The first restore finds no
blocks, as after an upgrade; for the second, a router has written them all and another succeeds it.
Rounds are interleaved; each figure is a median, in seconds of wall-clock and of processor time.
"""

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

import orjson

from benchmarks.cluster_fixture import Ground, ground
from streams.engine.log import Partition, Record
from streams.hosting.services import calm_garbage_collector
from streams.kafka.log import KafkaLog
from streams.router.deduplication import Duplicates
from topics import Progress
from topics.embedded_broker.broker import EmbeddedBroker

PAYLOAD = "why " * 220
AT_ONCE = 500


def value_of(number: int) -> bytes:
    """Return a request of 1 KB."""
    body = {"messages": [{"role": "user", "content": PAYLOAD}]}
    return orjson.dumps({"id": f"r-{number}", "body": body})


async def fill(here: Ground, records: int) -> None:
    """Publish the requests, each in the partition whose owner changes."""
    async with here.producer() as producer:
        for number in range(records):
            await producer.send(here.catalogue.requests, value_of(number), partition=0)
        await producer.flush()


async def write_down(here: Ground, records: int) -> None:
    """Let a router see them all, and write what it writes."""
    owner = Duplicates(here.catalogue.seen_ids, records, lambda _: True)
    partition = Partition(here.catalogue.requests, 0)
    await owner.restore(partition, None, KafkaLog(here.settings))
    async with here.producer() as producer:
        for start in range(0, records, AT_ONCE):
            until = min(records, start + AT_ONCE)
            for number in range(start, until):
                record = Record(partition, number, None, None, [], 0)
                owner.first(record, f"r-{number}")
            for effect in owner.finished(partition, until):
                out = effect.records[0]
                await producer.send(out.topic, out.value, out.key, partition=out.partition)
            owner.done(partition)
        await producer.flush()


async def restore(here: Ground, topic: str, records: int) -> tuple[float, float]:
    """Return the seconds and the processor time of a new owner's restore."""
    owner = Duplicates(topic, records, lambda _: True)
    partition = Partition(here.catalogue.requests, 0)
    began, used = time.monotonic(), time.process_time()
    await owner.restore(partition, Progress(records), KafkaLog(here.settings))
    took = time.monotonic() - began, time.process_time() - used
    if owner.known(partition) != records:
        raise AssertionError(f"{owner.known(partition)} of {records} ids are known")
    return took


async def measure(here: Ground, records: int, rounds: int) -> dict[str, list[float]]:
    """Return the median of seconds and of processor time, each way."""
    await here.apply([])
    await fill(here, records)
    await write_down(here, records)
    # A topic that is there and has no blocks stands for one to which nothing was written.
    topics = {"from blocks": here.catalogue.seen_ids, "from requests": here.catalogue.held}
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in topics}
    for _ in range(rounds):
        for way, topic in topics.items():
            taken[way].append(await restore(here, topic, records))
    return {
        way: [statistics.median(each) for each in zip(*times, strict=True)]
        for way, times in taken.items()
    }


def main() -> None:
    """Measure, and print a table of Markdown."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=100_000, help="of the window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    asked = parser.parse_args()
    calm_garbage_collector()
    with (
        tempfile.TemporaryDirectory() as directory,
        EmbeddedBroker(data_dir=Path(directory) / "kafka") as broker,
        ground(broker.bootstrap_servers, "seen", Path(directory)) as here,
    ):
        found = asyncio.run(measure(here, asked.records, asked.rounds))
    if asked.json:
        print(json.dumps(found))
        return
    print(f"| {asked.records:,} ids | s | processor s |\n| --- | --: | --: |")
    for way, (took_s, used_s) in found.items():
        print(f"| {way} | {took_s:.2f} | {used_s:.2f} |")


if __name__ == "__main__":
    main()
