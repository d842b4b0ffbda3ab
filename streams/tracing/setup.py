"""Telemetry as configured by the standard ``OTEL_*`` variables; by default none."""

import os
from pathlib import Path

from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from streams.tracing.sampling import Sampling
from streams.tracing.span_queue import Exporter, SpanQueue
from streams.tracing.telemetry import Telemetry
from topics.signing.key_files import check_key_file

# Of a request, and of its answer: the queue of spans holds at most some 70 MB of them.
TEXT_CHARACTERS_MAX = 4096

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


class TelemetryError(RuntimeError):
    """The ``OTEL_*`` variables ask for something unavailable; the message gives the remedy."""


def from_environment(service: str, instance: str) -> Telemetry:
    """Return the telemetry that the environment configures.

    Raises:
        TelemetryError: it asks for an exporter or protocol that there is not, a value is unfit, or
            the extra ``otlp`` isn't installed.
    """
    if not _is_wanted():
        return Telemetry(None)
    try:
        sampling = Sampling.from_environment()
        span_queue = SpanQueue(_exporter(), resource_of(service, instance))
        return Telemetry(sampling, span_queue, text_max=_text_max())
    except (ValueError, OSError) as error:
        raise TelemetryError(f"traces as the environment asks for: {error}") from error


def resource_of(service: str, instance: str) -> Resource:
    """Return the resource of this process; the environment may name it otherwise."""
    own = {"service.name": f"shunter-{service}", "service.instance.id": instance}
    # The SDK would let ours win.
    return Resource.create({**own, **OTELResourceDetector().detect().attributes})


def _is_wanted() -> bool:
    if _told("SDK_DISABLED").lower() == "true":
        return False
    exporter = _told("TRACES_EXPORTER")
    if exporter not in {"", "otlp", "none"}:
        raise TelemetryError(
            f"OTEL_TRACES_EXPORTER={exporter} is not one that Shunter has: set otlp, or none"
        )
    # The SDK's own default is an endpoint on this machine, which nobody asked for.
    return exporter != "none" and (exporter == "otlp" or any(map(os.environ.get, _ENDPOINTS)))


def _told(name: str) -> str:
    return os.environ.get(f"OTEL_{name}", "").strip()


def _text_max() -> int:
    """Return how many characters of a text a span shows: none, unless they are switched on."""
    wanted = _told("INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT").lower()
    if wanted in {"", "false", "no_content"}:
        return 0
    if wanted not in {"true", "span_only", "span_and_event"}:
        raise ValueError(
            f"OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT={wanted}: set span_only, or false"
        )
    told = _told("SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT") or _told("ATTRIBUTE_VALUE_LENGTH_LIMIT")
    return min(int(told), TEXT_CHARACTERS_MAX) if told else TEXT_CHARACTERS_MAX


def _exporter() -> Exporter:
    if key := _told("EXPORTER_OTLP_TRACES_CLIENT_KEY") or _told("EXPORTER_OTLP_CLIENT_KEY"):
        check_key_file(Path(key))
    protocol = _told("EXPORTER_OTLP_TRACES_PROTOCOL") or _told("EXPORTER_OTLP_PROTOCOL") or "grpc"
    try:
        if protocol == "http/protobuf":
            from streams.tracing.otlp_http import HttpExporter  # noqa: PLC0415 - the extra may be missing

            return HttpExporter()
        if protocol == "grpc":
            from streams.tracing.otlp_grpc import GrpcExporter  # noqa: PLC0415 - the extra may be missing

            return GrpcExporter()
    except ImportError as error:
        raise TelemetryError(
            "traces are asked for, but the exporter is missing: pip install 'shunter[otlp]'"
        ) from error
    raise TelemetryError(
        f"OTEL_EXPORTER_OTLP_PROTOCOL={protocol} is not one that Shunter speaks: set grpc, or"
        " http/protobuf"
    )
