"""Traces: one per request, through every topic, by W3C trace context in Kafka headers.

A stage only passes contexts on: the id of the span that a record is sent by goes into its headers.
The spans themselves are written when the transaction is visible (``streams/tracing/spans.py``), so
that a trace shows what happened, and an aborted transaction leaves none.
"""

from collections.abc import Iterable

from opentelemetry.trace import SpanKind

from streams.engine.log import Record
from streams.engine.trace_context import Context, traceparent
from streams.tracing import otlp_encoding as otlp
from streams.tracing import span_attributes as a
from streams.tracing.sampling import Sampling, new_span_id, new_trace_id
from streams.tracing.span_queue import SpanQueue
from topics.records import headers as h

# Traces begun late by one process, per second. In an overload every request may expire, and writing
# each of them would take time from those that could still be served.
LATE_PER_S_MAX = 50


class Telemetry:
    """Passes contexts on and writes spans; without a sampling it does neither.

    ``text_max`` is how many characters of a request and of its answer the span of an inference
    shows; 0, unless somebody has switched them on.
    """

    def __init__(
        self, sampling: Sampling | None, span_queue: SpanQueue | None = None, *, text_max: int = 0
    ) -> None:
        self.text_max = text_max
        self._sampling = sampling
        self._span_queue = span_queue
        self._late_since = 0.0
        self._late = 0
        self._left_out = 0

    @property
    def is_on(self) -> bool:
        """True if this process traces."""
        return self._sampling is not None

    @property
    def dropped_spans(self) -> int:
        """Spans that were written and will reach no collector."""
        return 0 if self._span_queue is None else self._span_queue.dropped

    @property
    def left_out_traces(self) -> int:
        """Late traces that were not begun, because of too many in the same second."""
        return self._left_out

    def admitted(self, record: Record) -> Record:
        """Return a record from outside, with its context and the sampler's decision."""
        if self._sampling is None:
            return record
        where, offset, key, value, headers, timestamp_ms, _, unreadable, epoch = record
        context = self._sampled(Context.of(headers) if headers else None)
        return Record(where, offset, key, value, headers, timestamp_ms, context, unreadable, epoch)

    def entered(self, record: Record) -> Record:
        """Return a record of an inner topic with its context; its sampling decision stands."""
        if self._sampling is None or record.context is not None:
            return record
        return record._replace(context=Context.of(record.headers) or self.begin())

    def begin(self) -> Context:
        """Return the context of a trace that begins here, with the sampler's decision."""
        return self._sampled(None)

    def continued(self, client: Context | None) -> Context:
        """Return the context of what comes of a client's span, with the sampler's decision."""
        return self._sampled(client)

    def sent(self, record: Record, *, late_at: float | None = None) -> dict[str, bytes]:
        """Return the header of a forwarded record: the context of the span that sends it.

        With ``late_at``, the time, the request is traced from here on though it wasn't before.
        """
        if self._sampling is None:
            return {}
        trace_id, _, is_sampled = record.context or Context.of(record.headers) or self.begin()
        is_sampled = is_sampled or (late_at is not None and self.may_begin_late(late_at))
        return {h.TRACEPARENT: traceparent(trace_id, new_span_id(), is_sampled)}

    def batch(self, members: Iterable[Record]) -> dict[str, bytes]:
        """Return the header that gives a batch's members its span, in a trace of its own."""
        if self._sampling is None:
            return {}
        contexts = (record.context for record in members)
        is_sampled = any(context is not None and context.is_sampled for context in contexts)
        return {h.BATCH_TRACEPARENT: traceparent(new_trace_id(), new_span_id(), is_sampled)}

    def may_begin_late(self, now: float) -> bool:
        """Return whether an unsampled request may be traced late, and count it."""
        if now - self._late_since >= 1.0:
            self._late_since, self._late = now, 0
        self._late += 1
        if self._late <= LATE_PER_S_MAX:
            return True
        self._left_out += 1
        return False

    def new_id(self) -> int:
        """Return the id of a span; 0 if tracing is off."""
        return 0 if self._sampling is None else new_span_id()

    def write(
        self,
        name: str,
        kind: SpanKind,
        own: Context,
        parent_id: int,
        times: tuple[float, float],
        said: a.Said,
        *,
        events: Iterable[bytes] = (),
        links: Iterable[tuple[Context, bytes]] = (),
        error: tuple[str, str] | None = None,
    ) -> int:
        """Write a span that has ended, and return its id.

        Args:
            name: as the conventions want it, without anything that many requests differ in.
            kind: as the conventions want it.
            own: the span's own context; an id of 0 is replaced by a new one.
            parent_id: of the span above it; 0 for none.
            times: start and end, in epoch seconds.
            said: its attributes (``streams/tracing/span_attributes.py``); text of a
                request only where ``text_max`` allows it.
            events: encoded (``streams/tracing/otlp_encoding.py``); read only if there is room.
            links: to spans of other traces, and what they are about (``a.linked``).
            error: code and message of a failure.
        """
        if self._sampling is None or self._span_queue is None:
            return own.span_id
        span_id = own.span_id or new_span_id()
        if self._span_queue.is_full:
            self._span_queue.refuse()
            return span_id
        message = None
        if error is not None:
            code, message = error
            said += a.said({"error.type": code})
        # A tracer would draw the id itself. The SDK's spans are not used either: an encoded span
        # costs the garbage collector nothing, and is sent as it is.
        self._span_queue.put(
            otlp.span(
                own.trace_id,
                span_id,
                parent_id,
                name,
                kind.value,
                times,
                said,
                events,
                [otlp.link(to.trace_id, to.span_id, told) for to, told in links],
                message,
            )
        )
        return span_id

    def close(self) -> None:
        """Send the queued spans, if that is quick."""
        if self._span_queue is not None:
            self._span_queue.close()

    def _sampled(self, parent: Context | None) -> Context:
        if self._sampling is None:
            raise ValueError("nothing is traced here")
        if parent is None:
            trace_id = new_trace_id()
            return Context(trace_id, 0, self._sampling.begins(trace_id))
        return parent._replace(is_sampled=self._sampling.goes_on(parent))
