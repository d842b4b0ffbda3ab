"""A yard in memory that traces: the spans of all that became visible, read back."""

from collections.abc import Sequence
from typing import Any

from memory_log import MemoryLog
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, ParentBased, Sampler
from stream_cases import Yard, make_notary, make_transactor

from streams import Router, Telemetry, Transactor
from streams.outbox import Outbox
from streams.route_spans import RouteSpans
from streams.spans import Spans
from streams.stage import Stage
from workers import Worker
from workers.spans import WorkSpans

Tree = list[tuple[str, "Tree"]]


class TracedYard(Yard):
    """A yard whose processes trace, each to the same exporter."""

    def __init__(self, sampler: Sampler | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.exported = InMemorySpanExporter()
        provider = TracerProvider(sampler or ParentBased(ALWAYS_ON), shutdown_on_exit=False)
        self.outbox = Outbox(self.exported)
        self.telemetry = Telemetry(provider, self.outbox)

    def observer(self, stage: Stage) -> Spans:
        if isinstance(stage, Worker):
            return WorkSpans(self.telemetry, self.catalogue, self.clock, "premium-eu")
        return RouteSpans(self.telemetry, self.catalogue, self.clock)

    async def run(
        self, stage: Stage, log: MemoryLog | None = None, *args: Any, **options: Any
    ) -> Transactor:
        transactor = make_transactor(
            log or MemoryLog(self.cluster),
            stage,
            self.catalogue.progress,
            notary=make_notary(self.catalogue, self.clock, self.digests),
            observers=[self.observer(stage)],
        )
        await transactor.start()
        await self.cluster.rebalance(stage.group)
        return transactor

    def router(self, duplicate_window_records: int = 100) -> Router:
        return Router(
            self.situation(),
            self.scribe(),
            self.clock,
            self.telemetry,
            request_bytes_max=100_000,
            duplicate_window_records=duplicate_window_records,
        )

    def spans(self) -> Sequence[ReadableSpan]:
        """Return all spans written so far."""
        self.outbox.flush()
        return self.exported.get_finished_spans()

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
