"""Metrics by OTLP: the registry's values in OpenTelemetry's data model, sent periodically.

The SDK's own instruments take 5 us for each value (docs/decisions/0016), its exporters are used as
they are.
"""

import asyncio
import logging
import os
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from itertools import pairwise
from typing import Any, TypeVar

from mode import Service
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ConsoleMetricExporter,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    MetricExporter,
    MetricExportResult,
    MetricsData,
    NumberDataPoint,
    ResourceMetrics,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.samples import Exemplar as FoundExemplar
from prometheus_client.samples import Sample

from streams.engine.clock import Clock
from streams.metrics import registry as m
from streams.metrics.metric import Metric as Described
from streams.metrics.process import Metrics
from streams.service import Repeated
from streams.tracing.setup import resource_of

NS_PER_S = 1_000_000_000
LAG_EVERY_S = 5.0
EXPORT_EVERY_MS = 60_000.0
# A collector that takes nothing must not keep a process from stopping; exporters try for 10 s.
CLOSE_S_MAX = 2.0

T = TypeVar("T")

_BY_FAMILY = {each.family: each for each in m.METRICS}
_CUMULATIVE = AggregationTemporality.CUMULATIVE

logger = logging.getLogger(__name__)


def as_otlp(
    families: Iterable[Family], resource: Resource, started_ns: int, now_ns: int
) -> MetricsData:
    """Return families of the catalogue as OpenTelemetry's data, counted since ``started_ns``."""
    converted = []
    for family in families:
        metric = _BY_FAMILY[family.name]
        points = [
            _point(metric, labels, samples, started_ns, now_ns)
            for labels, samples in _series(metric, family.samples).items()
        ]
        if points:
            data = _DATA[metric.kind](points)
            converted.append(Metric(metric.name, metric.text, metric.unit, data))
    scope = ScopeMetrics(InstrumentationScope("shunter"), converted, "")
    return MetricsData([ResourceMetrics(resource, [scope], "")])


_DATA: dict[str, Callable[[list[Any]], Sum | Gauge | Histogram]] = {
    "counter": lambda points: Sum(points, _CUMULATIVE, is_monotonic=True),
    "gauge": Gauge,
    "histogram": lambda points: Histogram(points, _CUMULATIVE),
}


def _series(metric: Described, samples: Iterable[Sample]) -> dict[tuple[str, ...], list[Sample]]:
    """Return the samples of each set of labels, in order; a bucket's bound is not a label."""
    found: dict[tuple[str, ...], list[Sample]] = {}
    for sample in samples:
        labels = tuple(sample.labels[label] for label in metric.labels)
        found.setdefault(labels, []).append(sample)
    return found


def _point(
    metric: Described,
    labels: tuple[str, ...],
    samples: list[Sample],
    started_ns: int,
    now_ns: int,
) -> NumberDataPoint | HistogramDataPoint:
    attributes = dict(zip(metric.attributes, labels, strict=True))
    if metric.kind != "histogram":
        return NumberDataPoint(attributes, started_ns, now_ns, float(samples[0].value))
    buckets = [s for s in samples if s.name.endswith("_bucket")]
    below = [0.0, *(s.value for s in buckets)]
    (total,) = (s.value for s in samples if s.name.endswith("_sum"))
    return HistogramDataPoint(
        attributes=attributes,
        start_time_unix_nano=started_ns,
        time_unix_nano=now_ns,
        count=int(below[-1]),
        sum=total,
        bucket_counts=[int(b - a) for a, b in pairwise(below)],
        explicit_bounds=list(metric.bounds),
        # Not kept; infinite is what the SDK has before anything was seen.
        min=float("inf"),
        max=float("-inf"),
        exemplars=[_exemplar(s.exemplar) for s in buckets if s.exemplar is not None],
    )


def _exemplar(found: FoundExemplar) -> Exemplar:
    at_ns = int(float(found.timestamp or 0.0) * NS_PER_S)
    # Evidence names no span. All zeros is none to a reader, and the encoder wants both or neither.
    return Exemplar({}, found.value, at_ns, 0, int(found.labels["trace_id"], 16))


