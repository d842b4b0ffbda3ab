"""A stage: the processing of a partition's records, apart from how its effects are committed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from streams.engine.log import Log, Outgoing, Partition, Record
from topics import Progress
from topics.records import headers as h


@dataclass(slots=True)
class Effect:
    """Records that stand or fall together, and the input that they answer (None for a timer)."""

    source: Record | None
    records: list[Outgoing]
    is_dead_letter: bool = False
    subject: object = None
    """Whatever the stage wants to find again in ``done`` or ``refused``."""
    spare: Outgoing | None = None
    """Takes the place of the first record where the log refuses that."""


class Refusal(NamedTuple):
    """A record that the log won't take, and the effect it belongs to."""

    effect: Effect
    record: Outgoing
    error: Exception

    @property
    def trace_id(self) -> str | None:
        """The trace of the request that the record is about, which its headers need not name."""
        told: str | None = getattr(self.record.payload, "trace_id", None)
        source = self.effect.source
        return told or h.trace_id(self.record.headers) or (source and source.trace_id)


@dataclass(slots=True)
class TransactionPlan:
    """One transaction: the effects, and how far the stage has come once they are visible."""

    progress: Progress
    effects: list[Effect] = field(default_factory=list)


Observer = Callable[[Partition, Sequence[Effect]], None]
"""Told of the effects of a transaction on a partition once they are visible. May not raise."""


class Stage(Protocol):
    """What the transactor drives. All calls for one partition come one after another.

    A stage changes its memory for good only in ``done``; if the transaction fails for any other
    reason than a refused record the process ends, and the memory with it.
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
    ) -> int | None:
        """Rebuild the memory of a partition just taken over, and return where to read on.

        None leaves it to ``progress`` or, where there is none, to the beginning of the topic.
        """
        ...

    @property
    def accumulates(self) -> bool:
        """Whether what it takes may stay with it; then a poll takes no more than its limit in all.

        Else so many of each partition, which go on as so many transactions.
        """
        ...

    def forget(self, partition: Partition) -> None:
        """Drop the memory of a partition that is not ours any more."""
        ...

    def wants(self, partition: Partition) -> bool:
        """Tell whether more records can be taken; False pauses the partition."""
        ...

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Take the records (perhaps none) and return what to commit now, None for nothing."""
        ...

    def done(self, partition: Partition, work: TransactionPlan) -> None:
        """The work is visible to the world."""
        ...

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        """Return what to commit in place of an effect of which the log refused a record."""
        ...

    def idle_s(self) -> float:
        """Return how long the loop may wait for records before ``work`` should be called."""
        ...
