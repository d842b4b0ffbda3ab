"""Traces: one per request, through every topic, by W3C trace context in Kafka headers.

Our own propagation: the ready-made instrumentation loses a whole poll on one malformed
``traceparent``. Spans are recorded after the fact, with the times at which things happened.
"""

import os
from collections.abc import Iterable, Mapping, Sequence

from opentelemetry import trace
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, TraceFlags
from opentelemetry.util.types import AttributeValue

from policies import Decision, Release
from streams.log import Record
from topics import Placement, Profile, Usage
from topics import headers as h

NS_PER_S = 1_000_000_000
Headers = Sequence[tuple[str, bytes]]
_GEN_AI_OPERATIONS = {"completions": "text_completion"}


def span_context(headers: Headers) -> SpanContext | None:
    """Return the trace context of a record; a malformed one counts as none."""
    value = h.traceparent(headers)
    if value is None:
        return None
    _, trace_id, span_id, flags = value.decode().split("-")
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )


class Telemetry:
    """Writes the spans of this process; without a tracer it writes none and passes contexts on."""

    def __init__(self, provider: TracerProvider | None) -> None:
        self._provider = provider
        self._tracer = None if provider is None else provider.get_tracer("shunter")

    def span(
        self,
        name: str,
        kind: SpanKind,
        headers: Headers,
        start_s: float,
        end_s: float,
        attributes: Mapping[str, AttributeValue],
        linked: Iterable[tuple[Headers, Mapping[str, AttributeValue]]] = (),
    ) -> bytes | None:
        """Record a span under the context in ``headers``, and return its own as ``traceparent``.

        Returns None where nothing is traced: the context in ``headers`` is then passed on.
        """
        if self._tracer is None:
            return None
        parent = span_context(headers)
        links = [
            Link(context, attributes)
            for others, attributes in linked
            if (context := span_context(others)) is not None
        ]
        span = self._tracer.start_span(
            name,
            context=None if parent is None else trace.set_span_in_context(NonRecordingSpan(parent)),
            kind=kind,
            attributes=attributes,
            links=links,
            start_time=int(start_s * NS_PER_S),
        )
        span.end(int(end_s * NS_PER_S))
        context = span.get_span_context()
        return b"00-%032x-%016x-%02x" % (context.trace_id, context.span_id, context.trace_flags)

    def routed(
        self, record: Record, profile: Profile, decision: Decision, now: float
    ) -> bytes | None:
        """Record the router's decision on a request."""
        if self._tracer is None:
            return None
        attributes: dict[str, AttributeValue] = {
            **messaging(record, "process"),
            "messaging.consumer.group.name": "router",
            **about(profile),
            "shunter.decision": decision.action,
            "shunter.decision.reason": decision.reason,
        }
        if decision.option is not None:
            attributes |= {
                "shunter.pool": decision.option.pool,
                "shunter.device": decision.option.device,
                "shunter.model_variant": decision.option.variant,
                "shunter.precision": decision.option.precision,
                "shunter.region": decision.option.region,
                "shunter.placement.path": "direct",
            }
        name = f"process {record.partition.topic}"
        started = min(now, record.timestamp_ms / 1000)
        return self.span(name, SpanKind.CONSUMER, record.headers, started, now, attributes)

    def released(
        self, profile: Profile, headers: Headers, held_at: float, release: Release, now: float
    ) -> bytes | None:
        """Record the time that a request was held."""
        return self.span(
            "hold",
            SpanKind.INTERNAL,
            headers,
            min(held_at, now),
            now,
            {
                **about(profile),
                "shunter.hold.seconds": now - held_at,
                "shunter.hold.release_reason": release.reason,
                "shunter.deadline.slack_s": release.slack_s,
            },
        )

    def batched(
        self, batch_id: str, topic: str, members: Sequence[tuple[str, Headers]], now: float
    ) -> None:
        """Record a batch, linked to the trace of every member."""
        self.span(
            f"send {topic}",
            SpanKind.PRODUCER,
            (),
            now,
            now,
            {
                "messaging.system": "kafka",
                "messaging.operation.type": "send",
                "messaging.destination.name": topic,
                "messaging.batch.message_count": len(members),
                "shunter.batch.id": batch_id,
            },
            [(headers, {"messaging.message.id": member}) for member, headers in members],
        )

    def executed(
        self,
        record: Record,
        profile: Profile,
        placement: Placement,
        usage: Usage,
        times: tuple[float, float | None, float],
        cost_usd: float,
    ) -> None:
        """Record an inference; ``times`` are start, first token and finish, in epoch seconds."""
        if self._tracer is None:
            return
        started_at, first_token_at, finished_at = times
        operation = _GEN_AI_OPERATIONS.get(profile.operation, profile.operation)
        attributes: dict[str, AttributeValue] = {
            **about(profile),
            "gen_ai.operation.name": operation,
            "gen_ai.response.model": placement.model_variant,
            "gen_ai.usage.input_tokens": usage.input_tokens,
            "gen_ai.usage.output_tokens": usage.output_tokens,
            "gen_ai.usage.cache_read.input_tokens": usage.cached_tokens,
            "shunter.pool": placement.pool,
            "shunter.device": placement.device,
            "shunter.model_variant": placement.model_variant,
            "shunter.precision": placement.precision,
            "shunter.region": placement.region,
            "shunter.placement.path": placement.path,
            "shunter.cost.usd": cost_usd,
            "shunter.deadline.slack_s": profile.deadline - finished_at,
        }
        if first_token_at is not None:
            attributes["gen_ai.response.time_to_first_chunk"] = first_token_at - started_at
        if placement.batch_id is not None:
            attributes["shunter.batch.id"] = placement.batch_id
        name = f"{operation} {profile.model}"
        self.span(name, SpanKind.CLIENT, record.headers, started_at, finished_at, attributes)

    def close(self) -> None:
        """Send what is still buffered."""
        if self._provider is not None:
            self._provider.shutdown()


