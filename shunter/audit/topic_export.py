"""The trail on the topics as it stood at one moment, for programs that read it later.

What is committed meanwhile must not look like a gap to them: a record without its root, a root
without its records, a heartbeat of a root that was not read, a result without its end.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Literal

import msgspec

from shunter.logs.reading import Kind, TrailRow, read_all, row_of, settled_bounds
from streams.engine.log import Log, Partition, Record
from streams.evidence.projection import decode_step
from topics import BadRecordError, Catalogue, Result, Root, decode
from topics.records.evidence import ENDS
from topics.signing.merkle import leaf_hash
from topics.signing.signed_root import leaves_of

TextKind = Literal["results", "salts"]
Take = Callable[[TrailRow], object]


async def export_topics(
    log: Log, catalogue: Catalogue, take: Mapping[Kind | TextKind, Take]
) -> None:
    """Pass on what is on the topics, of a system that may be running.

    Args:
        log: to read from.
        catalogue: names the topics, and their partitions.
        take: receives the records of each kind, partition by partition in the order of offsets;
            results and salts are read where it has them.

    Raises:
        LogError: a transaction stays open.
    """
    bounds = await settled_bounds(log, catalogue.evidence, catalogue.partitions)
    with_results = "results" in take
    known = await _bounds(log, catalogue.results, catalogue.partitions) if with_results else {}
    heads = await _bounds(log, catalogue.evidence_keys, 1)
    rooted: set[bytes] = set()
    async for record in read_all(log, catalogue.evidence_roots, catalogue.partitions):
        rooted.update(_leaves(record))
        take["roots"](row_of(record))
    # Who has begun to sign since is on the keys topic by now; their heartbeats may be too new.
    async for record in read_all(log, catalogue.evidence_keys, 1):
        is_late = record.offset >= heads[record.partition][1]
        if not (is_late and (record.key or b"").startswith(b"heads/")):
            take["keys"](row_of(record))
    ends: Counter[str] = Counter()
    async for record in read_all(log, catalogue.evidence, catalogue.partitions):
        is_late = record.offset >= bounds[record.partition][1]
        if is_late and leaf_hash(record.value or b"") not in rooted:
            continue
        take["evidence"](row_of(record))
        if with_results:
            ends.update(_ended(record))
    if with_results:
        await _export_results(log, catalogue, take["results"], known, ends)
    if "salts" in take:
        async for record in read_all(log, catalogue.evidence_salts, 1):
            take["salts"](row_of(record))


async def _export_results(
    log: Log,
    catalogue: Catalogue,
    take: Take,
    known: Mapping[Partition, tuple[int, int]],
    ends: Counter[str],
) -> None:
    """Pass on results; one that is newer than the evidence, and has no end there, is left out.

    Args:
        log: to read from.
        catalogue: names the topic.
        take: receives them.
        known: bounds of the topic before any evidence was read.
        ends: how many ends each request has in the evidence that was passed on.
    """
    async for record in read_all(log, catalogue.results, catalogue.partitions):
        request_id = _result_of(record)
        ends[request_id] -= 1
        if record.offset < known[record.partition][1] or ends[request_id] >= 0:
            take(row_of(record))


async def _bounds(log: Log, topic: str, partitions: int) -> Mapping[Partition, tuple[int, int]]:
    return await log.bounds([Partition(topic, n) for n in range(partitions)])


def _leaves(record: Record) -> list[bytes]:
    try:
        return leaves_of(decode(Root, record.value or b""))
    except (BadRecordError, ValueError):
        return []


def _ended(record: Record) -> list[str]:
    """Return the id of a request if this is its end."""
    try:
        step = decode_step(record.value or b"")
    except msgspec.MsgspecError:
        return []
    return [step.request_id] if step.step in ENDS else []


def _result_of(record: Record) -> str:
    try:
        return decode(Result, record.value or b"").id
    except BadRecordError:
        return ""
