"""The stage that answers questions on `inference.quotes`, each once."""

from collections.abc import Sequence

from policies import UnservableError
from streams.config.active_policy import DecisionContext
from streams.engine.clock import Clock
from streams.engine.log import Partition, Record
from streams.engine.stage import Effect, TransactionPlan
from streams.evidence.immediate_stage import ImmediateStage
from streams.router.gate import Gate
from streams.router.quote_desk import QuoteDesk
from topics import Progress
from topics.records.quote import parse_question


class QuoteStage(ImmediateStage):
    """From questions to answers; it keeps nothing."""

    def __init__(
        self,
        terms: DecisionContext,
        clock: Clock,
        *,
        request_bytes_max: int,
        quote_secret: str | None = None,
        key_secret: str | None = None,
    ) -> None:
        super().__init__(terms.evidence_writer, clock)
        self._terms = terms
        self._request_bytes_max = request_bytes_max
        self._desk = QuoteDesk(quote_secret)
        self._gate = Gate(terms.situation.policy, key_secret)

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._catalogue.quote_group

    @property
    def topics(self) -> Sequence[str]:
        """The questions."""
        return (self._catalogue.quotes,)

    def take_context(self, terms: DecisionContext) -> None:
        """Adopt new terms. Only while no work is in flight."""
        self._terms, self._evidence_writer = terms, terms.evidence_writer
        self._gate.take(terms.situation.policy)

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Return the answer to each question."""
        if not records:
            return None
        now = self._clock.now()
        self._terms.situation.view.prune(now)
        effects = [self._answer(record, now) for record in records]
        return TransactionPlan(Progress(records[-1].offset + 1), effects)

    def _answer(self, record: Record, now: float) -> Effect:
        writer, here, tokens = self._evidence_writer, self._terms.situation, self._terms.tokens
        try:
            record.check_readable()
            question = parse_question(record.value, bytes_max=self._request_bytes_max)
            # All are of one tenant; a proof is of the first one's id.
            first = question.requests[0]
            try:
                key = self._gate.admit(record, first, 1.0, now)
            except UnservableError as error:
                return self._desk.refusal(record, question, error, writer, now)
            return self._desk.answer(record, question, here, writer, tokens, now, key)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            return writer.set_aside(record, error, now, is_accepted=False)
