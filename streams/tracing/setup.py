"""Telemetry as configured by the standard ``OTEL_*`` variables; by default none."""

import os
from pathlib import Path

from opentelemetry.sdk.resources import OTELResourceDetector, Resource

from streams.tracing.sampling import Sampling
from streams.tracing.span_queue import Exporter, Outbox
from streams.tracing.telemetry import Telemetry
from topics.signing.key_files import check_key_file

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
        return Telemetry(sampling, Outbox(_exporter(), resource_of(service, instance)))
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
