"""A stage: the processing of a partition's records, apart from how its effects are committed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from streams.engine.log import Log, Outgoing, Partition, Record
from topics import Progress
from topics.records import headers as h


@dataclass(slots=True)
class Effect:
    """Records committed together, and the input that they answer (None for a timer)."""

    source: Record | None
    records: list[Outgoing]
    is_dead_letter: bool = False
    subject: object = None
    """The stage's own data for ``done`` or ``refused``."""


class Refusal(NamedTuple):
    """A record that the log refuses, and its effect."""

    effect: Effect
    record: Outgoing
    error: Exception

    @property
    def trace_id(self) -> str | None:
        """The trace of the request that the record is about; its headers need not name it."""
        told: str | None = getattr(self.record.payload, "trace_id", None)
        source = self.effect.source
        return told or h.trace_id(self.record.headers) or (source and source.trace_id)


@dataclass(slots=True)
class TransactionPlan:
    """One transaction: the effects, and the stage's progress once they are visible."""

    progress: Progress
    effects: list[Effect] = field(default_factory=list)


Observer = Callable[[Partition, Sequence[Effect]], None]
"""Receives the visible effects of a transaction on a partition. May not raise."""


Timed = Callable[[str, Partition, float], None]
"""Receives each committed transaction: its group, input partition, and duration in seconds."""


class ReadTo(NamedTuple):
    """A position to read on from, and the leader epoch of the record before it, None if unknown.

    Records that a stage has read beyond its progress may be of a later leader than progress tells.
    """

    next_offset: int
    leader_epoch: int | None


class Stage(Protocol):
    """The interface that the transactor drives. Calls for one partition are sequential.

    A stage changes its memory for good only in ``done``. If the transaction fails for any reason
    other than a refused record, the process ends, and the memory with it.
    """

    @property
    def group(self) -> str:
        """The consumer group."""
        ...

    @property
    def topics(self) -> Sequence[str]:
        """The topics consumed."""
        ...

    async def restore(
        self, partition: Partition, progress: Progress | None, log: Log
    ) -> ReadTo | None:
        """Rebuild the memory of a partition just taken over, and return where to read on.

        None means the position in ``progress`` or, without one, the beginning of the topic.
        """
        ...

    @property
    def accumulates(self) -> bool:
        """True if records may accumulate; the poll limit is then for all partitions together.

        Otherwise it is for each partition, each with its own transaction.
        """
        ...

    def forget(self, partition: Partition) -> None:
        """Drop the memory of a partition that is no longer ours."""
        ...

    def wants(self, partition: Partition) -> bool:
        """Return whether more records can be taken; False pauses the partition."""
        ...

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Process the records (perhaps none) and return what to commit now, None for nothing."""
        ...

    def done(self, partition: Partition, work: TransactionPlan) -> None:
        """Note that the work is visible."""
        ...

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        """Return what to commit in place of an effect with a record that the log refused."""
        ...

    def idle_s(self) -> float:
        """Return how long the loop may wait for records before ``work`` should be called."""
        ...
