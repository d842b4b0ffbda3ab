"""Metrics by OTLP: what a collector is sent, and that none is waited for."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from aiohttp import web
from metrics_cases import make_metrics, serve_one
from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from stream_cases import TRACEPARENT, Yard
from trace_cases import TracedYard

from streams.metrics import MetricsService
from streams.metrics import registry as m
from streams.metrics.gauges import span_gauges

ROOT = Path(__file__).parents[3]
STOPS = """
import asyncio, logging
from metrics_cases import make_metrics
from stream_cases import Yard
from streams.metrics import MetricsService
logging.basicConfig()
yard = Yard()
service = MetricsService(make_metrics(yard), "worker", "w-0", yard.clock)
asyncio.run(service.on_shutdown())
"""


async def test_metrics_go_by_otlp_to_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    received: list[ExportMetricsServiceRequest] = []

    async def take(request: web.Request) -> web.Response:
        body = await request.read()
        received.append(ExportMetricsServiceRequest.FromString(body))
        return web.Response(content_type="application/x-protobuf")

    app = web.Application()
    app.router.add_post("/v1/metrics", take)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"http://127.0.0.1:{port}/v1/metrics")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
    yard = TracedYard()
    metrics = make_metrics(yard)
    metrics.gauges.read_from(span_gauges(yard.telemetry))
    for _ in range(3):
        yard.span_queue.refuse()
    await serve_one(yard, metrics, extra=(("traceparent", TRACEPARENT),))
    try:
        await MetricsService(metrics, "worker", "w-0", yard.clock).on_shutdown()
    finally:
        await runner.cleanup()
    (resource,) = received[0].resource_metrics
    names = {a.key: a.value.string_value for a in resource.resource.attributes}
    assert names["service.name"] == "shunter-worker"
    assert names["service.instance.id"] == "w-0"
    found = {metric.name: metric for metric in resource.scope_metrics[0].metrics}
    (ttft,) = found[m.TTFT.name].histogram.data_points
    assert (found[m.TTFT.name].unit, ttft.count, ttft.sum) == ("s", 1, pytest.approx(1.2))
    assert sum(ttft.bucket_counts) == 1
    assert ttft.bucket_counts[list(ttft.explicit_bounds).index(2.5)] == 1
    assert ttft.exemplars[0].trace_id.hex() == TRACEPARENT.decode().split("-")[1]
    (ended,) = found[m.ENDED.name].sum.data_points
    assert {a.key: a.value.string_value for a in ended.attributes} == {
        "task": "chat",
        "tenant": "default",
        "status": "completed",
    }
    assert (ended.as_double, found[m.ENDED.name].sum.is_monotonic) == (1, True)
    assert found[m.DROPPED_SPANS.name].sum.data_points[0].as_double == 3
    tokens = found[m.TOKENS.name].histogram.data_points
    kinds = {a.value.string_value for p in tokens for a in p.attributes if a.key.startswith("gen")}
    assert kinds == {"input", "output", "chat", "shunter", "yard-8b"}


@pytest.mark.parametrize("wanted", ["none", "prometheus", ""])
def test_nothing_is_exported_unless_it_is_asked_for(
    wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1")
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", wanted)
    yard = Yard()
    assert MetricsService(make_metrics(yard), "worker", "w-0", yard.clock)._exporter is None


def test_an_unknown_exporter_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_METRICS_EXPORTER", "carrier-pigeon")
    yard = Yard()
    with pytest.raises(RuntimeError, match="carrier-pigeon"):
        MetricsService(make_metrics(yard), "worker", "w-0", yard.clock)


@pytest.mark.parametrize(
    "protocol", [pytest.param("grpc", marks=pytest.mark.slow), "http/protobuf"]
)
async def test_a_process_stops_though_its_collector_is_deaf(protocol: str) -> None:
    # It takes connections, and never a word.
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'support'}",
            "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"http://127.0.0.1:{deaf.getsockname()[1]}",
            "OTEL_EXPORTER_OTLP_METRICS_PROTOCOL": protocol,
            "OTEL_EXPORTER_OTLP_METRICS_TIMEOUT": "300",
        }
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-c", STOPS), env=environment, stderr=subprocess.PIPE
        )
        try:
            _, told = await asyncio.wait_for(process.communicate(), 60)
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    assert process.returncode == 0, told.decode()
    assert "the last metrics were not exported in 2 s" in told.decode()
