"""The way out of spans: bounded, counted, quiet, and never in the way of the work."""

import gzip
import logging
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind
from trace_cases import read

from streams.tracing.otlp_http import HttpExporter
from streams.tracing.sampling import Sampling
from streams.tracing.setup import TelemetryError, from_environment
from streams.tracing.span_queue import Exporter, SpanQueue
from streams.tracing.telemetry import Telemetry

TRACES = "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"


class Moody:
    """A collector that takes spans, or refuses, or does neither until it is told to go on."""

    def __init__(self) -> None:
        self.is_well = True
        self.may_go = threading.Event()
        self.may_go.set()
        self.got = 0

    def send(self, request: bytes, spans: int) -> bool:
        self.may_go.wait(20)
        if not self.is_well:
            raise ConnectionError("nobody there")
        self.got += spans
        return True

    def close(self) -> None:
        """Nothing is held."""


def write(telemetry: Telemetry, count: int) -> None:
    for _ in range(count):
        telemetry.write("x", SpanKind.INTERNAL, telemetry.begin(), 0, (1.0, 2.0), b"")


@contextmanager
def telling(exporter: Exporter) -> Iterator[tuple[Telemetry, SpanQueue]]:
    span_queue = SpanQueue(exporter, Resource({}), delay_s=60.0)
    telemetry = Telemetry(Sampling(1.0), span_queue)
    yield telemetry, span_queue
    telemetry.close()


def test_what_the_collector_refuses_is_counted_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = Moody()
    with caplog.at_level(logging.INFO), telling(exporter) as (telemetry, span_queue):
        exporter.is_well = False
        for _ in range(3):
            write(telemetry, 2)
            span_queue.flush()
        assert telemetry.dropped_spans == 6
        assert len(caplog.records) == 1, caplog.text
        exporter.is_well = True
        write(telemetry, 2)
        span_queue.flush()
        assert (telemetry.dropped_spans, exporter.got) == (6, 2)
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


def test_a_collector_that_hangs_costs_spans_but_no_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setattr("streams.tracing.span_queue.CLOSE_S_MAX", 0.1)
    exporter = Moody()
    exporter.may_go.clear()
    began = time.monotonic()
    with telling(exporter) as (telemetry, _):
        write(telemetry, 1000)
        assert 880 <= telemetry.dropped_spans <= 900
    # Nor does it keep a process from stopping.
    assert time.monotonic() - began < 2.0
    assert telemetry.dropped_spans >= 980
    exporter.may_go.set()
    assert not [r for r in caplog.records if r.name.startswith("opentelemetry")]


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("TRACES_EXPORTER", "SDK_DISABLED", "SERVICE_NAME", "RESOURCE_ATTRIBUTES"):
        monkeypatch.delenv(f"OTEL_{name}", raising=False)
    return monkeypatch


@pytest.mark.parametrize(
    ("variables", "is_on"),
    [
        ({}, False),
        ({TRACES: "http://127.0.0.1:1"}, True),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}, True),
        ({TRACES: "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"}, False),
        ({TRACES: "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"}, False),
        ({"OTEL_TRACES_EXPORTER": "otlp"}, True),
    ],
)
def test_the_standard_variables_say_whether_there_are_traces(
    environment: pytest.MonkeyPatch, variables: dict[str, str], is_on: bool
) -> None:
    for name, value in variables.items():
        environment.setenv(name, value)
    telemetry = from_environment("router", "r-0")
    assert telemetry.is_on is is_on
    telemetry.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [("OTEL_TRACES_EXPORTER", "zipkin"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "carrier-pigeon")],
)
def test_what_cannot_be_had_is_named(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(TRACES, "http://127.0.0.1:1")
    environment.setenv(name, value)
    with pytest.raises(TelemetryError, match=f"{name}={value}.* set "):
        from_environment("router", "r-0")


def test_an_unfit_limit_is_an_error_for_people(environment: pytest.MonkeyPatch) -> None:
    environment.setenv(TRACES, "http://127.0.0.1:1")
    environment.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "many")
    with pytest.raises(TelemetryError, match=r"OTEL_BSP.*many"):
        from_environment("router", "r-0")


@pytest.mark.parametrize(
    ("variables", "service"),
    [
        ({}, "shunter-router"),
        ({"OTEL_SERVICE_NAME": "mine"}, "mine"),
        ({"OTEL_RESOURCE_ATTRIBUTES": "service.name=ours,deployment.environment=test"}, "ours"),
    ],
)
def test_the_service_is_ours_unless_it_is_named(
    environment: pytest.MonkeyPatch, variables: dict[str, str], service: str
) -> None:
    environment.setenv(TRACES, "http://127.0.0.1:1")
    for name, value in variables.items():
        environment.setenv(name, value)
    telemetry = from_environment("router", "r-0")
    assert telemetry._span_queue is not None
    attributes = telemetry._span_queue._resource
    assert attributes["service.name"] == service
    assert attributes["service.instance.id"] == "r-0"
    assert attributes.get("deployment.environment") == ("test" if service == "ours" else None)
    telemetry.close()


