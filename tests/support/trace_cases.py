"""A yard in memory that traces: the spans of all that became visible, read back."""

from collections.abc import Iterable, Sequence
from typing import Any

from memory_log import MemoryLog
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.trace.v1.trace_pb2 import Span as SentSpan
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from stream_cases import Yard, make_signer, make_transactor

from streams.engine.stage import Stage
from streams.engine.transactor import Transactor
from streams.router.stage import Router
from streams.tracing.route_spans import RouteSpans
from streams.tracing.sampling import Sampling
from streams.tracing.span_queue import SpanQueue
from streams.tracing.spans import Spans
from streams.tracing.telemetry import Telemetry
from workers.spans import WorkSpans
from workers.stage.worker import Worker

Tree = list[tuple[str, "Tree"]]


class Collector:
    """A collector that keeps what it is sent, and reads it as the protocol's own library does."""

    def __init__(self) -> None:
        self.requests: list[bytes] = []

    def send(self, request: bytes, spans: int) -> bool:
        self.requests.append(request)
        assert len(read(request)) == spans
        return True

    def close(self) -> None:
        """Nothing is held."""

    def spans(self) -> list[ReadableSpan]:
        return [span for request in self.requests for span in read(request)]


def read(request: bytes) -> list[ReadableSpan]:
    """Return what is sent as the spans of the SDK that they would be."""
    (of_resource,) = ExportTraceServiceRequest.FromString(request).resource_spans
    (of_scope,) = of_resource.scope_spans
    resource = Resource(said_of(of_resource.resource.attributes))
    scope = InstrumentationScope(of_scope.scope.name)
    return [_read(span, resource, scope) for span in of_scope.spans]


def _read(span: SentSpan, resource: Resource, scope: InstrumentationScope) -> ReadableSpan:
    return ReadableSpan(
        span.name,
        _context(span.trace_id, span.span_id),
        parent=_context(span.trace_id, span.parent_span_id) if span.parent_span_id else None,
        resource=resource,
        attributes=said_of(span.attributes),
        events=[Event(e.name, said_of(e.attributes), e.time_unix_nano) for e in span.events],
        links=[
            Link(_context(link.trace_id, link.span_id), said_of(link.attributes))
            for link in span.links
        ],
        kind=SpanKind(span.kind - 1),
        status=Status(StatusCode(span.status.code), span.status.message or None),
        start_time=span.start_time_unix_nano,
        end_time=span.end_time_unix_nano,
        instrumentation_scope=scope,
    )


def _context(trace_id: bytes, span_id: bytes) -> SpanContext:
    ids = int.from_bytes(trace_id, "big"), int.from_bytes(span_id, "big")
    return SpanContext(*ids, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def said_of(attributes: Iterable[KeyValue]) -> dict[str, Any]:
    return {each.key: _value(each.value) for each in attributes}


def _value(value: AnyValue) -> Any:
    kind = value.WhichOneof("value")
    assert kind is not None
    if kind == "array_value":
        return tuple(_value(each) for each in value.array_value.values)
    return getattr(value, kind)


class TracedYard(Yard):
    """A yard whose processes trace, each to the same collector."""

    def __init__(
        self, sampling: Sampling | None = None, *, text_max: int = 0, **options: Any
    ) -> None:
        super().__init__(**options)
        self.collector = Collector()
        self.span_queue = SpanQueue(self.collector, Resource({"service.name": "yard"}))
        self.telemetry = Telemetry(sampling or Sampling(1.0), self.span_queue, text_max=text_max)

    def observer(self, stage: Stage) -> Spans:
        if isinstance(stage, Worker):
            return WorkSpans(self.telemetry, self.catalogue, self.clock, "premium-eu", "shunter")
        return RouteSpans(self.telemetry, self.catalogue, self.clock)

    async def run(
        self, stage: Stage, log: MemoryLog | None = None, *args: Any, **options: Any
    ) -> Transactor:
        transactor = make_transactor(
            log or MemoryLog(self.cluster),
            stage,
            self.catalogue.progress,
            signer=make_signer(self.catalogue, self.clock, self.digests),
            observers=[self.observer(stage)],
        )
        await transactor.start()
        await self.cluster.rebalance(stage.group)
        await transactor.take_over()
        return transactor

    def router(self, duplicate_window_records: int = 100) -> Router:
        return Router(
            self.situation(),
            self.evidence_writer(),
            self.clock,
            self.telemetry,
            request_bytes_max=100_000,
            duplicate_window_records=duplicate_window_records,
        )

    def spans(self) -> Sequence[ReadableSpan]:
        """Return all spans written so far."""
        self.span_queue.flush()
        return self.collector.spans()

    def trace(self, trace_id: str) -> list[ReadableSpan]:
        return [span for span in self.spans() if trace_id_of(span) == trace_id]

    def span(self, name: str) -> ReadableSpan:
        """Return the one span of this name."""
        (found,) = [span for span in self.spans() if span.name == name]
        return found


def trace_id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def span_id_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.span_id:016x}"


def tree(spans: Sequence[ReadableSpan], parent_id: int | None = None) -> Tree:
    """Return names as a tree, in the order of their start; each span stands in it once."""
    known = {span.context.span_id for span in spans if span.context}
    assert len(known) == len(spans), "two spans have one id"
    here = [
        span
        for span in spans
        if (span.parent.span_id if span.parent and span.parent.span_id in known else None)
        == parent_id
    ]
    here.sort(key=lambda span: (span.start_time or 0, span.end_time or 0))
    return [(span.name, tree_below(span, spans)) for span in here]


def tree_below(span: ReadableSpan, spans: Sequence[ReadableSpan]) -> Tree:
    assert span.context is not None
    below = [s for s in spans if s.parent and s.parent.span_id == span.context.span_id]
    below.sort(key=lambda each: (each.start_time or 0, each.end_time or 0))
    return [(each.name, tree_below(each, spans)) for each in below]


def said(span: ReadableSpan, *names: str) -> list[Any]:
    return [(span.attributes or {}).get(name) for name in names]
