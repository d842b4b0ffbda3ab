"""The hold: one batcher's rate of holds and releases, and the cost of a large hold."""

import asyncio
import gc
import itertools
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from sys import intern
from typing import Any

import orjson

from benchmarks.cluster_fixture import Ground, Watch, beat, ground, publish
from benchmarks.contenders import Load, bare, shunter
from benchmarks.figures import Figure, compared
from benchmarks.resource_usage import Used, meter
from benchmarks.throughput import Hall
from benchmarks.workload import (
    NOW,
    REQUEST_BYTES,
    Yard,
    make_options,
    records_of,
    report_all,
    request_value,
)
from policies import Member, Options, Placer, Windows
from policies.batching.groups import group_of
from streams.batcher.interning import share_common
from streams.batcher.payload_cache import Payloads, Room
from streams.config.declarations import load_policy
from streams.engine.log import Outgoing, Partition, Record
from topics import Profile, Settings
from topics.records import headers as h

WAITING = {"task": "summarization", "completion_window": "24h"}
# Prompts of a group are of one length bucket, so that these are groups of their own.
INPUT_TOKENS = (100, 1000, 4000, 20_000)
BATCH_MEMBERS = 64
# The last of each group fill no batch, and wait for the end of their window.
LEFT = BATCH_MEMBERS * len(INPUT_TOKENS)
MANY, FEW, SAMPLE = 1_000_000, 10_000, 5_000
IN_MEMORY = 50_000


def waiting_value(number: int, group: int, size: int = REQUEST_BYTES, **fields: Any) -> bytes:
    """Return a request of one of the groups, which is held."""
    hints = {"input_tokens": INPUT_TOKENS[group], "output_tokens": 100}
    return request_value(number, size, hints=hints, **WAITING, **fields)


def held_records(yard: Yard, count: int, size: int = REQUEST_BYTES) -> Iterator[Outgoing]:
    """Yield records of the hold as the router writes them, by turns of some groups.

    One of each group is decided on, and the others are like it but for their ids.
    """
    first = [_held_one(yard, group, size) for group in range(len(INPUT_TOKENS))]
    for number in range(count):
        like = first[number % len(first)]
        old, new = like.key or b"", b"r-%09d" % number
        headers = [(name, value.replace(old, new)) for name, value in like.headers]
        yield Outgoing(like.topic, new, (like.value or b"").replace(old, new), headers)


def _held_one(yard: Yard, group: int, size: int) -> Outgoing:
    """Return the first of a group that waits: one that nobody came before may go at once."""
    values = (
        waiting_value(n, group, size, created_at=yard.now) for n in itertools.count(1000 * group)
    )
    asked = (records_of([value], yard.catalogue.requests)[0] for value in values)
    decided = (yard.decide(each).records[0] for each in asked)
    return next(out for out in decided if out.topic == yard.catalogue.held)


async def released(hall: Hall, count: int) -> Used:
    """Return a batcher's rate of releases from the hold, by the lanes of the pools."""
    options = make_options(is_mixed=True)
    async with _ready(hall, options) as (here, start):
        await _fill(here, Yard(options, now=time.time()), count)
        start()
        async with Watch(
            here, [here.catalogue.pool_lane(pool, "batch") for pool in options.by_pool]
        ) as watch:
            pace = await watch.pace(count - LEFT, meter(here, hall.broker))
        return Used.of("batcher", REQUEST_BYTES, pace)