def exporter_from_environment() -> MetricExporter | None:
    """Return the exporter of the standard ``OTEL_*`` variables; by default none.

    The general endpoint alone selects none: it often is a Jaeger, which takes no metrics.

    Raises:
        RuntimeError: one is asked for that is unknown, or the ``otlp`` extra isn't installed.
    """
    wanted = os.environ.get("OTEL_METRICS_EXPORTER", "").strip().lower()
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or wanted == "none":
        return None
    if not wanted and os.environ.get("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"):
        wanted = "otlp"
    if wanted in {"", "prometheus"}:  # the page is there in any case
        return None
    if wanted == "console":
        return ConsoleMetricExporter()
    if wanted == "otlp":
        return _otlp()
    raise RuntimeError(
        f"OTEL_METRICS_EXPORTER={wanted!r} is unknown: use otlp, prometheus, console or none"
    )


def _otlp() -> MetricExporter:
    protocol = os.environ.get("OTEL_EXPORTER_OTLP_METRICS_PROTOCOL") or os.environ.get(
        "OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"
    )
    try:
        if protocol.startswith("http"):
            from opentelemetry.exporter.otlp.proto.http.metric_exporter import (  # noqa: PLC0415 - the extra may be missing
                OTLPMetricExporter as HttpExporter,
            )

            return HttpExporter()
        from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import (  # noqa: PLC0415 - the extra may be missing
            OTLPMetricExporter as GrpcExporter,
        )

        return GrpcExporter()
    except ImportError as error:
        raise RuntimeError(
            "metrics are to go by OTLP, but the exporter is missing: pip install 'shunter[otlp]'"
        ) from error


def _aside(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run a call on a thread of its own, which never delays the end of the process."""
    outcome: Future[T] = Future()
    outcome.set_running_or_notify_cancel()

    def run() -> None:
        try:
            outcome.set_result(call())
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            outcome.set_exception(error)

    threading.Thread(target=run, name="metrics", daemon=True).start()
    return asyncio.wrap_future(outcome)


class MetricsService(Repeated):
    """Samples the lag periodically, and exports if an exporter is configured.

    Exports are built on the event loop and sent on another thread, one at a time.
    """

    def __init__(self, metrics: Metrics, service: str, instance: str, clock: Clock) -> None:
        super().__init__(metrics.sample, LAG_EVERY_S)
        self._metrics = metrics
        self._clock = clock
        self._exporter = exporter_from_environment()
        self._resource = resource_of(service, instance)
        self._started_ns = self._now_ns()
        every_ms = float(os.environ.get("OTEL_METRIC_EXPORT_INTERVAL") or EXPORT_EVERY_MS)
        self._export_every_s = every_ms / 1000
        self._has_failed = False
        self._sending = threading.Lock()

    @Service.task  # type: ignore[untyped-decorator]
    async def _export_on(self) -> None:
        while self._exporter is not None and not self.should_stop:
            await self.sleep(self._export_every_s)
            await self._export(self._exporter)

    async def on_shutdown(self) -> None:
        """Export the last values, unless exported before, if that is quick."""
        if self._exporter is None:
            return
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                if not self._has_failed:
                    await self._export(self._exporter)
                await _aside(self._exporter.shutdown)
        except TimeoutError:
            logger.warning("the last metrics were not exported in %g s", CLOSE_S_MAX)

    async def _export(self, exporter: MetricExporter) -> None:
        families = self._metrics.registry.collect()
        data = as_otlp(families, self._resource, self._started_ns, self._now_ns())

        def send() -> MetricExportResult:
            with self._sending:
                return exporter.export(data)

        outcome = await _aside(send)
        has_failed = outcome is not MetricExportResult.SUCCESS
        if has_failed and not self._has_failed:
            logger.warning("metrics could not be exported; the next export has all of them")
        self._has_failed = has_failed

    def _now_ns(self) -> int:
        return int(self._clock.now() * NS_PER_S)
