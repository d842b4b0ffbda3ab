"""Spans of the gateway: in the client's trace, with the request's publication below."""

from collections.abc import Sequence
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import make_mocked_request
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanKind, StatusCode
from stream_cases import FakeClock
from trace_cases import Collector, span_id_of, trace_id_of

from gateway.http.spans import HttpSpan, Publication
from gateway.server import listening, make_gateway
from streams.engine.trace_context import Context
from streams.tracing.sampling import Sampling
from streams.tracing.span_queue import SpanQueue
from streams.tracing.telemetry import Telemetry
from topics import Settings

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CLIENT = f"00-{TRACE}-{PARENT}-01"
OFF = Telemetry(None)


class Traced:
    """Telemetry, and the spans that it has sent."""

    def __init__(self, share: float = 1.0) -> None:
        self.collector = Collector()
        queue = SpanQueue(self.collector, Resource({}), delay_s=0.01)
        self.telemetry = Telemetry(Sampling(share), queue)

    def spans(self) -> Sequence[ReadableSpan]:
        self.telemetry.close()
        return self.collector.spans()


def http_span(telemetry: Telemetry, **headers: str) -> HttpSpan:
    request = make_mocked_request("POST", "/v1/chat/completions", headers=headers)
    return HttpSpan(telemetry, "requests", FakeClock(), request)


def context_in(headers: Sequence[tuple[str, bytes]]) -> Context:
    found = Context.of([*headers])
    assert found is not None
    return found


def test_a_publication_stands_below_the_request_in_the_clients_trace() -> None:
    traced = Traced()
    span = http_span(traced.telemetry, traceparent=CLIENT, tracestate="a=b")
    publication = span.publication("req_1")
    assert publication is not None
    headers = span.headers(publication)
    publication.end()
    span.end("/v1/chat/completions", 200)
    sent, served = traced.spans()
    assert (served.name, served.kind) == ("POST /v1/chat/completions", SpanKind.SERVER)
    assert (sent.name, sent.kind) == ("send requests", SpanKind.PRODUCER)
    assert trace_id_of(served) == trace_id_of(sent) == TRACE
    assert served.parent is not None
    assert f"{served.parent.span_id:016x}" == PARENT
    assert sent.parent is not None
    assert f"{sent.parent.span_id:016x}" == span_id_of(served)
    assert dict(headers)["tracestate"] == b"a=b"
    context = context_in(headers)
    assert (f"{context.span_id:016x}", context.is_sampled) == (span_id_of(sent), True)
    assert dict(served.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "http.response.status_code": 200,
        "network.protocol.version": "1.1",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
    }
    assert served.status.status_code is StatusCode.UNSET


@pytest.mark.parametrize("told", [None, "00-nonsense", f"00-{'0' * 32}-{PARENT}-01"])
def test_a_request_without_a_trace_begins_one(told: str | None) -> None:
    traced = Traced()
    span = http_span(traced.telemetry, **({} if told is None else {"traceparent": told}))
    context = context_in(span.headers())
    span.end("/v1/models", 200)
    (served,) = traced.spans()
    assert served.parent is None
    assert (context.trace_id, context.is_sampled) == (int(trace_id_of(served), 16), True)


def test_what_the_client_does_not_sample_is_passed_on_and_not_written() -> None:
    traced = Traced()
    span = http_span(traced.telemetry, traceparent=f"{CLIENT[:-1]}0")
    publication = span.publication("req_1")
    assert publication is not None
    context = context_in(span.headers(publication))
    publication.end()
    span.end("/v1/models", 503)
    assert (f"{context.trace_id:032x}", context.is_sampled) == (TRACE, False)
    assert traced.spans() == []


def test_a_gateway_that_does_not_trace_passes_the_clients_trace_on() -> None:
    span = http_span(OFF, traceparent=CLIENT, tracestate="a=b")
    assert span.publication("req_1") is None
    assert span.headers() == [("traceparent", CLIENT.encode()), ("tracestate", b"a=b")]
    assert http_span(OFF).headers() == []
    assert http_span(OFF, traceparent="nonsense", tracestate="a=b").headers() == []


@pytest.mark.parametrize(
    ("status", "code", "error"),
    [(429, "over_share", None), (503, "unavailable", "unavailable"), (None, None, "client_left")],
)
def test_errors_are_those_of_the_server(status: int | None, code: Any, error: str | None) -> None:
    traced = Traced()
    http_span(traced.telemetry).end("/v1/models", status, code)
    (span,) = traced.spans()
    assert (span.attributes or {}).get("error.type") == error
    assert span.status.status_code is (StatusCode.ERROR if error else StatusCode.UNSET)


def test_a_line_of_a_batch_begins_a_trace_that_links_to_what_created_the_batch() -> None:
    traced = Traced()
    created = http_span(traced.telemetry, traceparent=CLIENT)
    assert created.context is not None
    publication = Publication(
        traced.telemetry, "requests", FakeClock(), "req_1", None, created.context
    )
    context = context_in(publication.headers)
    publication.end()
    created.end("/v1/batches", 200)
    sent, post = traced.spans()
    assert sent.parent is None
    assert trace_id_of(sent) != trace_id_of(post) == TRACE
    (link,) = sent.links
    assert f"{link.context.span_id:016x}" == span_id_of(post)
    assert f"{link.context.trace_id:032x}" == TRACE
    assert f"{context.span_id:016x}" == span_id_of(sent)


async def asked(traced: Traced, *paths: str, headers: dict[str, str], **settings: Any) -> None:
    gateway = make_gateway(Settings(gateway_port=0, bootstrap_servers="127.0.0.1:1", **settings))
    gateway.telemetry = traced.telemetry
    async with (
        listening(gateway) as port,
        aiohttp.ClientSession(f"http://127.0.0.1:{port}/", headers=headers) as session,
    ):
        for path in paths:
            async with session.get(path) as answer:
                await answer.read()


async def test_the_api_is_traced_and_what_probes_ask_is_not() -> None:
    traced = Traced()
    headers = {"traceparent": CLIENT, "Authorization": "Bearer k"}
    await asked(traced, "/metrics", "/v1/models/none", "/v1/secret-path", headers=headers)
    told = {
        span.name: (span.attributes or {}).get("http.response.status_code")
        for span in traced.spans()
    }
    assert told == {"GET /v1/models/{id}": 404, "GET": 404}


@pytest.mark.parametrize(
    ("proxies", "told"),
    [
        ("127.0.0.0/8", ("203.0.113.7", "https")),
        ("10.0.0.1", ("127.0.0.1", "http")),
        ("", (None, "http")),
    ],
)
async def test_who_asked_is_told_as_far_as_a_proxy_is_trusted(proxies: str, told: Any) -> None:
    traced = Traced()
    headers = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
    await asked(traced, "/v1/models", headers=headers, gateway_proxies=proxies)
    (span,) = traced.spans()
    attributes = span.attributes or {}
    assert (attributes.get("client.address"), attributes["url.scheme"]) == told
