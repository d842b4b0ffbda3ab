"""The canceller: evidence of each cancellation, whatever its outcome."""

from collections.abc import Sequence

from streams.engine.clock import Clock
from streams.engine.log import Log, LogError, Outgoing, Partition, Record
from streams.engine.stage import Effect, TransactionPlan
from streams.evidence.records import EvidenceWriter
from topics import Progress, parse_cancellation


class Canceller:
    """The stage from the cancellations to evidence.

    It ends no request: the process that has it does. It is the one owner of each cancellation, so
    that there is one piece of evidence even if no process has the request.
    """

    accumulates = False

    def __init__(self, evidence_writer: EvidenceWriter, clock: Clock) -> None:
        self._evidence_writer = evidence_writer
        self._catalogue = evidence_writer.catalogue
        self._clock = clock

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._catalogue.canceller_group

    @property
    def topics(self) -> Sequence[str]:
        """The cancellations."""
        return (self._catalogue.cancellations,)

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

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Return the evidence of each record."""
        if not records:
            return None
        now = self._clock.now()
        progress = Progress(records[-1].offset + 1)
        return TransactionPlan(progress, [self._evidence(record, now) for record in records])

    def refused(self, effect: Effect, record: Outgoing, error: Exception) -> list[Effect]:
        """Dead-letter a cancellation whose evidence the log refuses."""
        if effect.source is None:
            raise LogError(f"{record.topic} refused a record without a source") from error
        now = self._clock.now()
        return [
            self._evidence_writer.dead_letter(
                effect.source, error, stage="produce", reason="refused", now=now
            )
        ]

    def _evidence(self, record: Record, now: float) -> Effect:
        try:
            if record.is_lost:
                record.check_readable()
            request_id, _ = parse_cancellation(record.key, record.value)
            evidence = self._evidence_writer.cancel_requested(record, request_id, now)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            return self._evidence_writer.set_aside(record, error, now, is_accepted=False)
        return Effect(record, [evidence])