async def held_and_released(hall: Hall, count: int) -> Used:
    """Return one process's rate of holds and releases, by the evidence of both.

    They are published beforehand: the router decides that each of them waits, and the batcher reads
    it from the hold and releases it.
    """
    groups = len(INPUT_TOKENS)
    # Batches that are all full, so that none waits at the end.
    count -= count % LEFT
    async with _ready(hall, make_options(is_mixed=True)) as (here, start):
        # Each partition has some of each group.
        values = [waiting_value(n, n // here.partitions % groups) for n in range(count)]
        await publish(here, here.catalogue.requests, values)
        start()
        async with Watch(here, [here.catalogue.evidence]) as watch:
            pace = await watch.pace(2 * count - LEFT, meter(here, hall.broker))
        return Used.of("router and batcher", REQUEST_BYTES, replace(pace, per_s=pace.per_s / 2))


@asynccontextmanager
async def _ready(hall: Hall, options: Options) -> AsyncIterator[tuple[Ground, Callable[[], None]]]:
    """Yield ground on which the pools live, and what starts a router there."""
    hall.number += 1
    with ground(hall.broker.bootstrap_servers, f"bench-{hall.number}", hall.directory) as here:
        await here.apply(options.by_pool)
        await beat(here, options, once=True)
        beating = asyncio.create_task(beat(here, options))
        policy = here.directory / f"{here.prefix}-policy.yaml"
        policy.write_bytes(orjson.dumps(roomless()))
        side = shunter(SHUNTER_POLICY=str(policy))
        try:
            yield here, lambda: side.start(here, Load(0, is_mixed=True))
        finally:
            beating.cancel()
            await here.delete()


def roomless() -> dict[str, Any]:
    """Return the packaged policy, in which a full batch does not wait for room beside others."""
    policy = load_policy(None)
    windows = policy.windows.model_copy(update={"room_wait_s": 0.0})
    changed = policy.model_copy(update={"windows": windows})
    return changed.model_dump(mode="json", exclude_none=True)


async def _fill(here: Ground, yard: Yard, count: int) -> None:
    records = list(held_records(yard, count))
    producer = here.producer()
    await producer.start()
    try:
        for number, out in enumerate(records):
            # The groups by turns over the partitions, as their names would spread many of them.
            await producer.send(
                here.catalogue.held,
                out.value,
                out.key,
                partition=number % len(INPUT_TOKENS) % here.partitions,
                headers=out.headers,
            )
        await producer.flush()
    finally:
        await producer.stop()


class Filled:
    """Windows in which many requests wait for a missing pool, as after its death."""

    def __init__(self, waiting: int) -> None:
        self.yard = Yard(make_options(is_mixed=True))
        self.windows = Windows(members_max=BATCH_MEMBERS, margin_s=1.0)
        value = request_value(0, **WAITING)
        tagged = self.yard.decide(records_of([value], self.yard.catalogue.requests)[0])
        # It has gone at once, being alone; what is measured finds all pools idle.
        report_all(self.yard.situation.view, self.yard.options)
        self.profile = h.read(tagged.records[0].headers, h.PROFILE, Profile)
        self.group = group_of(self.profile, (512, 2048))
        for number in range(waiting):
            profile = replace(self.profile, id=f"waits-{number}")
            group = f"{self.group}|waits-{number // 1000}"
            self.windows.add(Member(profile, group, NOW, number))
        # Each group has been looked at, and found without a pool.
        list(self.windows.due(NOW, lambda _: None))

    def per_request_us(self, count: int) -> float:
        """Return the processor time to hold a request and release it with its batch."""
        placer = Placer(self.yard.situation)

        def target(members: Sequence[Member]) -> object:
            return placer.target(members, NOW)

        began = time.process_time()
        for number in range(count):
            profile = replace(self.profile, id=f"goes-{number}")
            self.windows.add(Member(profile, self.group, NOW, number))
            if number % BATCH_MEMBERS == BATCH_MEMBERS - 1:
                for end in list(self.windows.due(NOW, target)):
                    for member in end.members:
                        self.windows.remove(member.profile.id)
        return (time.process_time() - began) / count * 1e6


def bytes_each(kept_bytes_max: int, count: int = IN_MEMORY) -> tuple[float, float]:
    """Return a held request's memory in one process, and how many bytes of it are kept as such.

    Args:
        kept_bytes_max: payload and header bytes that may be kept; 0 leaves them in the log.
        count: of held requests.
    """
    yard = Yard(make_options(is_mixed=True))
    home, room = Partition(yard.catalogue.held, 0), Room(kept_bytes_max)
    windows, payloads = Windows(members_max=BATCH_MEMBERS, margin_s=1.0), Payloads(home, room)
    gc.collect()
    tracemalloc.start()
    for number, out in enumerate(held_records(yard, count)):
        record = _as_read(home, number, out)
        profile = h.read(record.headers, h.PROFILE, Profile)
        share_common(profile)
        group = intern(group_of(profile, yard.policy.windows.length_buckets_tokens))
        windows.add(Member(profile, group, NOW, number))
        payloads.add(profile.id, record)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / count, room.bytes_used / count


def _as_read(home: Partition, offset: int, out: Outgoing) -> Record:
    """Return a record that shares nothing with others, as one that the client has read."""
    headers = [(name.encode().decode(), bytes(memoryview(value))) for name, value in out.headers]
    value = bytes(memoryview(out.value or b""))
    return Record(home, offset, out.key, value, headers, int(NOW * 1000))


def hold(hall: Hall) -> list[Figure]:
    """Return the figures of the hold."""
    # A transaction releases up to 1,000, so a few of them measure nothing.
    many = hall.records(100_000)
    few = hall.records(20_000)
    theirs: list[float] = []
    ours: dict[str, list[float]] = {"released": [], "both": []}
    for _ in range(hall.rounds):
        theirs.append(hall.measure(bare(), Load(few, is_mixed=True)))
        for name, run, count in (("released", released, many), ("both", held_and_released, few)):
            used = asyncio.run(run(hall, count))
            hall.tell(used)
            ours[name].append(used.per_s)
    return [
        compared(
            "held by the router, then released by the batcher of one process", ours["both"],
            theirs, 0.5, against="bare loop", note="20 candidates; both halves timed together",
        ),
        compared(
            "released by one batcher", ours["released"], theirs, 0.5, against="bare loop",
            note="of requests that it finds in the hold; only the release is timed",
        ),
        *_in_memory(hall),
    ]  # fmt: skip


def _in_memory(hall: Hall) -> list[Figure]:
    """Return the cost of a large hold, in one process and without a Kafka."""
    few, many = Filled(FEW), Filled(MANY)
    by_few, by_many = [], []
    for _ in range(max(3, hall.rounds)):
        by_few.append(few.per_request_us(SAMPLE))
        by_many.append(many.per_request_us(SAMPLE))
    beside, _ = bytes_each(0)
    whole, kept = bytes_each(Settings().held_payload_bytes_max)
    note = (
        "as Python allocates, payloads left in the log; kept in memory, as up to"
        f" SHUNTER_HELD_PAYLOAD_BYTES_MAX they are, {whole:,.0f} bytes with payload and headers,"
        f" which are {kept:,.0f} of them"
    )
    return [
        compared(
            f"hold and release with {MANY:,} held", by_many, by_few, 1.2,
            against=f"with {FEW:,} held", at_most=True, unit="us",
        ),
        Figure(
            "memory of a held request beside its payload", beside, 600, beside / 600, 1.0,
            at_most=True, unit="bytes", against="600 bytes", note=note,
        ),
    ]  # fmt: skip
