"""Read traces from Jaeger, through its query API (`/api/v3`, OTLP as JSON)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp
import orjson

from shunter.console import UserError

ANSWERED_S_MAX = 10.0
# The API requires bounds; all that Jaeger keeps lies between these.
_ALWAYS = {
    "query.start_time_min": "2020-01-01T00:00:00Z",
    "query.start_time_max": "2100-01-01T00:00:00Z",
}
_NS_PER_S = 1_000_000_000
_ERROR = 2


@dataclass(frozen=True, slots=True)
class Event:
    """An event of a span. ``at`` is epoch seconds."""

    name: str
    at: float
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Link:
    """A span of another trace, by the hexadecimal ids."""

    trace_id: str
    span_id: str
    attributes: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Span:
    """A span from Jaeger. Times are epoch seconds; ``error`` is None if there was none."""

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    start: float
    end: float
    attributes: dict[str, Any] = field(default_factory=dict)
    events: tuple[Event, ...] = ()
    links: tuple[Link, ...] = ()
    error: str | None = None


async def read_trace(url: str, trace_id: str) -> list[Span]:
    """Return the spans of a trace, earliest first; empty if Jaeger doesn't have it.

    Raises:
        UserError: Jaeger doesn't answer there.
    """
    return sorted(await _spans(url, f"/api/v3/traces/{trace_id}", {}), key=lambda span: span.start)


async def find_trace_ids(url: str, service: str, attributes: Mapping[str, str]) -> list[str]:
    """Return the ids of the traces with a span of this service that has these attributes.

    Raises:
        UserError: Jaeger doesn't answer there.
    """
    query = {
        **_ALWAYS,
        "query.service_name": service,
        "query.attributes": orjson.dumps(dict(attributes)).decode(),
    }
    found = await _spans(url, "/api/v3/traces", query)
    return list(dict.fromkeys(span.trace_id for span in found))


async def read_services(url: str) -> list[str]:
    """Return the services with spans in Jaeger.

    Raises:
        UserError: Jaeger doesn't answer there.
    """
    status, body = await _get(url, "/api/v3/services", {})
    services = body.get("services") if status == HTTPStatus.OK else None
    return [str(name) for name in services or ()]


async def _spans(url: str, path: str, query: Mapping[str, str]) -> list[Span]:
    status, body = await _get(url, path, query)
    if status == HTTPStatus.NOT_FOUND:
        return []
    if status != HTTPStatus.OK:
        told = body.get("error", {})
        raise UserError(f"{url}{path} answers HTTP {status}: {told.get('message', told)}")
    found = body.get("result", {}).get("resourceSpans", ())
    return [span for resource in found for span in _spans_of(resource)]


async def _get(url: str, path: str, query: Mapping[str, str]) -> tuple[int, dict[str, Any]]:
    timeout = aiohttp.ClientTimeout(total=ANSWERED_S_MAX)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout) as session,
            session.get(f"{url.rstrip('/')}{path}", params=query) as response,
        ):
            text = await response.read()
            body = orjson.loads(text)
            return response.status, body if isinstance(body, dict) else {}
    except (aiohttp.ClientError, TimeoutError, orjson.JSONDecodeError, ValueError) as error:
        raise UserError(
            f"no Jaeger answers at {url} ({error or type(error).__name__}); name its page with"
            " --jaeger or SHUNTER_JAEGER_URL"
        ) from error


def _spans_of(resource: Mapping[str, Any]) -> Iterator[Span]:
    about = _attributes(resource.get("resource", {}).get("attributes", ()))
    service = str(about.get("service.name", "?"))
    for scope in resource.get("scopeSpans", ()):
        for span in scope.get("spans", ()):
            status = span.get("status", {})
            yield Span(
                trace_id=span["traceId"],
                span_id=span["spanId"],
                parent_id=span.get("parentSpanId", ""),
                service=service,
                name=span["name"],
                start=int(span["startTimeUnixNano"]) / _NS_PER_S,
                end=int(span["endTimeUnixNano"]) / _NS_PER_S,
                attributes=_attributes(span.get("attributes", ())),
                events=tuple(
                    Event(
                        event["name"],
                        int(event["timeUnixNano"]) / _NS_PER_S,
                        _attributes(event.get("attributes", ())),
                    )
                    for event in span.get("events", ())
                ),
                links=tuple(
                    Link(link["traceId"], link["spanId"], _attributes(link.get("attributes", ())))
                    for link in span.get("links", ())
                ),
                error=status.get("message", "") if status.get("code") == _ERROR else None,
            )


def _attributes(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    return {pair["key"]: _value(pair.get("value", {})) for pair in pairs}


def _value(value: Mapping[str, Any]) -> Any:
    for kind, told in value.items():
        if kind == "intValue":
            return int(told)
        if kind == "arrayValue":
            return [_value(each) for each in told.get("values", ())]
        return told
    return None