class Collector(BaseHTTPRequestHandler):
    """Takes what comes by HTTP, and answers as it is told to."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server: Any = self.server
        body = self.rfile.read(int(self.headers["Content-Length"]))
        server.seen.append((self.path, dict(self.headers), body))
        self.send_response(server.answers.pop(0) if server.answers else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()
        # As a collector that has lost patience, without a word.
        self.close_connection = server.hangs_up

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def collector(environment: pytest.MonkeyPatch) -> Iterator[Any]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        here: Any = server
        here.seen, here.answers, here.hangs_up, here.daemon_threads = [], [], False, True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        yield here
        server.shutdown()


def test_spans_go_over_http_where_that_is_asked_for(collector: Any) -> None:
    telemetry = from_environment("router", "r-0")
    write(telemetry, 3)
    telemetry.close()
    ((path, headers, body),) = collector.seen
    assert path == "/v1/traces"
    assert headers["Content-Type"] == "application/x-protobuf"
    assert len(read(body)) == 3
    assert telemetry.dropped_spans == 0


def test_spans_go_over_grpc_by_default(environment: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    headers: dict[str, Any] = {}

    def take(request: bytes, context: grpc.ServicerContext) -> bytes:
        headers.update(context.invocation_metadata())
        seen.append(request)
        return b""

    server = grpc.server(ThreadPoolExecutor(1))
    service = "opentelemetry.proto.collector.trace.v1.TraceService"
    handler = grpc.method_handlers_generic_handler(
        service, {"Export": grpc.unary_unary_rpc_method_handler(take)}
    )
    server.add_generic_rpc_handlers([handler])
    environment.setenv(TRACES, f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}")
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "own=x")
    server.start()
    telemetry = from_environment("router", "r-0")
    write(telemetry, 3)
    telemetry.close()
    server.stop(None)
    (request,) = seen
    assert len(read(request)) == 3
    assert headers["own"] == "x"
    assert telemetry.dropped_spans == 0


def test_the_variables_of_http_are_followed(
    environment: pytest.MonkeyPatch, collector: Any
) -> None:
    environment.setenv(TRACES, f"http://127.0.0.1:{collector.server_port}/mine")
    environment.setenv("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Bearer%20x,other=y")
    environment.setenv("OTEL_EXPORTER_OTLP_TRACES_COMPRESSION", "gzip")
    telemetry = from_environment("router", "r-0")
    write(telemetry, 1)
    telemetry.close()
    ((path, headers, body),) = collector.seen
    told = {name.lower(): value for name, value in headers.items()}
    assert path == "/mine"
    assert (told["authorization"], told["other"]) == ("Bearer x", "y")
    assert told["content-encoding"] == "gzip"
    assert len(read(gzip.decompress(body))) == 1


def test_certificates_and_the_time_limit_are_followed(
    environment: pytest.MonkeyPatch, collector: Any
) -> None:
    for name, value in (
        ("TIMEOUT", "3"), ("CERTIFICATE", "ca.pem"),
        ("CLIENT_CERTIFICATE", "own.pem"), ("CLIENT_KEY", "own.key"),
    ):  # fmt: skip
        environment.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    exporter = HttpExporter()
    assert exporter._timeout_s == 3.0
    assert exporter._session.verify == "ca.pem"
    assert exporter._session.cert == ("own.pem", "own.key")
    exporter.close()


@pytest.mark.parametrize(("name", "value"), [("COMPRESSION", "zstd"), ("TIMEOUT", "soon")])
def test_an_unfit_variable_of_http_is_named(
    environment: pytest.MonkeyPatch, collector: Any, name: str, value: str
) -> None:
    environment.setenv(f"OTEL_EXPORTER_OTLP_{name}", value)
    with pytest.raises(TelemetryError, match=value):
        from_environment("router", "r-0")


@pytest.mark.parametrize(
    ("answers", "tries", "is_taken"),
    [([503], 2, True), ([503, 429, 503], 3, False), ([400], 1, False), ([401], 1, False)],
)
def test_a_collector_that_is_busy_is_asked_again(
    collector: Any, answers: list[int], tries: int, is_taken: bool
) -> None:
    collector.answers += answers
    exporter = HttpExporter()
    assert exporter.send(b"", 1) is is_taken
    assert len(collector.seen) == tries
    exporter.close()


def test_a_connection_that_the_collector_has_closed_is_made_again(collector: Any) -> None:
    collector.hangs_up = True
    exporter = HttpExporter()
    for _ in range(3):
        assert exporter.send(b"", 1)
        time.sleep(0.05)
    assert len(collector.seen) == 3
    exporter.close()


@pytest.mark.parametrize("protocol", ["grpc", "http/protobuf"])
@pytest.mark.parametrize("listens", [False, True], ids=["dead", "hangs"])
def test_an_endpoint_that_is_dead_or_hangs_holds_up_nothing(
    environment: pytest.MonkeyPatch, listens: bool, protocol: str
) -> None:
    environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", protocol)
    with socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if listens:
            deaf.listen()
        environment.setenv(TRACES, f"http://127.0.0.1:{deaf.getsockname()[1]}")
        environment.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
        environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        environment.setattr("streams.tracing.span_queue.CLOSE_S_MAX", 0.2)
        before = set(threading.enumerate())
        telemetry = from_environment("router", "r-0")
        began = time.monotonic()
        write(telemetry, 500)
        # What waits for each would take a second a span, some 500 of them.
        assert time.monotonic() - began < 10.0
        telemetry.close()
        assert time.monotonic() - began < 20.0
        assert telemetry.dropped_spans > 400
        # Its thread doesn't try again and again, which in here would stir the random numbers of
        # other tests.
        for thread in set(threading.enumerate()) - before:
            thread.join(8.0)
            assert not thread.is_alive()
