"""Spans of visible work: an observer of the transactor, which receives all evidence.

A record has a ``process`` span where it was decided on or run, and below it a ``send`` span for
each topic it was sent to. The span of a forwarded record has the id in its ``traceparent``; the
next process puts its own spans below that.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain

from opentelemetry.trace import SpanKind

from streams.engine.clock import Clock
from streams.engine.log import Outgoing, Partition, Record
from streams.engine.stage import Effect
from streams.engine.trace_context import Context
from streams.tracing import span_attributes as a
from streams.tracing.late_spans import write_earlier
from streams.tracing.telemetry import Telemetry
from topics import Catalogue, Evidence
from topics.records import headers as h
from topics.records.evidence import Source, Step

# Steps on the way to an answer. Any other is worth a trace, sampled or not.
_ON_THE_WAY: frozenset[Step] = frozenset({"placed", "held", "released", "executed"})

_NONE = Context(0, 0, is_sampled=False)

Links = Sequence[tuple[Context, bytes]]


@dataclass(slots=True)
class CommittedStep:
    """All visible effects of one record, and their place in its trace.

    ``own`` is the context of the record, ``parent_id`` the span that its spans hang below.
    """

    evidence: Evidence
    source: Record
    effect: Effect
    own: Context
    sent: list[Outgoing]
    at: float
    parent_id: int = 0
    is_late: bool = False

    @property
    def error(self) -> tuple[str, str] | None:
        """Code and message of a failed step."""
        if self.evidence.step in _ON_THE_WAY:
            return None
        code = self.evidence.reason or self.evidence.step
        return code, self.evidence.message or code


class Spans(ABC):
    """Writes the spans of one stage."""

    def __init__(self, telemetry: Telemetry, catalogue: Catalogue, clock: Clock) -> None:
        self.telemetry = telemetry
        self.catalogue = catalogue
        self._clock = clock

    def __call__(self, partition: Partition, effects: Sequence[Effect]) -> None:
        """Write the spans of a transaction that has become visible."""
        if not self.telemetry.is_on:
            return
        now = self._clock.now()
        for effect in effects:
            if self._is_of_interest(effect):
                self.effect(effect, self._visible(effect, now))

    def effect(self, effect: Effect, visible: Sequence[CommittedStep]) -> None:
        """Write the spans of one effect with these traced records."""
        for each in visible:
            self.record(each)

    @abstractmethod
    def record(self, visible: CommittedStep) -> None:
        """Write the spans of one record."""

    def write(
        self,
        visible: CommittedStep,
        name: str,
        kind: SpanKind,
        parent_id: int,
        times: tuple[float, float],
        said: a.Said,
        *,
        span_id: int = 0,
        events: Iterable[bytes] = (),
        links: Links = (),
        error: tuple[str, str] | None = None,
    ) -> int:
        """Write a span of a record's trace, which says so, and return its id."""
        own = Context(visible.own.trace_id, span_id, is_sampled=True)
        said += a.message(visible.evidence.request_id)
        if visible.is_late:
            said += a.SAMPLED_LATE
        return self.telemetry.write(
            name, kind, own, parent_id, times, said, events=events, links=links, error=error
        )

    def send(self, visible: CommittedStep, parent_id: int, links: Links = ()) -> None:
        """Write a span for each record sent."""
        for outgoing in visible.sent:
            said = a.messaging(outgoing.topic, "send")
            fallback = visible.evidence.fallback
            if fallback is not None:
                attempt = visible.evidence.attempt + 1
                said += a.said(
                    {"shunter.fallback.reason": fallback.reason, "shunter.attempt": attempt}
                )
            passed_on = self._passed_on(outgoing)
            span_id = 0 if passed_on is None else passed_on.span_id
            times = (visible.evidence.at, visible.at)
            self.write(
                visible, f"send {outgoing.topic}", SpanKind.PRODUCER, parent_id, times, said,
                span_id=span_id, links=links,
            )  # fmt: skip

    def is_worth_it(self, evidence: Evidence, effect: Effect) -> bool:
        """Return whether an unsampled request should be traced after all."""
        return evidence.step not in _ON_THE_WAY

    def _passed_on(self, outgoing: Outgoing) -> Context | None:
        """Return the context of a record that a stage forwards; others keep the client's."""
        if outgoing.topic in {self.catalogue.results, self.catalogue.dead_letters}:
            return None
        return Context.of(outgoing.headers)

    def _is_of_interest(self, effect: Effect) -> bool:
        """Return whether an effect may be traced: for most, nothing more is examined."""
        for outgoing in effect.records:
            told, source = outgoing.payload, outgoing.source
            if source is None or not isinstance(told, Evidence):
                continue
            if self._context(source).is_sampled or self.is_worth_it(told, effect):
                return True
        return False

    def _context(self, record: Record) -> Context:
        return record.context or self.telemetry.entered(record).context or _NONE

    def _visible(self, effect: Effect, now: float) -> list[CommittedStep]:
        found: dict[Source, CommittedStep] = {}
        sent: dict[bytes, list[Outgoing]] = {}
        for outgoing in effect.records:
            told, source = outgoing.payload, outgoing.source
            if isinstance(told, Evidence) and source is not None:
                own = self._context(source)
                mine = sent.setdefault(told.request_id.encode(), [])
                # The last piece of evidence of a record has its end.
                found[told.source] = CommittedStep(
                    told, source, effect, own, mine, now, own.span_id
                )
            elif outgoing.value is not None and outgoing.topic != self.catalogue.streams:
                sent.setdefault(outgoing.key or b"", []).append(outgoing)
        if len(found) == 1:
            # The key of a dead letter is the client's.
            (only,) = found.values()
            only.sent = list(chain.from_iterable(sent.values()))
        return [each for each in found.values() if self._is_traced(each)]

    def _is_traced(self, visible: CommittedStep) -> bool:
        if visible.own.is_sampled:
            return True
        if not self.is_worth_it(visible.evidence, visible.effect):
            return False
        going_on = [c for each in visible.sent if (c := self._passed_on(each)) is not None]
        if going_on:
            # It was decided when the context was passed on.
            visible.is_late = any(context.is_sampled for context in going_on)
        else:
            visible.is_late = self.telemetry.may_begin_late(visible.at)
        if visible.is_late:
            visible.parent_id = write_earlier(self.telemetry, self.catalogue, visible.source)
        return visible.is_late


def batch_of(outgoing: Iterable[Outgoing] | Iterable[Record]) -> Context | None:
    """Return the context of the batch of these records, if its span is written."""
    for each in outgoing:
        context = Context.of(each.headers, h.BATCH_TRACEPARENT)
        if context is not None and context.is_sampled:
            return context
    return None
