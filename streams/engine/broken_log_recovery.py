"""Recovery of a group whose progress doesn't fit its log: what is kept and what is given up.

``plan`` describes the recovery, ``carry_out`` does it in one transaction of the group's own
producer, signed evidence included. That fences the partition's owner; the members of the group take
the partition over by the new progress a few seconds later (``BrokenPartitions``).
"""

from dataclasses import dataclass
from typing import NamedTuple

import orjson

from streams.engine.continuity import BrokenLogError, check_continuity, done_by
from streams.engine.log import GroupOffset, Log, LogError, Outgoing, Partition
from streams.engine.progress import read_progress, writer_id
from streams.engine.signer import Signer
from streams.engine.stage import Effect
from topics import Catalogue, ChainHead, Evidence, Progress, Source, encode, progress_key
from topics.wire.canonical_json import canonical

# Steps after a request was held; the last of these tells whether it still is.
_AFTER_HOLD = frozenset(
    {"released", "placed", "executed", "fell_back", "failed", "expired", "rejected", "cancelled"}
)


class RecoveryError(Exception):
    """The requested recovery is not possible; the message says why."""


class NothingToRecoverError(RecoveryError):
    """The progress fits the log, or there is none."""


@dataclass(frozen=True, slots=True)
class Recovery:
    """The effects of a recovery. ``message`` is a paragraph on them, for people and evidence."""

    group: str
    partition: Partition
    at: int
    head: ChainHead | None
    finished: tuple[int, ...]
    """Offsets from there on that are done as well."""
    leader_epoch: int | None
    """That of the records below, if known."""
    released: tuple[bytes, ...]
    """Keys of the hold whose tombstones were lost: they were released, and are not held."""
    message: str
    before: Progress | None
    """The progress that the plan is about; None where it can't be read."""


class _Fault(NamedTuple):
    """A fault, and what the log tells of where to go on: None or empty if nothing.

    Attributes:
        what: for people.
        start: the first offset that is not done.
        finished: what is done from there on.
        leader_epoch: of what was read of this log.
    """

    what: str
    start: int | None = None
    finished: tuple[int, ...] = ()
    leader_epoch: int | None = None


async def plan(
    log: Log, catalogue: Catalogue, signer: Signer, group: str, partition: Partition, at: int | None
) -> Recovery:
    """Return how a group can continue with a partition.

    Args:
        log: the log of both.
        catalogue: the names of topics.
        signer: knows the last root of the chain where the progress doesn't tell.
        group: the consumer group.
        partition: of a topic that it consumes.
        at: the first offset that is not done; None for the one that the log tells of.

    Raises:
        RecoveryError: the progress fits the log, or nothing but ``at`` can tell where to go on.
        LogError: the cluster can't be asked.
    """
    first, end = (await log.bounds([partition]))[partition]
    stored = await read_progress(log, catalogue.progress, group, [partition])
    known, unreadable = stored.known.get(partition), stored.unreadable.get(partition)
    if unreadable is not None:
        why = f"the progress of {group} on {partition} can't be read: {unreadable.message}"
        fault = _Fault(why)
        head = await signer.last_head(writer_id(group, partition), log)
    elif known is None:
        raise NothingToRecoverError(
            f"{group} has no progress on {partition}: there is nothing to recover"
        )
    else:
        fault = await _broken(log, group, partition, known, first)
        head = known.head
    start = fault.start if at is None else at
    if start is None:
        raise RecoveryError(
            f"{fault.what}; nothing tells where {group} has to go on: say it with --at, an offset"
            f" from {first} to {end}"
        )
    if not first <= start <= end:
        raise RecoveryError(f"{partition} has offsets {first} to {end}, and --at is {start}")
    finished = tuple(offset for offset in fault.finished if offset >= start)
    released: tuple[bytes, ...] = ()
    if partition.topic == catalogue.held:
        released = await _released(log, catalogue, partition, (first, start))
    message = _told(fault, start, finished, released)
    return Recovery(
        group, partition, start, head, finished, fault.leader_epoch, released, message, known
    )


