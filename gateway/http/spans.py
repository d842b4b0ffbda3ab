"""Spans of the gateway: a client's request over HTTP, and below it the publication on Kafka."""

from aiohttp import web
from opentelemetry.trace import SpanKind

from gateway.http.proxies import Origin
from streams.engine.clock import Clock
from streams.engine.trace_context import Context
from streams.tracing import span_attributes as a
from streams.tracing.telemetry import Telemetry
from topics.records import headers as h

HeaderList = list[tuple[str, bytes]]
_TRACESTATE_MAX = 512
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"})
_SERVERS_FAULT = 500


class Publication:
    """One request that is being published: the headers it has, and its span."""

    def __init__(
        self,
        telemetry: Telemetry,
        topic: str,
        clock: Clock,
        request_id: str,
        above: Context | None,
        cause: Context | None = None,
    ) -> None:
        """Begin it now.

        Args:
            telemetry: of the process, which traces.
            topic: where it is published.
            clock: the process's.
            request_id: its id.
            above: the span that it stands below; None begins a trace.
            cause: a span of another trace that it comes of, which it links to.
        """
        self._telemetry = telemetry
        self._topic = topic
        self._clock = clock
        self._request_id = request_id
        self._began_at = clock.now()
        trace = telemetry.begin() if above is None else above
        self._above_id = trace.span_id
        self._own = trace._replace(span_id=telemetry.new_id())
        self._links = [] if cause is None else [(cause, a.linked({}))]

    @property
    def headers(self) -> HeaderList:
        """The context that the record has."""
        return [(h.TRACEPARENT, self._own.header())]

    def end(self, error: tuple[str, str] | None = None) -> None:
        """Write the span: Kafka has the request, or code and message say why it may not."""
        if self._own.is_sampled:
            said = a.messaging(self._topic, "send") + a.message(self._request_id)
            times = self._began_at, self._clock.now()
            span = f"send {self._topic}"
            self._telemetry.write(
                span,
                SpanKind.PRODUCER,
                self._own,
                self._above_id,
                times,
                said,
                links=self._links,
                error=error,
            )


class HttpSpan:
    """One request over HTTP, in its client's trace if it has one."""

    def __init__(
        self,
        telemetry: Telemetry,
        topic: str,
        clock: Clock,
        request: web.BaseRequest,
        origin: Origin | None = None,
    ) -> None:
        self._origin = origin
        self._telemetry = telemetry
        self._topic = topic
        self._clock = clock
        self._began_at = clock.now()
        self._request = request
        told = request.headers.get("traceparent", "").strip()
        self._client = Context.of([(h.TRACEPARENT, told.encode("utf-8", "replace"))])
        self._own: Context | None = None
        self._above_id = 0
        if telemetry.is_on:
            trace = telemetry.continued(self._client)
            self._above_id = trace.span_id
            self._own = trace._replace(span_id=telemetry.new_id())

    @property
    def context(self) -> Context | None:
        """Its context, or its client's where this process doesn't trace."""
        return self._own or self._client

    def publication(self, request_id: str) -> Publication | None:
        """Return the span of a publication that begins now; None if this process doesn't trace."""
        if self._own is None:
            return None
        return Publication(self._telemetry, self._topic, self._clock, request_id, self._own)

    def headers(self, publication: Publication | None = None) -> HeaderList:
        """Return the headers by which a record is of this trace; none where there is no trace."""
        if publication is not None:
            found = publication.headers
        elif (context := self.context) is not None:
            found = [(h.TRACEPARENT, context.header())]
        else:
            return []
        state = self._request.headers.get("tracestate", "").strip()
        if self._client is not None and 0 < len(state) <= _TRACESTATE_MAX and state.isascii():
            found.append((h.TRACESTATE, state.encode()))
        return found

    def end(self, route: str | None, status: int | None, code: str | None = None) -> None:
        """Write the span of an answer.

        Args:
            route: the path's pattern; None where there is no such path.
            status: of the answer; None if the client left before it had all of it.
            code: of the error that it is.
        """
        if self._own is None or not self._own.is_sampled:
            return
        request, origin = self._request, self._origin
        own_scheme = "https" if request.secure else "http"
        method = request.method if request.method in _METHODS else "_OTHER"
        said = a.said(
            {
                "http.request.method": method,
                "http.route": route,
                "http.response.status_code": status,
                "network.protocol.version": "{}.{}".format(*request.version),
                "url.path": None if route is None else request.path,
                "url.scheme": own_scheme if origin is None else origin.scheme,
                "client.address": None if origin is None else origin.address,
            }
        )
        error = None
        if status is None:
            error = "client_left", "the client left before it had the whole answer"
        elif status >= _SERVERS_FAULT:
            error = code or str(status), f"answered with {status}"
        self._telemetry.write(
            f"{method if method in _METHODS else 'HTTP'}{'' if route is None else f' {route}'}",
            SpanKind.SERVER,
            self._own,
            self._above_id,
            (self._began_at, self._clock.now()),
            said,
            error=error,
        )
