"""Kafka in memory, for tests: what ``streams.engine.log`` promises, and the faults that Kafka has.

True to Kafka where the engine depends on it: control markers take offsets, an open transaction
holds readers back, ids are fenced by epoch, a produce batch falls as a whole, the group's offset
may be lost where the records are not. Every call goes through ``checkpoint`` first, so that a
simulator can choose what else happens there; time and waiting are passed in likewise.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Collection, Generator, Mapping, Sequence
from typing import NamedTuple

from memory_cluster import (
    Crash,
    CrashPoint,
    CutOffError,
    MemoryCluster,
    ProcessKilledError,
    RefusedError,
    Transaction,
)

from streams.engine.continuity import QuietPartitions, newest_epoch
from streams.engine.log import GroupOffset, LogError, Membership, Outgoing, Partition, Record

__all__ = [
    "Crash",
    "CrashPoint",
    "CutOffError",
    "MemoryCluster",
    "MemoryLog",
    "ProcessKilledError",
    "RefusedError",
]

# A reading gives up on an open transaction after this many waits of READ_WAIT_S each.
READ_WAITS_MAX = 600
READ_WAIT_S = 0.05
READ_RECORDS_MAX = 1000


class Poll(NamedTuple):
    """What a member asked for."""

    timeout_s: float
    records_max: int
    paused: frozenset[Partition]


class _Sent:
    """The future of a ``send``: the record leaves with its batch once one of them is awaited."""

    def __init__(self, writer: "MemoryWriter", record: Outgoing) -> None:
        self.writer = writer
        self.record = record
        self.outcome: Record | Exception | None = None

    def __await__(self) -> Generator[object, None, Record]:
        if self.outcome is None:
            yield from self.writer.flush().__await__()
        if isinstance(self.outcome, Record):
            return self.outcome
        raise self.outcome or LogError("the record was never sent")


class MemoryWriter:
    """A transactional producer."""

    def __init__(self, log: "MemoryLog", transactional_id: str, epoch: int) -> None:
        self._log = log
        self._cluster = log.cluster
        self._id = transactional_id
        self._epoch = epoch
        self._transaction: Transaction | None = None
        self._buffer: list[_Sent] = []
        self._broken: set[Partition] = set()
        self._is_closed = False
        # As in KafkaWriter: only what was used for a commit can be missed.
        self._connected_at: int | None = None

    @property
    def is_cut_off(self) -> bool:
        """Whether the broker was restarted since the last commit."""
        return self._connected_at not in (None, self._cluster.restarts)

    async def has_ended(self) -> bool:
        """Ask the cluster how the last transaction stands."""
        await self._cluster.checkpoint()
        has_ended = self._cluster.has_committed(self._id, self._epoch)
        if has_ended:
            self._connected_at = self._cluster.restarts
        return has_ended

    async def begin(self) -> None:
        """Open a transaction."""
        await self._cluster.checkpoint()
        self._check("begin")
        if self._transaction is not None:
            raise LogError(f"{self._id} has a transaction open already")
        self._transaction = self._cluster.begin(self._id)

    async def send(self, record: Outgoing) -> Awaitable[object]:
        """Buffer a record; the future ends when its batch has been written or refused."""
        await self._cluster.checkpoint()
        self._check("send")
        self._opened()
        if self._cluster.oversized(record):
            raise RefusedError(f"{record.topic}: the client won't send a record of this size")
        sent = _Sent(self, record)
        self._buffer.append(sent)
        return sent

    async def commit(self, moved: GroupOffset | None = None) -> None:
        """Commit. As in aiokafka, records refused here are told of to nobody (rule 4)."""
        await self._cluster.checkpoint()
        self._check("commit")
        self._opened()
        self._write_buffer()
        self._connected_at = self._cluster.restarts
        self._cluster.end(self._id, "committed")
        self._transaction = None
        if moved is not None:
            self._cluster.offsets[moved.group, moved.partition] = moved.next_offset
        self._check("committed")
        self._cluster.answer()

    async def close(self) -> None:
        """Let go; whatever is open stays open until the next of this id."""
        await self._cluster.checkpoint()
        self._is_closed = True
        self._log.writers.discard(self._id)

    async def flush(self) -> None:
        """Write what is buffered, if another has not done so meanwhile."""
        await self._cluster.checkpoint()
        if self._buffer:
            self._check("append")
            self._opened()
            self._write_buffer()

    def _opened(self) -> Transaction:
        if self._transaction is None:
            raise LogError(f"{self._id} has no transaction open")
        return self._transaction

    def _check(self, point: CrashPoint) -> None:
        self._log.reach(point)
        if self._is_closed:
            raise LogError(f"{self._id} is closed")
        if self._epoch != self._cluster.epoch(self._id):
            raise LogError(f"{self._id} is fenced: another has taken over")

    def _write_buffer(self) -> None:
        transaction = self._opened()
        batches: dict[Partition, list[_Sent]] = {}
        for sent in self._buffer:
            batches.setdefault(self._cluster.partition_of(sent.record), []).append(sent)
        self._buffer = []
        for partition, batch in batches.items():
            if partition in self._broken:
                # The refused batch has left a gap in the sequence numbers.
                self._fail(batch, LogError(f"{partition}: out of sequence"))
            elif any(self._cluster.refuse(sent.record) for sent in batch):
                self._broken.add(partition)
                self._fail(batch, RefusedError(f"{partition} refuses the batch"))
            else:
                for sent in batch:
                    sent.outcome = self._cluster.append(partition, sent.record, transaction)

    @staticmethod
    def _fail(batch: Sequence[_Sent], error: Exception) -> None:
        for sent in batch:
            sent.outcome = error


class MemoryLog:
    """One process: a member of a group, and its writers. ``name`` is that of the process."""

    refusals: tuple[type[Exception], ...] = (RefusedError,)
    writer: type[MemoryWriter] = MemoryWriter

    def __init__(self, cluster: MemoryCluster, name: str = "a") -> None:
        self.cluster = cluster
        self.name = name
        self.topics: Sequence[str] = ()
        self.is_dead = False
        self.last_poll: Poll | None = None
        self.writers: set[str] = set()
        """Ids of the writers that were not closed yet."""
        self._group = ""
        self._membership: Membership | None = None
        self._positions: dict[Partition, int] = {}
        self._epochs: dict[Partition, int | None] = {}
        self._reached: dict[Partition, int] = {}
        self._quiet = QuietPartitions(self)
        self._callback = asyncio.Lock()

    def is_passing(self, error: Exception) -> bool:
        """Tell whether another try may do."""
        return isinstance(error, CutOffError | TimeoutError)

    async def is_member(self) -> bool:
        """Tell whether the group still has us."""
        await self._call()
        return self.cluster.members.get(self._group, {}).get(self.name) is self

    def reach(self, point: CrashPoint | None = None) -> None:
        """Die here if it is so planned; whoever is dead makes no more calls."""
        crash = self.cluster.crash
        if self.is_dead:
            raise ProcessKilledError(f"{self.name} is dead")
        if crash is not None and crash.strikes(point):
            self.is_dead = True
            raise crash.error

    async def join(self, group: str, topics: Sequence[str], membership: Membership) -> None:
        """Become a member; partitions come with ``assign`` or ``rebalance`` of the cluster."""
        await self._call()
        self._group, self.topics, self._membership = group, topics, membership
        self.cluster.members.setdefault(group, {})[self.name] = self

    async def leave(self) -> None:
        """Leave the group, once a callback under way has ended: aiokafka waits for it too."""
        await self._call()
        async with self._callback:
            self._positions = {}
            self._membership = None
            # One that never joined, or was thrown out meanwhile, ends all the same.
            self.cluster.members.get(self._group, {}).pop(self.name, None)

    async def lose_all(self) -> None:
        """Have all partitions revoked."""
        async with self._callback:
            if self._membership is not None and not self.is_dead:
                await self._membership.revoked(list(self._positions))
            self._positions = {}

    async def gain(self, partitions: Collection[Partition]) -> None:
        """Be given partitions. They can be polled at once, and where may be stale (rule 2)."""
        async with self._callback:
            self._positions = {p: self.cluster.offsets.get((self._group, p), 0) for p in partitions}
            if self._membership is not None and not self.is_dead:
                await self._membership.assigned(partitions)

    async def poll(
        self,
        timeout_s: float,
        records_max: int,
        paused: Collection[Partition],
        *,
        of_each: bool = False,
    ) -> Mapping[Partition, Sequence[Record]]:
        """Return new committed records; where there are none, sleep for the timeout first."""
        await self._call()
        if self._membership is None:
            raise LogError("not a member of a group: call join() first")
        self.last_poll = Poll(timeout_s, records_max, frozenset(paused))
        before = dict(self._positions)
        polled = self._take(records_max, paused, of_each=of_each)
        if not polled:
            await self.cluster.sleep(timeout_s)
            self.reach()
            before = dict(self._positions)
            polled = self._take(records_max, paused, of_each=of_each)
        for partition, records in polled.items():
            known = self._epochs.get(partition)
            self._epochs[partition] = await newest_epoch(
                self, self._group, records, self._reached.get(partition, before[partition]), known
            )
            self._reached[partition] = records[-1].offset + 1
        reached = {
            p: at for p, at in self._reached.items() if p in self._positions and p not in paused
        }
        await self._quiet.look(self._group, polled, reached, self._epochs)
        return polled

    def _take(
        self, records_max: int, paused: Collection[Partition], *, of_each: bool
    ) -> dict[Partition, Sequence[Record]]:
        polled: dict[Partition, Sequence[Record]] = {}
        for partition, position in list(self._positions.items()):
            log = self.cluster.logs[partition]
            if position > log.end and partition not in paused:
                raise LogError(f"{partition} ends at {log.end}, and {position} is out of range")
            if partition in paused or position >= log.stable_end or not records_max:
                continue
            records = list(log.committed(position, log.stable_end))[:records_max]
            is_all = len(records) < records_max
            if not of_each:
                records_max -= len(records)
            self._positions[partition] = log.stable_end if is_all else records[-1].offset + 1
            if records:
                polled[partition] = records
        return polled

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's offset as the broker has it."""
        await self._call()
        return self.cluster.offsets.get((self._group, partition))

    async def commit_offsets(self, offsets: Mapping[Partition, int]) -> None:
        """Set the group's offsets, as far as they are not lost."""
        await self._call()
        if self.cluster.members.get(self._group, {}).get(self.name) is not self:
            raise LogError(f"{self.name} is no member of {self._group}")
        for partition, offset in offsets.items():
            if not self.cluster.lose_offset(partition, offset):
                self.cluster.offsets[self._group, partition] = offset

    async def lag(self) -> Mapping[Partition, int]:
        """Return how far each position is below the last stable offset."""
        ends = {p: self.cluster.logs[p].stable_end for p in self._positions}
        return {p: max(0, ends[p] - position) for p, position in self._positions.items()}

    def unstable(self) -> Mapping[Partition, tuple[int, int]]:
        """Return last stable offset and end where they differ."""
        logs = {p: self.cluster.logs[p] for p in self._positions}
        return {p: (log.stable_end, log.end) for p, log in logs.items() if log.open}

    async def topic_ids(self, topics: Collection[str]) -> Mapping[str, str]:
        """Return the id of each topic."""
        await self._call()
        return {topic: self.cluster.topic_ids.get(topic, topic) for topic in topics}

    async def epoch_end(self, partition: Partition, leader_epoch: int) -> int | None:
        """Return where the records up to a leader epoch end."""
        await self._call()
        log = self.cluster.logs[partition]
        if leader_epoch > log.epochs[-1][0]:
            return None
        later = (start for epoch, start in log.epochs if epoch > leader_epoch)
        return min(later, default=log.end)

    def seek(self, partition: Partition, offset: int, leader_epoch: int | None = None) -> None:
        """Let the next poll begin there; of no effect where the partition is not ours.

        Kafka itself would go to the beginning from an offset before it; here that is a mistake.
        """
        first = self.cluster.logs[partition].first
        if offset < first:
            raise LogError(f"{partition} begins at {first}, after {offset}")
        if partition in self._positions:
            self._positions[partition] = self._reached[partition] = offset
            self._epochs[partition] = leader_epoch

    async def bounds(
        self, partitions: Collection[Partition]
    ) -> Mapping[Partition, tuple[int, int]]:
        """Return first offset and high watermark."""
        await self._call()
        logs = self.cluster.logs
        return {p: (logs[p].first, logs[p].end) for p in partitions}

    async def read(
        self, starts: Mapping[Partition, int], ends: Mapping[Partition, int] | None = None
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield the committed records from each start to its end, or the end as it is now."""
        bounds = {p: end for p, (_, end) in (await self.bounds(starts)).items()}
        waits = 0
        # Sorted, since the caller's order may be that of a set.
        for partition, last in sorted(bounds.items()):
            end = min(last, (ends or {}).get(partition, last))
            log, position = self.cluster.logs[partition], starts[partition]
            while position < end:
                await self._call()
                stable = min(log.stable_end, end)
                records = list(log.committed(position, stable))
                for at in range(0, len(records), READ_RECORDS_MAX):
                    yield records[at : at + READ_RECORDS_MAX]
                position = max(position, stable)
                if position < end:
                    waits += 1
                    if waits > READ_WAITS_MAX:
                        raise LogError(f"an open transaction on {partition} has not ended")
                    await self.cluster.sleep(READ_WAIT_S)

    async def fetch(self, partition: Partition, offsets: Collection[int]) -> Mapping[int, Record]:
        """Return the committed records at these offsets; absent where one is gone."""
        await self._call()
        log = self.cluster.logs[partition]
        found = (r for o in sorted(offsets) for r in log.committed(o, min(o + 1, log.stable_end)))
        return {record.offset: record for record in found}

    async def fence(self, transactional_id: str) -> MemoryWriter:
        """Return the writer of an id; any earlier one is dead, what it left open is aborted.

        As ``KafkaLog`` does: one request after another, between which the process may die.
        """
        await self._call()
        self.cluster.complete_commit(transactional_id)
        await self._call()
        self.writers.add(transactional_id)
        epoch = self.cluster.fence(transactional_id)
        await self._call()
        if epoch == self.cluster.epoch(transactional_id):
            self.cluster.abort_rest(transactional_id)
        return self.writer(self, transactional_id, epoch)

    async def _call(self) -> None:
        await self.cluster.checkpoint()
        self.reach()
