"""The engine's interface to Kafka, kept minimal so that a simulated log can take its place."""

from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from streams.engine.trace_context import Context
from topics import BadRecordError
from topics.records import headers as h

# Kafka's default limit for how far a producer's clock may be ahead
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

    ``context`` is the record's trace, once it has been read: its headers need not name one.
    ``unreadable`` says why the record, or a whole batch that it stands for, can't be read; it is
    then never a tombstone, whatever its value. ``leader_epoch`` is that of the leader that appended
    the record; None if unknown.
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
        """True if only its position is known, and the reason."""
        return self.unreadable is not None and self.key is None and self.value is None

    def check_readable(self) -> None:
        """Raise a BadRecordError with the reason if the record is unreadable."""
        if self.unreadable is not None:
            raise self.unreadable

    def came_at(self, now: float) -> float:
        """Return the time of publication by the producer's clock, in epoch seconds.

        ``now`` if that time is unset (-1 in Kafka), or further off than a wrong clock could be.
        """
        at = self.timestamp_ms / 1000
        return at if 0 <= at <= now + CLOCK_AHEAD_S_MAX else now

    @property
    def size_bytes(self) -> int:
        """Size of value and headers: Shunter's headers can be as large as a short payload."""
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

    ``payload`` is the decoded value, for observers of commits; ``source`` is the record that
    evidence is about. ``spare`` makes what is written instead where the log refuses the record.
    """

    topic: str
    key: bytes | None
    value: bytes | None
    headers: Headers = field(default_factory=list)
    partition: int | None = None
    payload: object = None
    source: Record | None = None
    spare: "Callable[[], Outgoing] | None" = None


class LogError(Exception):
    """The stage can't continue on this log; the process must end (rule 5)."""


class TakenOverError(LogError):
    """A partition belongs to another process by now, or is being moved to one."""


class StillOpenError(LogError):
    """Another's transaction outlasted its timeout; the brokers may be unable to end it."""


class GroupOffset(NamedTuple):
    """A group's offset on a partition: all below it is done."""

    group: str
    partition: Partition
    next_offset: int


class Membership(Protocol):
    """Receives every change of a consumer's partitions. May not raise."""

    async def assigned(self, partitions: Collection[Partition]) -> None:
        """The partitions are ours; none of their records was polled before this call."""
        ...

    async def revoked(self, partitions: Collection[Partition]) -> None:
        """The partitions are not ours once this returns."""
        ...


class Writer(Protocol):
    """A transactional producer. One transaction at a time; readers see all of it or nothing.

    After an error of a call or of a future of ``send`` the writer can only be closed and replaced.
    Any error ends the process, except the log's ``refusals`` and passing errors.
    """

    @property
    def is_cut_off(self) -> bool:
        """True if the log may have lost the end of the last transaction.

        If so ``has_ended`` must be asked, and the writer replaced unless it returns True: the next
        transaction could change how that one ended.
        """
        ...

    async def has_ended(self) -> bool:
        """Ask the log, between two transactions, if the last one is committed everywhere.

        Where it is the writer is cut off no more. False also if the log does not tell in time.
        """
        ...

    async def begin(self) -> None:
        """Open a transaction."""
        ...

    async def send(self, record: Outgoing) -> Awaitable[object]:
        """Queue a record; the returned future ends when the log has it or refuses it."""
        ...

    async def commit(self, moved: GroupOffset | None = None) -> None:
        """Commit. Call only after every future of ``send`` has ended.

        After an error the transaction may or may not be committed.

        Args:
            moved: a group's offset that is set with it, even back.
        """
        ...

    async def close(self) -> None:
        """Close without ending the transaction; the successor's fencing aborts it."""
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
        """Return whether a retry may succeed after this error, perhaps with another broker.

        The failed request may have been carried out all the same.
        """
        ...

    async def is_member(self) -> bool:
        """Ask the broker if the group still counts us, so that no other has our partitions.

        Waits for a broker to answer, however long that takes.
        """
        ...

    async def join(self, group: str, topics: Sequence[str], membership: Membership) -> None:
        """Join the group; ``membership`` receives its partitions.

        No partition is polled before ``seek`` has set its position.
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
        """Return new records of our partitions, except paused ones. Raises LogError.

        If the log has lost records that were polled, that is a BrokenLogError
        (streams/engine/continuity.py).

        At most ``records_max`` in total, or up to ``of_each`` per partition that has them ready.
        """
        ...

    async def committed(self, partition: Partition) -> int | None:
        """Return the group's committed offset, asked of the broker."""
        ...

    async def commit_offsets(self, offsets: Mapping[Partition, int]) -> None:
        """Set the group's offsets outside of any transaction, for tools that show lag.

        Raises:
            LogError: not now: the group rebalances, or does not count us, or no broker answers.
        """
        ...

    async def lag(self) -> Mapping[Partition, int]:
        """Return the number of unpolled offsets of each of our partitions.

        Counted up to the last stable offset, control markers included. A partition whose lag isn't
        known at once is absent. Never raises or delays a poll.
        """
        ...

    def unstable(self) -> Mapping[Partition, tuple[int, int]]:
        """Return last stable offset and end of each of our partitions where they differ.

        Records between them may not be read yet. The values are those of the last poll, and may be
        old for a partition that is not polled; no request is sent.
        """
        ...

    def seek(self, partition: Partition, offset: int, leader_epoch: int | None = None) -> None:
        """Set the offset at which the next poll of the partition begins.

        With the leader epoch of the record before it, a poll detects that the log has lost that
        record.
        """
        ...

    async def bounds(
        self, partitions: Collection[Partition]
    ) -> Mapping[Partition, tuple[int, int]]:
        """Return each partition's first offset and its end (the high watermark)."""
        ...

    async def topic_ids(self, topics: Collection[str]) -> Mapping[str, str]:
        """Return the id of each topic: a new one if it was deleted and made again."""
        ...

    async def epoch_end(self, partition: Partition, leader_epoch: int) -> int | None:
        """Return where the records up to a leader epoch end, None if the log has none."""
        ...

    def read(
        self, starts: Mapping[Partition, int], ends: Mapping[Partition, int] | None = None
    ) -> AsyncIterator[Sequence[Record]]:
        """Yield the committed records from each start to the current end.

        A caller that has already asked for ``bounds`` passes the ends, excluded, of the same
        partitions.
        """
        ...

    async def fetch(self, partition: Partition, offsets: Collection[int]) -> Mapping[int, Record]:
        """Return the committed records at these offsets; missing ones are absent."""
        ...

    async def fence(self, transactional_id: str) -> Writer:
        """Return the writer of this id, and fence any earlier one."""
        ...
