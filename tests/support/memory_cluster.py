"""The brokers of the log in memory (``memory_log``): partitions, transactions, groups, faults."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from aiokafka.partitioner import murmur2

from streams.engine.log import Outgoing, Partition, Record
from topics import BadRecordError

CrashPoint = Literal["begin", "send", "append", "commit", "committed"]
"""The calls at which a process may die: each before it took effect, ``committed`` just after."""


class RefusedError(Exception):
    """The log won't take this record, alone or with the others of its produce batch."""


class CutOffError(Exception):
    """The broker was gone before it answered; what it was asked for it may have done."""


class ProcessKilledError(Exception):
    """The process is gone."""


@dataclass(slots=True)
class Crash:
    """The end of whatever process makes the ``nth`` call of this kind."""

    point: CrashPoint
    nth: int = 1
    error: Exception = field(default_factory=lambda: ProcessKilledError("killed"))
    calls: int = 0

    @property
    def has_struck(self) -> bool:
        """Tell whether it has come to that."""
        return self.calls >= self.nth

    def strikes(self, point: CrashPoint | None) -> bool:
        """Count a call, and tell whether it is the one."""
        if point != self.point or self.has_struck:
            return False
        self.calls += 1
        return self.has_struck


Outcome = Literal["committed", "aborted"]


@dataclass(slots=True, eq=False)
class Transaction:
    """Records on any number of partitions that end together, as the coordinator has them.

    Readers of a partition go by the marker there: they wait until it is written.
    """

    transactional_id: str
    state: Literal["open", "committed", "aborted"] = "open"
    touched: set[Partition] = field(default_factory=set)
    markers: dict[Partition, Outcome] = field(default_factory=dict)

    def is_visible_on(self, partition: Partition) -> bool:
        """Tell whether committed readers of a partition see what was written there."""
        return self.markers.get(partition) == "committed"

    def unmarked(self) -> list[Partition]:
        """Return the partitions whose readers still wait for the end."""
        return sorted(self.touched - self.markers.keys())


class _Entry(NamedTuple):
    record: Record | None
    """None for a control marker, and where compaction has taken the record."""
    transaction: Transaction | None


@dataclass(slots=True)
class _PartitionLog:
    entries: list[_Entry] = field(default_factory=list)
    first: int = 0
    epochs: list[tuple[int, int]] = field(default_factory=lambda: [(0, 0)])
    """Each leader epoch, and the offset at which it began; the newest last."""
    open: dict[Transaction, int] = field(default_factory=dict)
    """Open transactions, and the first offset of each."""

    @property
    def end(self) -> int:
        return len(self.entries)

    @property
    def stable_end(self) -> int:
        """The last stable offset: no committed reader passes the oldest open transaction."""
        return min(self.open.values(), default=self.end)

    def committed(self, start: int, end: int) -> Iterator[Record]:
        for record, transaction in self.entries[max(start, self.first) : end]:
            if record is None:
                continue
            if transaction is None or transaction.is_visible_on(record.partition):
                yield record


class Member(Protocol):
    """A consumer as its group sees it."""

    topics: Sequence[str]

    async def lose_all(self) -> None:
        """Have all partitions revoked."""
        ...

    async def gain(self, partitions: Collection[Partition]) -> None:
        """Be given partitions."""
        ...


async def _pass() -> None:
    await asyncio.sleep(0)


async def _pass_at_once(_seconds: float) -> None:
    await asyncio.sleep(0)


