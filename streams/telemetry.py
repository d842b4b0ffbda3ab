"""Traces: one per request, through every topic, by W3C trace context in Kafka headers.

A stage only hands contexts on: the id of the span that a record is sent by goes into its headers.
The spans themselves are written when the transaction is visible (``streams/spans.py``), so that a
trace tells what happened, and an aborted transaction leaves none.
"""

from collections.abc import Iterable, Mapping

from opentelemetry.sdk.trace import Event, ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import (
    Link,
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    set_span_in_context,
)
from opentelemetry.util.types import AttributeValue

from streams.context import SAMPLED, Context
from streams.log import Record
from streams.outbox import Outbox
from topics import headers as h

NS_PER_S = 1_000_000_000
# Traces that are begun late, in a second, by one process. In an overload every request may expire,
# and writing each of them would take time from those that could still be served.
LATE_PER_S_MAX = 50

Attributes = Mapping[str, AttributeValue]

_SCOPE = InstrumentationScope("shunter")
_SAMPLED = TraceFlags(SAMPLED)
_UNSET = Status(StatusCode.UNSET)


class Telemetry:
    """Hands contexts on and writes spans; without a provider it does neither."""

    def __init__(self, provider: TracerProvider | None, outbox: Outbox | None = None) -> None:
        self._provider = provider
        self._outbox = outbox
        self._late_since = 0.0
        self._late = 0

    @property
    def is_on(self) -> bool:
        """Whether this process traces."""
        return self._provider is not None

    @property
    def dropped_spans(self) -> int:
        """Spans that were written and will reach no collector."""
        return 0 if self._outbox is None else self._outbox.dropped

    def admitted(self, record: Record) -> Record:
        """Return a record that comes from outside, with its context and the sampler's decision."""
        if self._provider is None:
            return record
        return Record(*record[:-1], self._sampled(Context.of(record.headers)))

    def entered(self, record: Record) -> Record:
        """Return a record of an inner topic with its context; what was decided on it stands."""
        if self._provider is None or record.context is not None:
            return record
        return record._replace(context=Context.of(record.headers) or self.begin())

    def begin(self) -> Context:
        """Return the context of a trace that begins here, and that nobody has decided on."""
        return self._sampled(None)

    def sent(self, record: Record, *, late_at: float | None = None) -> dict[str, bytes]:
        """Return the header of what goes on from a record: the context of the span that sends it.

        With ``late_at``, the time, what comes of the request is traced though it wasn't before.
        """
        if self._provider is None:
            return {}
        own = record.context or Context.of(record.headers) or self.begin()
        is_sampled = own.is_sampled or (late_at is not None and self.may_begin_late(late_at))
        span_id = self._provider.id_generator.generate_span_id()
        return {h.TRACEPARENT: Context(own.trace_id, span_id, is_sampled).header()}

    def batch(self, members: Iterable[Record]) -> dict[str, bytes]:
        """Return the header by which members of a batch know its span, in a trace of its own."""
        if self._provider is None:
            return {}
        contexts = (record.context for record in members)
        is_sampled = any(context is not None and context.is_sampled for context in contexts)
        trace_id = self._provider.id_generator.generate_trace_id()
        return {h.BATCH_TRACEPARENT: Context(trace_id, self.new_id(), is_sampled).header()}

    def may_begin_late(self, now: float) -> bool:
        """Tell whether a request that was not sampled may be traced late, and count it."""
        if now - self._late_since >= 1.0:
            self._late_since, self._late = now, 0
        self._late += 1
        return self._late <= LATE_PER_S_MAX

    def new_id(self) -> int:
        """Return the id of a span."""
        return self._provider.id_generator.generate_span_id() if self._provider else 0

    def write(
        self,
        name: str,
        kind: SpanKind,
        own: Context,
        parent_id: int,
        times: tuple[float, float],
        attributes: Attributes,
        *,
        events: Iterable[tuple[str, float, Attributes]] = (),
        links: Iterable[tuple[Context, Attributes]] = (),
        error: tuple[str, str] | None = None,
    ) -> int:
        """Write a span that has ended, and return its id.

        Args:
            name: as the conventions want it, without anything that many requests differ in.
            kind: likewise.
            own: the span's own context; an id of 0 is replaced by a new one.
            parent_id: of the span above it; 0 for none.
            times: start and end, in epoch seconds.
            attributes: no text of a request.
            events: name, time and attributes.
            links: to spans of other traces.
            error: code and message of a failure.
        """
        if self._provider is None or self._outbox is None:
            return own.span_id
        start_s, end_s = times
        span_id = own.span_id or self.new_id()
        if error is not None:
            attributes = {**attributes, "error.type": error[0]}
        # Not by way of a tracer: that draws the id itself, and takes five times as long.
        self._outbox.put(
            ReadableSpan(
                name,
                _span_context(own.trace_id, span_id),
                parent=_span_context(own.trace_id, parent_id) if parent_id else None,
                resource=self._provider.resource,
                attributes=attributes,
                events=[Event(told, about, int(at * NS_PER_S)) for told, at, about in events],
                links=[Link(_span_context(to.trace_id, to.span_id), told) for to, told in links],
                kind=kind,
                status=_UNSET if error is None else Status(StatusCode.ERROR, error[1]),
                start_time=int(start_s * NS_PER_S),
                end_time=int(max(start_s, end_s) * NS_PER_S),
                instrumentation_scope=_SCOPE,
            )
        )
        return span_id

    def close(self) -> None:
        """Send what is still waiting, as far as that goes quickly."""
        if self._outbox is not None:
            self._outbox.close()

    def _sampled(self, parent: Context | None) -> Context:
        if self._provider is None:
            raise ValueError("nothing is traced here")
        over = None
        trace_id = 0 if parent is None else parent.trace_id
        if parent is None:
            trace_id = self._provider.id_generator.generate_trace_id()
        else:
            span = SpanContext(
                trace_id, parent.span_id, is_remote=True, trace_flags=TraceFlags(parent.is_sampled)
            )
            over = set_span_in_context(NonRecordingSpan(span))
        result = self._provider.sampler.should_sample(over, trace_id, "process")
        span_id = 0 if parent is None else parent.span_id
        return Context(trace_id, span_id, result.decision is Decision.RECORD_AND_SAMPLE)


def _span_context(trace_id: int, span_id: int) -> SpanContext:
    return SpanContext(trace_id, span_id, is_remote=False, trace_flags=_SAMPLED)
