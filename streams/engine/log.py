"""The engine's interface to Kafka, kept minimal so that a simulated log can take its place."""

from collections.abc import AsyncIterator, Awaitable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from streams.engine.trace_context import Context
from topics import BadRecordError
from topics.records import headers as h

# How far a producer's clock may be ahead, as Kafka has it by default
# (message.timestamp.after.max.ms).
CLOCK_AHEAD_S_MAX = 3600.0

Headers = list[tuple[str, bytes | None]]


class Partition(NamedTuple):
    """One partition of a topic."""

    topic: str
    number: int

    def __str__(self) -> str:
        return f"{self.topic}[{self.number}]"


class Record(NamedTuple):
    """A record as read. ``timestamp_ms`` is epoch milliseconds. Header values may be null.

    ``context`` is the trace it belongs to, once that is asked for: its headers need not name one.
    ``unreadable`` says why it, or a whole batch that it stands for, can't be read; then it is no
    tombstone, whatever it has for a value. ``leader_epoch`` counts the leaders of the partition up
    to the one that took the record in; None where that isn't known.
    """

    partition: Partition
    offset: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    timestamp_ms: int
    context: Context | None = None
    unreadable: BadRecordError | None = None
    leader_epoch: int | None = None

    @property
    def is_lost(self) -> bool:
        """True if nothing is known of it but its place, and why."""
        return self.unreadable is not None and self.key is None and self.value is None

    def check_readable(self) -> None:
        """Raise why it can't be read, a BadRecordError, if that is so."""
        if self.unreadable is not None:
            raise self.unreadable

    def came_at(self, now: float) -> float:
        """Return when it was published, epoch seconds, as its producer says.

        ``now`` where that says nothing, as -1 does to Kafka, or more than a wrong clock could.
        """
        at = self.timestamp_ms / 1000
        return at if 0 <= at <= now + CLOCK_AHEAD_S_MAX else now

    @property
    def size_bytes(self) -> int:
        """Of value and headers: what Shunter has added is as large as a short payload."""
        size = len(self.value or b"")
        for _, value in self.headers:
            size += len(value or b"")
        return size

    @property
    def trace_id(self) -> str | None:
        """The 32 hex digits of the record's trace, if it has one."""
        if self.context is not None:
            return f"{self.context.trace_id:032x}"
        return h.trace_id(self.headers)


@dataclass(slots=True)
class Outgoing:
    """A record to write. ``partition`` None lets the key choose, as in every Kafka client.

    ``payload`` is what the value says, before it is encoded, for who watches what is committed;
    ``source`` is the record that evidence is about.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default_factory=list)
    partition: int | None = None
    payload: object = None
    source: Record | None = None


class LogError(Exception):
    """The stage can't go on over this log; whoever sees this leaves the process (rule 5)."""


class TakenOverError(LogError):
    """A partition is another process's meanwhile, or is being given to one."""


class StillOpenError(LogError):
    """A transaction of another has not ended in its time; the brokers may be unable to end it."""


class Membership(Protocol):
    """Told of every change of a consumer's partitions. May not raise."""

    async def assigned(self, partitions: Collection[Partition]) -> None:
        """The partitions are ours from now on, and no record of theirs is polled before this."""
        ...

    async def revoked(self, partitions: Collection[Partition]) -> None:
        """The partitions are not ours once this returns."""
        ...


class Writer(Protocol):
    """A transactional producer. One transaction at a time; readers see all of it or nothing.

    After an error of a call or of a future of ``send`` the writer can only be closed and replaced.
    Any error ends the process, but those in the log's ``refusals`` and those that are passing.
    """

    @property
    def is_cut_off(self) -> bool:
        """Whether the log may have lost the end of the last transaction.

        If so the writer must be replaced: its next transaction could change how that ended.
        """
        ...

    async def begin(self) -> None:
        """Open a transaction."""
        ...

    async def send(self, record: Outgoing) -> Awaitable[object]:
        """Hand a record over; the future returned ends when the log has it or refuses it."""
        ...

    async def commit(self, partition: Partition, next_offset: int, group: str) -> None:
        """Commit, with the group's offset. Only after every future of ``send`` has ended.

        After an error it may or may not have been committed.
        """
        ...

    async def close(self) -> None:
        """Let go without a word; whatever is open is aborted by the successor's fencing."""
        ...


