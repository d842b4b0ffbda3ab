"""The base of the stages that answer each record in the transaction that takes it."""

from streams.engine.clock import Clock
from streams.engine.log import Log, LogError, Outgoing, Partition
from streams.engine.stage import Effect, TransactionPlan
from streams.evidence.records import EvidenceWriter
from topics import Progress


class ImmediateStage:
    """A stage without a backlog and without timers; what it keeps of a partition is its own."""

    accumulates = False

    def __init__(self, evidence_writer: EvidenceWriter, clock: Clock) -> None:
        self._evidence_writer = evidence_writer
        self._catalogue = evidence_writer.catalogue
        self._clock = clock

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        """Nothing to rebuild."""

    def forget(self, partition: Partition) -> None:
        """Nothing to forget."""

    def wants(self, partition: Partition) -> bool:
        """Return True: nothing accumulates."""
        return True

    def idle_s(self) -> float:
        """Return infinity: no timers."""
        return float("inf")

    def done(self, partition: Partition, work: TransactionPlan) -> None:
        """Nothing is kept."""

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        """Dead-letter the record that the refused effect answers."""
        if effect.source is None:
            raise LogError(f"{record.topic} refused a record without a source") from error
        now = self._clock.now()
        return [
            self._evidence_writer.dead_letter(
                effect.source, error, stage="produce", reason="refused", now=now
            )
        ]