class MemoryCluster:
    """The brokers.

    Args:
        topics: partitions by topic.
        now: the clock of record timestamps, epoch seconds.
        checkpoint: awaited at each call.
        sleep: awaited, with seconds, where a real client would wait for records.
        answer: called when a commit was made, before the client hears of it.
    """

    def __init__(
        self,
        topics: Mapping[str, int],
        *,
        now: Callable[[], float] = time.time,
        checkpoint: Callable[[], Awaitable[None]] = _pass,
        sleep: Callable[[float], Awaitable[None]] = _pass_at_once,
        answer: Callable[[], None] = lambda: None,
    ) -> None:
        self.topics: dict[str, int] = {}
        self.logs: dict[Partition, _PartitionLog] = {}
        self.create(topics)
        self.now = now
        self.checkpoint = checkpoint
        self.sleep = sleep
        self.answer = answer
        self.members: dict[str, dict[str, Member]] = {}
        self.offsets: dict[tuple[str, Partition], int] = {}
        self.refuse: Callable[[Outgoing], bool] = lambda _record: False
        """The broker's refusals; the whole produce batch falls: all of one partition."""
        self.oversized: Callable[[Outgoing], bool] = lambda _record: False
        """The client's own refusals, raised by ``send`` itself."""
        self.lose_offset: Callable[[Partition, int], bool] = lambda _partition, _offset: False
        """Offsets of a group that are never seen."""
        self.lose_marker: Callable[[Partition], bool] = lambda _partition: False
        """Partitions on which the end of a transaction isn't told."""
        self.restarts = 0
        """How often the broker was restarted; each time every connection is cut."""
        self.crash: Crash | None = None
        self._epochs: dict[str, int] = {}
        self._transactions: dict[str, Transaction] = {}
        self._newest: dict[str, Transaction] = {}
        self._keyless = 0
        self.topic_ids: dict[str, str] = {}

    def create(self, topics: Mapping[str, int]) -> None:
        """Make topics, of so many partitions each."""
        self.topics |= topics
        for topic, count in topics.items():
            for number in range(count):
                self.logs[Partition(topic, number)] = _PartitionLog()

    def publish(
        self,
        record: Outgoing,
        timestamp_ms: int | None = None,
        unreadable: BadRecordError | None = None,
    ) -> Record:
        """Append a record outside any transaction, as a foreign client does."""
        found = self.append(self.partition_of(record), record, None, timestamp_ms)
        if unreadable is not None:
            found = found._replace(unreadable=unreadable)
            self.logs[found.partition].entries[-1] = _Entry(found, None)
        return found

    def place(self, record: Record) -> None:
        """Put a record where it says; what is missing before it is gone, as after compaction."""
        log = self.logs[record.partition]
        log.entries += [_Entry(None, None)] * (record.offset - log.end)
        log.entries.append(_Entry(record, None))

    def records(self, topic: str, number: int | None = None) -> list[Record]:
        """Return what a committed reader sees of a topic, or of one partition of it."""
        numbers = range(self.topics[topic]) if number is None else [number]
        logs = [self.logs[Partition(topic, n)] for n in numbers]
        return [record for log in logs for record in log.committed(0, log.stable_end)]

    def transaction_of(self, record: Record) -> Transaction | None:
        """Return the transaction that wrote a record; None where there was none."""
        return self.logs[record.partition].entries[record.offset].transaction

    def open_transactions(self) -> list[str]:
        """Return the transactional ids that have a transaction open."""
        return sorted(self._transactions)

    def partition_of(self, record: Outgoing) -> Partition:
        """Return where a record goes, by Kafka's own hash of its key."""
        if record.partition is not None:
            return Partition(record.topic, record.partition)
        count = self.topics[record.topic]
        if record.key is None:
            self._keyless += 1
            return Partition(record.topic, self._keyless % count)
        return Partition(record.topic, (murmur2(record.key) & 0x7FFFFFFF) % count)

    async def assign(self, group: str, shares: Mapping[str, Collection[Partition]]) -> None:
        """Rebalance eagerly: all is revoked from all members, then given out anew."""
        members = self.members[group]
        await asyncio.gather(*(member.lose_all() for member in members.values()))
        still_there = [(members[name], share) for name, share in shares.items() if name in members]
        await asyncio.gather(*(member.gain(share) for member, share in still_there))

    async def rebalance(self, group: str) -> None:
        """Give each member its share of all partitions of the topics they read."""
        members = self.members[group]
        topics = {topic for member in members.values() for topic in member.topics}
        wanted = sorted(p for p in self.logs if p.topic in topics)
        names = sorted(members)
        await self.assign(group, {name: wanted[at :: len(names)] for at, name in enumerate(names)})

    def compact(self, topic: str) -> None:
        """Keep only the newest committed record of each key; offsets stay as they are."""
        for number in range(self.topics[topic]):
            log = self.logs[Partition(topic, number)]
            newest = {record.key: record.offset for record in log.committed(0, log.stable_end)}
            for record in list(log.committed(0, log.stable_end)):
                if newest[record.key] != record.offset:
                    log.entries[record.offset] = _Entry(None, None)

    def trim(self, partition: Partition, first: int) -> None:
        """Delete what is older than an offset, as retention does."""
        self.logs[partition].first = first

    def lose_tail(self, partition: Partition, end: int) -> None:
        """Lose what stands from an offset on, as after an unclean leader election."""
        log = self.logs[partition]
        del log.entries[end:]
        for transaction in [t for t, first in log.open.items() if first >= end]:
            del log.open[transaction]
        epoch, _ = log.epochs[-1]
        log.epochs = [each for each in log.epochs if each[1] < end or each[0] == 0]
        log.epochs.append((epoch + 1, min(end, log.end)))

    def recreate(self, topic: str) -> None:
        """Delete a topic and make it again; the group's offsets go with it."""
        self.topic_ids[topic] = f"{topic}, another one"
        self.create({topic: self.topics[topic]})
        self.offsets = {at: o for at, o in self.offsets.items() if at[1].topic != topic}

    def time_out(self, transactional_id: str) -> None:
        """Abort what an id has open, as the broker does when its time is over."""
        self.fence(transactional_id)

    def restart(self) -> None:
        """Restart the broker: nothing is lost but connections (see ``Writer.is_cut_off``)."""
        self.restarts += 1

    def complete_commit(self, transactional_id: str) -> None:
        """Write what markers a commit lacks, while the coordinator remembers that it was one.

        At once, where Kafka takes two requests: who dies between them (docs/decisions/0002, the gap
        that is left) is not simulated.
        """
        newest = self._newest.get(transactional_id)
        if transactional_id in self._transactions:
            # It is remembered no more: the predecessor went on over the missing markers.
            return
        if newest is not None and newest.state == "committed":
            for partition in newest.unmarked():
                self.mark(transactional_id, partition, "committed")

    def has_committed(self, transactional_id: str, epoch: int) -> bool:
        """Return whether the newest transaction of a producer is committed, with all markers."""
        newest = self._newest.get(transactional_id)
        is_open = transactional_id in self._transactions
        if newest is None or is_open or self._epochs.get(transactional_id) != epoch:
            return False
        return newest.state == "committed" and not newest.unmarked()

    def fence(self, transactional_id: str) -> int:
        """Return the new epoch of an id; what an earlier one left open is aborted."""
        if transactional_id in self._transactions:
            self.end(transactional_id, "aborted")
        # How the last one had ended is forgotten.
        self._newest.pop(transactional_id, None)
        self._epochs[transactional_id] = self._epochs.get(transactional_id, 0) + 1
        return self._epochs[transactional_id]

    def abort_rest(self, transactional_id: str) -> None:
        """Abort whatever an id still has open on some partition, though it has no transaction."""
        for partition, log in self.logs.items():
            if any(t.transactional_id == transactional_id for t in log.open):
                self.mark(transactional_id, partition, "aborted")

    def epoch(self, transactional_id: str) -> int:
        """Return the epoch in force."""
        return self._epochs[transactional_id]

    def begin(self, transactional_id: str) -> Transaction:
        """Open a transaction."""
        return self._transactions.setdefault(transactional_id, Transaction(transactional_id))

    def end(self, transactional_id: str, state: Outcome) -> None:
        """End a transaction: a control marker on each partition it has touched."""
        transaction = self._newest[transactional_id] = self._transactions.pop(transactional_id)
        transaction.state = state
        for partition in sorted(transaction.touched):
            if not self.lose_marker(partition):
                self.mark(transactional_id, partition, state)

    def mark(self, transactional_id: str, partition: Partition, outcome: Outcome) -> None:
        """Write a marker: it ends all that its producer has open on a partition."""
        log = self.logs[partition]
        log.entries.append(_Entry(None, None))
        for transaction in [t for t in log.open if t.transactional_id == transactional_id]:
            del log.open[transaction]
            transaction.markers[partition] = outcome

    def append(
        self,
        partition: Partition,
        record: Outgoing,
        transaction: Transaction | None,
        timestamp_ms: int | None = None,
    ) -> Record:
        """Append a record to a partition, in a transaction or none."""
        log = self.logs[partition]
        at_ms = int(self.now() * 1000) if timestamp_ms is None else timestamp_ms
        headers = tuple(record.headers)
        found = Record(partition, log.end, record.key, record.value, headers, at_ms)
        found = found._replace(leader_epoch=log.epochs[-1][0])
        if transaction is not None:
            transaction.touched.add(partition)
            log.open.setdefault(transaction, found.offset)
        log.entries.append(_Entry(found, transaction))
        return found
