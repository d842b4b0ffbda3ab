"""The hold: how fast one batcher holds and releases, and what much that is held costs."""

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from dataclasses import replace
from sys import intern
from typing import Any

import orjson

from benchmarks.figures import Figure, compared
from benchmarks.ground import Ground, Watch, beat, ground
from benchmarks.sides import Load, bare
from benchmarks.throughput import Hall
from benchmarks.yard import NOW, Yard, make_options, records_of, request_value
from policies import Member, Windows, find_target
from policies.groups import group_of
from streams.declarations import load_policy
from streams.log import Outgoing, Partition, Record
from streams.payloads import Payloads, Room
from streams.thrift import share_common
from topics import Profile
from topics import headers as h

WAITING = {"task": "summarization", "completion_window": "24h"}
# Prompts of a group are of one length bucket, so that these are groups of their own.
INPUT_TOKENS = (100, 1000, 4000, 20_000)
BATCH_MEMBERS = 64
MANY, FEW, SAMPLE = 1_000_000, 10_000, 5_000
IN_MEMORY = 50_000


def held_records(yard: Yard, count: int, size: int = 1024) -> Iterator[Outgoing]:
    """Yield records of the hold as the router writes them, by turns of some groups.

    One of each group is decided on, and the others are like it but for their ids.
    """
    first = []
    for number, tokens in enumerate(INPUT_TOKENS):
        hints = {"input_tokens": tokens, "output_tokens": 100}
        value = request_value(number, size, created_at=yard.now, hints=hints, **WAITING)
        first.append(yard.decide(records_of([value], yard.catalogue.requests)[0]).records[0])
    for number in range(count):
        like = first[number % len(first)]
        old, new = like.key or b"", b"r-%09d" % number
        headers = [(name, value.replace(old, new)) for name, value in like.headers]
        yield Outgoing(like.topic, new, (like.value or b"").replace(old, new), headers)


async def released_per_s(hall: Hall, count: int) -> float:
    """Return the requests per second that a batcher releases, which are in the hold at first."""
    hall.number += 1
    options = make_options(is_mixed=True)
    with ground(hall.broker.bootstrap_servers, f"bench-{hall.number}", hall.directory) as here:
        await here.apply(options.by_pool)
        await _fill(here, Yard(options, now=time.time()), count)
        await beat(here, options, once=True)
        beating = asyncio.create_task(beat(here, options))
        load = Load(0, is_mixed=True)
        fleet = here.directory / f"{here.prefix}.yaml"
        fleet.write_text(load.fleet())
        policy = here.directory / f"{here.prefix}-policy.yaml"
        policy.write_bytes(orjson.dumps(roomless()))
        here.start("shunter", "router", SHUNTER_FLEET=str(fleet), SHUNTER_POLICY=str(policy))
        try:
            lanes = [here.catalogue.pool_lane(pool, "batch") for pool in options.by_pool]
            async with Watch(here, lanes) as watch:
                # The last of each group fill no batch, and wait for the end of their window.
                return await watch.rate(count - BATCH_MEMBERS * len(INPUT_TOKENS))
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
    """Windows in which so many wait for a pool that is not there, as after its death."""

    def __init__(self, waiting: int) -> None:
        self.yard = Yard(make_options(is_mixed=True))
        self.windows = Windows(members_max=BATCH_MEMBERS, margin_s=1.0)
        value = request_value(0, **WAITING)
        tagged = self.yard.decide(records_of([value], self.yard.catalogue.requests)[0])
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

        def target(members: Sequence[Member]) -> object:
            return find_target(members, self.yard.situation, NOW)

        began = time.process_time()
        for number in range(count):
            profile = replace(self.profile, id=f"goes-{number}")
            self.windows.add(Member(profile, self.group, NOW, number))
            if number % BATCH_MEMBERS == BATCH_MEMBERS - 1:
                for end in list(self.windows.due(NOW, target)):
                    for member in end.members:
                        self.windows.remove(member.profile.id)
        return (time.process_time() - began) / count * 1e6


def bytes_each(count: int = IN_MEMORY) -> float:
    """Return what a held request takes beside its payload, in windows and payloads."""
    yard = Yard(make_options(is_mixed=True))
    home = Partition(yard.catalogue.held, 0)
    windows, payloads = Windows(members_max=BATCH_MEMBERS, margin_s=1.0), Payloads(home, Room(0))
    records = [
        Record(home, n, out.key, out.value, out.headers, int(NOW * 1000))
        for n, out in enumerate(held_records(yard, count))
    ]
    gc.collect()
    tracemalloc.start()
    for record in records:
        profile = h.read(record.headers, h.PROFILE, Profile)
        share_common(profile)
        group = intern(group_of(profile, yard.policy.windows.length_buckets_tokens))
        windows.add(Member(profile, group, NOW, record.offset))
        # No room: the payload stays in the log, and what is left is what is beside it.
        payloads.add(profile.id, record)
    gc.collect()
    taken, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return taken / count


def hold(hall: Hall) -> list[Figure]:
    """Return the figures of the hold."""
    # A transaction releases up to 1,000, so that few of them tell nothing.
    count = hall.records(100_000)
    ours, theirs = [], []
    for _ in range(hall.rounds):
        theirs.append(hall.measure(bare(), Load(hall.records(20_000), is_mixed=True)))
        ours.append(asyncio.run(released_per_s(hall, count)))
        print(f"  batcher: {ours[-1]:,.0f}/s", flush=True)
    few, many = Filled(FEW), Filled(int(MANY * hall.scale))
    by_few, by_many = [], []
    for _ in range(max(3, hall.rounds)):
        by_few.append(few.per_request_us(SAMPLE))
        by_many.append(many.per_request_us(SAMPLE))
    beside = bytes_each()
    return [
        compared("held and released by one batcher", ours, theirs, 0.5, against="bare loop"),
        compared(
            f"hold and release with {int(MANY * hall.scale):,} held", by_many, by_few, 1.2,
            against=f"with {FEW:,} held", at_most=True, unit="us",
        ),
        Figure(
            "memory of a held request beside its payload", beside, 600, beside / 600, 1.0,
            at_most=True, unit="bytes", against="600 bytes",
        ),
    ]  # fmt: skip