class Log(Protocol):
    """A Kafka cluster as one consumer-group member and its writers see it.

    Callers may rely on: ``poll`` returns committed records only, in offset order per partition;
    ``fence`` returns after whatever a predecessor of that id left open is aborted, and the
    predecessor can write no more; ``read`` sees everything committed before the call.
    """

    @property
    def refusals(self) -> tuple[type[Exception], ...]:
        """Errors that mean: this one record is unfit (too large, invalid), others may pass."""
        ...

    def is_passing(self, error: Exception) -> bool:
        """Tell whether an error may be gone at the next try, with another broker perhaps.

        What was asked for may have been done all the same.
        """
        ...

    async def is_member(self) -> bool:
        """Ask the broker whether the group still counts us, so that our partitions are no others'.

        Answered when a broker is there to ask, however long that takes.
        """
        ...

    async def join(self, group: str, topics: Sequence[str], membership: Membership) -> None:
        """Become a member of the group; ``membership`` is told of partitions.

        Nothing of a partition is polled before ``seek`` has said from where.
        """
        ...

    async def leave(self) -> None:
        """Leave the group and close every reader."""
        ...

    async def poll(
        self,
        timeout_s: float,
        records_max: int,
        paused: Collection[Partition],
        *,
        of_each: bool = False,
    ) -> Mapping[Partition, Sequence[Record]]:
        """Return new records of our partitions, none of those paused. Raises LogError.

        A log that has lost records which were polled is a BrokenLogError
        (streams/engine/continuity.py).

        At most ``records_max`` in all, or as many ``of_each`` partition that has them ready.
        """
        ...

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's committed offset, asked of the broker."""
        ...

    async def lag(self) -> Mapping[Partition, int]:
        """Return how many offsets each of our partitions has that were not polled yet.

        Up to the last stable offset; control markers are among them. A partition of which that
        can't be told at once is absent. Raises nothing and keeps no poll waiting.
        """
        ...

    def unstable(self) -> Mapping[Partition, tuple[int, int]]:
        """Return last stable offset and end of each of our partitions where they differ.

        What lies between them may not be read yet. As of the last answer to a poll: nothing is
        asked, and of a partition that is not polled it may be old.
        """
        ...

    def seek(self, partition: Partition, offset: int, leader_epoch: int | None = None) -> None:
        """Let the next poll of the partition begin at the offset.

        With the leader epoch of the record before it, a poll finds out that the log has lost that.
        """
        ...

    async def bounds(
        self, partitions: Collection[Partition]
    ) -> Mapping[Partition, tuple[int, int]]:
        """Return each partition's first offset and its end (the high watermark)."""
        ...

    async def topic_ids(self, topics: Collection[str]) -> Mapping[str, str]:
        """Return the id of each topic: another one where it was deleted and made again."""
        ...

    async def epoch_end(self, partition: Partition, leader_epoch: int) -> int | None:
        """Return where the records up to a leader epoch end, None where the log has no such."""
        ...

    def read(
        self, starts: Mapping[Partition, int], ends: Mapping[Partition, int] | None = None
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield the committed records from each start to the end as it is now.

        Whoever has asked for ``bounds`` already gives the ends, excluded, of the same partitions.
        """
        ...

    async def fetch(self, partition: Partition, offsets: Collection[int]) -> Mapping[int, Record]:
        """Return the committed records at these offsets; absent where one is gone."""
        ...

    async def fence(self, transactional_id: str) -> Writer:
        """Return the writer of this id; any earlier one is dead from now on."""
        ...