def _told(fault: _Fault, start: int, finished: tuple[int, ...], released: tuple[bytes, ...]) -> str:
    message = f"{fault.what}. All below {start} counts as done"
    if finished:
        message += f", so do {len(finished)} from there on"
    message += f", and what {'else ' if finished else ''}stands from there on is taken"
    if fault.start is not None and start > fault.start:
        message += f"; what stands at {fault.start} to {start - 1} is given up"
    if released:
        message += f"; {len(released)} requests were released before, and are not held again"
    return message


async def _broken(
    log: Log, group: str, partition: Partition, known: Progress, first: int
) -> _Fault:
    done = done_by(known)
    try:
        await check_continuity(log, group, partition, known)
    except BrokenLogError as error:
        if error.is_another:
            return _Fault(
                f"{partition.topic} was deleted and made again: {done} of the old one was done, and"
                " what was left of it is gone",
                first,
            )
        what = (
            f"{partition} has lost its end at {error.end}: {done} was done, and what stood beyond"
            " that is gone unread"
        )
        if known.leader_epoch is None:
            return _Fault(what)
        start = max(first, min(error.end, known.next_offset))
        kept = tuple(offset for offset in known.finished if offset < error.end)
        return _Fault(what, start, kept, known.leader_epoch)
    raise NothingToRecoverError(
        f"the progress of {group} on {partition} fits the log: it stands at {known.next_offset};"
        " there is nothing to recover"
    )


async def _released(
    log: Log, catalogue: Catalogue, partition: Partition, span: tuple[int, int]
) -> tuple[bytes, ...]:
    """Return keys held only by the log's account: the evidence says they were released."""
    start, end = span
    held: dict[bytes, None] = {}
    async for records in log.read({partition: start}, {partition: end}):
        for record in records:
            if record.key is not None and record.value is None and record.unreadable is None:
                held.pop(record.key, None)
            elif record.key is not None:
                held[record.key] = None
    homes = [Partition(catalogue.evidence, n) for n in range(catalogue.partitions)]
    gone: dict[bytes, bool] = {}
    starts = {home: first for home, (first, _) in (await log.bounds(homes)).items()}
    async for records in log.read(starts):
        for record in records:
            if record.key in held:
                step = orjson.loads(record.value or b"{}").get("step")
                if step == "held" or step in _AFTER_HOLD:
                    gone[record.key or b""] = step != "held"
    return tuple(key for key in held if gone.get(key))


async def carry_out(
    log: Log, catalogue: Catalogue, signer: Signer, writer: str, recovery: Recovery, now: float
) -> None:
    """Write the progress, the evidence, and the records missing in the hold, as one transaction.

    Args:
        log: the target.
        catalogue: the names of topics.
        signer: signs the evidence; its key is published.
        writer: named in the evidence.
        recovery: of ``plan``.
        now: epoch seconds.

    Raises:
        LogError: a member of the group came between; try again.
    """
    group, partition = recovery.group, recovery.partition
    topic, number = partition
    evidence = Evidence(
        request_id=f"{topic}/{number}",
        step="recovered",
        at=now,
        writer=writer,
        source=Source(topic, number, recovery.at),
        reason="log_broken",
        message=recovery.message,
    )
    own = Outgoing(catalogue.evidence, evidence.request_id.encode(), canonical(evidence))
    tombstones = [Outgoing(topic, key, None, partition=number) for key in recovery.released]
    effects = [Effect(None, [own, *tombstones])]
    chain = writer_id(group, partition)
    topic_id = (await log.topic_ids([topic]))[topic]
    producer = await log.fence(chain)
    try:
        # What was committed until then would stand beside ours as another end of the same chain.
        known = (await read_progress(log, catalogue.progress, group, [partition])).known
        if known.get(partition) != recovery.before:
            raise LogError(f"{group} has gone on with {partition} meanwhile; try again")
        await producer.begin()
        sealed, head = signer.seal(chain, recovery.head, effects)
        progress = Progress(
            recovery.at,
            recovery.finished,
            head,
            None,
            topic_id,
            recovery.leader_epoch,
            is_recovered=True,
        )
        key = progress_key(group, topic, number)
        stored = Outgoing(catalogue.progress, key, encode(progress), partition=number)
        sent = [await producer.send(record) for record in (own, *tombstones, *sealed, stored)]
        for each in sent:
            await each
        await producer.commit(GroupOffset(group, partition, recovery.at))
    finally:
        await producer.close()
