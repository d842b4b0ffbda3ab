"""Held requests and batchers over them, for the tests of the hold."""

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any
from zlib import crc32

import orjson
from memory_log import MemoryLog
from stream_cases import START, Yard, make_profile, request

from policies.batching.groups import group_of
from streams.batcher.stage import Batcher
from streams.engine.log import Outgoing, Partition, Record
from streams.engine.transactor import Transactor
from topics.records import headers as h

MIB = 1024 * 1024


class Noting(MemoryLog):
    """A log that notes from where on each partition of the hold is read."""

    def __init__(self, yard: Yard) -> None:
        super().__init__(yard.cluster, "noting")
        self.starts: dict[int, int] = {}

    async def read(
        self, starts: Mapping[Partition, int], ends: Mapping[Partition, int] | None = None
    ) -> AsyncIterator[Sequence[Record]]:
        self.starts |= {p.number: at for p, at in starts.items() if p.topic.endswith(".held")}
        async for records in super().read(starts, ends):
            yield records


def make_batcher(
    yard: Yard, *, held_records_max: int = 1000, held_payload_bytes_max: int = MIB
) -> Batcher:
    """Return a batcher with a view of its own, in which the yard's live pools live."""
    return Batcher(
        yard.situation(),
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        yard.cancellations,
        held_records_max=held_records_max,
        held_payload_bytes_max=held_payload_bytes_max,
    )


async def run(yard: Yard, batcher: Batcher, log: MemoryLog | None = None) -> Transactor:
    """Return a transactor that has taken the whole hold over; whoever had it is gone."""
    yard.cluster.members.clear()
    return await yard.run(batcher, log)


async def look(yard: Yard, **limits: int) -> Batcher:
    """Let a new batcher take over, look once at what is due, and commit it."""
    batcher = make_batcher(yard, **limits)
    await (await run(yard, batcher)).step()
    return batcher


def hold(yard: Yard, request_id: str, **details: Any) -> Record:
    """Put a request in the hold; see ``held_request``."""
    return yard.cluster.publish(held_request(yard, request_id, **details))


def held_request(
    yard: Yard,
    request_id: str,
    *,
    held_at: float = START,
    ingest_partition: int = 0,
    partition: int | None = None,
    headers: tuple[tuple[str, bytes], ...] = (),
    **fields: Any,
) -> Outgoing:
    """Return a request as the router holds it; a summary, unless the fields say otherwise."""
    fields = {"task": "summarization", "id": request_id} | fields
    profile = make_profile(yard.policy, ingest_partition, **fields)
    group = group_of(profile, yard.policy.windows.length_buckets_tokens)
    added = h.encoded(profile=profile)
    added |= {h.GROUP: group.encode(), h.HELD_AT: repr(held_at).encode()}
    number = crc32(group.encode()) % yard.catalogue.partitions if partition is None else partition
    value = orjson.dumps(request(**fields))
    return Outgoing(
        yard.catalogue.held, request_id.encode(), value, [*headers, *added.items()], number
    )