def messaging(record: Record, operation: str) -> dict[str, AttributeValue]:
    """Return the attributes that the messaging conventions want of a consumed record."""
    return {
        "messaging.system": "kafka",
        "messaging.operation.type": operation,
        "messaging.destination.name": record.partition.topic,
        "messaging.destination.partition.id": str(record.partition.number),
        "messaging.kafka.offset": record.offset,
    }


def about(profile: Profile) -> dict[str, AttributeValue]:
    """Return the attributes that say which request a span belongs to. No payload text."""
    return {
        "messaging.message.id": profile.id,
        "shunter.task": profile.task,
        "shunter.tenant": profile.tenant,
        "gen_ai.request.model": profile.model,
    }


def from_environment(service: str, instance: str) -> Telemetry:
    """Return the telemetry that the standard ``OTEL_*`` variables ask for; by default none.

    Raises:
        RuntimeError: an endpoint is named and the ``otlp`` extra isn't installed.
    """
    endpoint = os.environ.get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") or os.environ.get(
        "OTEL_EXPORTER_OTLP_ENDPOINT"
    )
    if not endpoint or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return Telemetry(None)
    resource = Resource.create(
        {"service.name": f"shunter-{service}", "service.instance.id": instance}
    )
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(_exporter()))
    return Telemetry(provider)


def _exporter() -> SpanExporter:
    try:
        if os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc").startswith("http"):
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415 - the extra may be missing
                OTLPSpanExporter as HttpExporter,
            )

            return HttpExporter()
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import (  # noqa: PLC0415 - the extra may be missing
            OTLPSpanExporter as GrpcExporter,
        )

        return GrpcExporter()
    except ImportError as error:
        raise RuntimeError(
            "OTEL_EXPORTER_OTLP_ENDPOINT is set, but the exporter is missing:"
            " pip install 'shunter[otlp]'"
        ) from error
