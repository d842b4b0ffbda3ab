"""The way out of spans: bounded, counted, quiet, and never in the way of the work."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import socket
from typing import Any

import pytest
from opentelemetry.sdk.resources import Resource
from opentelemetry.trace import SpanKind

from streams import Telemetry
from streams.otel import TelemetryError, from_environment
from streams.outbox import Exporter, Outbox
from streams.sampling import Sampling

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
        telemetry.write("x", SpanKind.INTERNAL, telemetry.begin(), 0, (1.0, 2.0), {})


@contextmanager
def telling(exporter: Exporter) -> Iterator[tuple[Telemetry, Outbox]]:
    outbox = Outbox(exporter, Resource({}), delay_s=60.0)
    telemetry = Telemetry(Sampling(1.0), outbox)
    yield telemetry, outbox
    telemetry.close()


def test_what_the_collector_refuses_is_counted_and_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    exporter = Moody()
    with caplog.at_level(logging.INFO), telling(exporter) as (telemetry, outbox):
        exporter.is_well = False
        for _ in range(3):
            write(telemetry, 2)
            outbox.flush()
        assert telemetry.dropped_spans == 6
        assert len(caplog.records) == 1, caplog.text
        exporter.is_well = True
        write(telemetry, 2)
        outbox.flush()
        assert (telemetry.dropped_spans, exporter.got) == (6, 2)
    assert [r.levelname for r in caplog.records] == ["WARNING", "INFO"]


def test_a_collector_that_hangs_costs_spans_but_no_time(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("OTEL_BSP_MAX_QUEUE_SIZE", "100")
    monkeypatch.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "10")
    monkeypatch.setattr("streams.outbox.CLOSE_S_MAX", 0.1)
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
    assert telemetry._outbox is not None
    attributes = telemetry._outbox._resource
    assert attributes["service.name"] == service
    assert attributes["service.instance.id"] == "r-0"
    assert attributes.get("deployment.environment") == ("test" if service == "ours" else None)
    telemetry.close()


class Collector(BaseHTTPRequestHandler):
    """Takes what comes by HTTP."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.server.seen.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def test_spans_go_over_http_where_that_is_asked_for(environment: pytest.MonkeyPatch) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.seen = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
        environment.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf")
        telemetry = from_environment("router", "r-0")
        write(telemetry, 3)
        telemetry.close()
        assert server.seen == ["/v1/traces"]  # type: ignore[attr-defined]
        assert telemetry.dropped_spans == 0
        server.shutdown()


@pytest.mark.parametrize("listens", [False, True], ids=["dead", "hangs"])
def test_a_grpc_endpoint_that_is_dead_or_hangs_holds_up_nothing(
    environment: pytest.MonkeyPatch, listens: bool
) -> None:
    with socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        if listens:
            deaf.listen()
        environment.setenv(TRACES, f"http://127.0.0.1:{deaf.getsockname()[1]}")
        environment.setenv("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1")
        environment.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
        environment.setattr("streams.outbox.CLOSE_S_MAX", 0.2)
        before = set(threading.enumerate())
        telemetry = from_environment("router", "r-0")
        began = time.monotonic()
        write(telemetry, 500)
        assert time.monotonic() - began < 0.5
        telemetry.close()
        assert time.monotonic() - began < 2.0
        assert telemetry.dropped_spans > 400
        # Its thread doesn't try again and again, which in here would stir the random numbers of
        # other tests.
        for thread in set(threading.enumerate()) - before:
            thread.join(3.0)
            assert not thread.is_alive()
