"""The first span of a request's trace: its publication."""

import contextlib
from collections.abc import Iterator

from opentelemetry.trace import SpanKind

from streams.engine.clock import Clock
from streams.engine.trace_context import Context
from streams.tracing import span_attributes as a
from streams.tracing.setup import from_environment
from streams.tracing.telemetry import Telemetry
from topics import Catalogue, Settings
from topics.records import headers as h


class SubmitSpans:
    """Begins the trace of each request that is published."""

    def __init__(self, telemetry: Telemetry, topic: str, clock: Clock) -> None:
        self._telemetry = telemetry
        self._topic = topic
        self._clock = clock
        self._begun: list[tuple[Context, str, float]] = []

    def begin(self, name: str) -> list[tuple[str, bytes]]:
        """Return the headers of a request; empty if tracing is off."""
        if not self._telemetry.is_on:
            return []
        context = self._telemetry.begin()._replace(span_id=self._telemetry.new_id())
        if context.is_sampled:
            self._begun.append((context, name, self._clock.now()))
        return [(h.TRACEPARENT, context.header())]

    def end(self) -> None:
        """Write the spans of all requests begun; they are acknowledged."""
        now = self._clock.now()
        for context, name, began in self._begun:
            said = a.messaging(self._topic, "send") + a.message(name)
            span, kind = f"send {self._topic}", SpanKind.PRODUCER
            self._telemetry.write(span, kind, context, 0, (began, now), said)
        self._begun.clear()


@contextlib.contextmanager
def submit_spans(settings: Settings, clock: Clock) -> Iterator[SubmitSpans]:
    """Provide spans if the ``OTEL_*`` variables configure any; send them at the end.

    Raises:
        TelemetryError: the variables ask for what can't be had.
    """
    telemetry = from_environment("submit", settings.instance)
    try:
        yield SubmitSpans(telemetry, Catalogue(settings).requests, clock)
    finally:
        telemetry.close()
