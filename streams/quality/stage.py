"""The quality watch: judges comparisons of answers, variant by variant, exactly once.

Its state is a compacted topic of one partition, as the comparisons are. Each comparison's effect is
the new state of its test and the new spending of its class, in the transaction that moves on, so
that a successor reads back just what its predecessor made visible.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from policies.quality.sampling import DAY_S
from policies.quality.sequential_test import GROUPS
from policies.quality.verdict_state import KnownQuality
from policies.quality.verdicts import begun, judge, judged_of
from streams.engine.clock import Clock
from streams.engine.log import Log, Outgoing, Partition, Record
from streams.engine.stage import Effect, TransactionPlan
from streams.evidence.immediate_stage import ImmediateStage
from streams.evidence.records import EvidenceWriter
from topics import (
    BadRecordError,
    Comparison,
    Progress,
    QualityEntry,
    VariantQuality,
    WatchSpending,
    decode,
    encode,
    quality_key,
)


@dataclass(frozen=True, slots=True)
class _Judged:
    """Changes by a comparison."""

    state: VariantQuality
    spending: WatchSpending

    def entries(self) -> tuple[QualityEntry, QualityEntry]:
        """Return the entries of the topic."""
        return QualityEntry(variant=self.state), QualityEntry(spending=self.spending)


class QualityWatch(ImmediateStage):
    """The stage from comparisons to verdicts and their evidence."""

    def __init__(self, evidence_writer: EvidenceWriter, clock: Clock) -> None:
        super().__init__(evidence_writer, clock)
        self._known = KnownQuality()

    @property
    def group(self) -> str:
        """The consumer group."""
        return self._catalogue.quality_group

    @property
    def topics(self) -> Sequence[str]:
        """The comparisons."""
        return (self._catalogue.comparisons,)

    async def restore(self, partition: Partition, progress: Progress | None, log: Log) -> None:
        """Read all states back; an unreadable one begins anew."""
        self._known = KnownQuality()
        home = Partition(self._catalogue.quality, partition.number)
        first, end = (await log.bounds([home]))[home]
        async for records in log.read({home: first}, {home: end}):
            for record in records:
                if record.value is None or record.unreadable is not None:
                    continue
                try:
                    self._known.take(decode(QualityEntry, record.value))
                except BadRecordError:
                    continue

    def forget(self, partition: Partition) -> None:
        """Drop the states; they are another's now."""
        self._known = KnownQuality()

    async def work(self, partition: Partition, records: Sequence[Record]) -> TransactionPlan | None:
        """Return the effect of each comparison, each on top of those before it."""
        if not records:
            return None
        now = self._clock.now()
        states, spent = dict(self._known.variants), dict(self._known.spent)
        effects = []
        for record in records:
            effect = self._judge(record, states, spent, now)
            if isinstance(effect.subject, _Judged):
                state, spending = effect.subject.state, effect.subject.spending
                states[judged_of(state)], spent[spending.task] = state, spending
            effects.append(effect)
        return TransactionPlan(Progress(records[-1].offset + 1), effects)

    def done(self, partition: Partition, work: TransactionPlan) -> None:
        """Keep the states that are visible now."""
        for effect in work.effects:
            if isinstance(effect.subject, _Judged):
                for entry in effect.subject.entries():
                    self._known.take(entry)

    def _judge(
        self,
        record: Record,
        states: dict[tuple[str, str, str, str | None], VariantQuality],
        spent: dict[str, WatchSpending],
        now: float,
    ) -> Effect:
        try:
            record.check_readable()
            comparison = decode(Comparison, record.value or b"")
            _check(comparison)
        except Exception as error:  # noqa: BLE001 - no record ends a process
            return self._evidence_writer.set_aside(record, error, now, is_accepted=False)
        before = states.get(judged_of(comparison)) or begun(comparison)
        judged = _Judged(judge(before, comparison), _spending(spent, comparison))
        written = [self._entry(entry) for entry in judged.entries()]
        if judged.state.verdict != before.verdict:
            written.append(self._evidence_writer.verdict(record, comparison, judged.state, now))
        return Effect(record, written, subject=judged)

    def _entry(self, entry: QualityEntry) -> Outgoing:
        return Outgoing(
            self._catalogue.quality,
            quality_key(entry),
            encode(entry),
            payload=entry,
            partition=0,
        )


def _check(comparison: Comparison) -> None:
    """Refuse what no worker writes: the test's guarantee is for differences from 0 to 1.

    Raises:
        BadRecordError: a value is out of its range.
    """
    difference = comparison.difference
    is_in_range = difference is None or 0.0 <= difference <= 1.0
    group = comparison.answer_group
    is_in_range &= group is None or 0 <= group < GROUPS
    if not (is_in_range and 0.0 < comparison.within < 1.0 and comparison.cost_usd >= 0.0):
        raise BadRecordError(
            "validate",
            "invalid_record",
            f"difference {difference}, within {comparison.within}, cost_usd"
            f" {comparison.cost_usd}, answer_group {group}: out of range",
        )


def _spending(spent: dict[str, WatchSpending], comparison: Comparison) -> WatchSpending:
    """Return the spending of a class with a comparison's cost, on the day of the comparison."""
    day = int(comparison.at // DAY_S)
    before = spent.get(comparison.task)
    if before is None or before.day < day:
        before = WatchSpending(comparison.task, day)
    return replace(before, usd=before.usd + comparison.cost_usd, runs=before.runs + 1)
