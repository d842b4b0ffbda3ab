"""The canceller: evidence of each cancellation, whatever its outcome."""

from collections.abc import Sequence

from streams.engine.log import Partition, Record
from streams.engine.stage import Effect, TransactionPlan
from streams.evidence.immediate_stage import ImmediateStage
from topics import Progress, parse_cancellation


class Canceller(ImmediateStage):
    """The stage from the cancellations to evidence.

    It ends no request: the process that has it does. It is the one owner of each cancellation, so
    that there is one piece of evidence even if no process has the request.
    """

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._catalogue.canceller_group

    @property
    def topics(self) -> Sequence[str]:
        """The cancellations."""
        return (self._catalogue.cancellations,)

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Return the evidence of each record."""
        if not records:
            return None
        now = self._clock.now()
        progress = Progress(records[-1].offset + 1)
        return TransactionPlan(progress, [self._evidence(record, now) for record in records])

    def _evidence(self, record: Record, now: float) -> Effect:
        try:
            if record.is_lost:
                record.check_readable()
            request_id, _ = parse_cancellation(record.key, record.value)
            evidence = self._evidence_writer.cancel_requested(record, request_id, now)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            return self._evidence_writer.set_aside(record, error, now, is_accepted=False)
        return Effect(record, [evidence])
