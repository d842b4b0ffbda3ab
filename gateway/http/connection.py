"""One connection of a client: its head must come in time, and each answer is JSON."""

import asyncio
from typing import Any

from aiohttp import web
from aiohttp.web_request import BaseRequest

from gateway.exchange.request_ids import new_id
from gateway.http.errors import ApiError
from streams.engine.clock import SystemClock
from topics.wire.codec import cut

# Of a request line, and of one header; more of either is 400.
LINE_BYTES_MAX = 8190
# Longer than clients and proxies keep a connection that they may yet use.
KEPT_ALIVE_S = 75.0
# An answer given before the whole body came closes the connection. For so long the rest is passed
# over, since a client that is still sending would lose the answer to the reset.
LINGER_S = 0.5
OPTIONS: dict[str, Any] = {
    "access_log": None,
    "auto_decompress": False,
    "keepalive_timeout": KEPT_ALIVE_S,
    "lingering_time": LINGER_S,
    "max_field_size": LINE_BYTES_MAX,
    "max_line_size": LINE_BYTES_MAX,
}


class Connection(web.RequestHandler):
    """Closes a connection whose head does not come within ``head_s_max``."""

    __slots__ = ("_head_s_max", "_heads", "_late")

    def __init__(self, server: web.Server, head_s_max: float) -> None:
        super().__init__(server, loop=asyncio.get_running_loop(), **OPTIONS)
        self._head_s_max = head_s_max
        self._heads = 0
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to wait for the first head."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Take in data; the first of another head begins the wait for all of it."""
        super().data_received(data)
        if self._request_count > self._heads:
            self._heads = self._request_count
            self._stop_waiting()
        elif self._late is None and not (self._request_in_progress or self._messages):
            self._wait()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Wait no longer."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self._loop.call_later(self._head_s_max, self._close_late)

    def _stop_waiting(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _close_late(self) -> None:
        self._late = None
        transport = self.transport
        if transport is None:
            return
        message = f"the request's head was not there within {self._head_s_max:g} s"
        body = ApiError(408, "request_timeout", message).response().body
        if isinstance(body, bytes):
            head = (
                "HTTP/1.1 408 Request Timeout\r\nContent-Type: application/json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\nServer: shunter\r\n"
                f"x-request-id: {_nobodys_id()}\r\n\r\n"
            )
            transport.write(head.encode() + body)
        self.force_close()

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, and defects, in the form of the API."""
        if status >= 500:
            self.log_exception("a request failed", exc_info=exc)
        if request.writer.output_size > 0:
            raise ConnectionError("part of an answer is sent already")
        told = f"the request is no HTTP that this server reads: {cut(message or '')}"
        error = ApiError(status, "invalid_http" if status < 500 else "internal_error", told)
        response = error.response()
        response.headers["x-request-id"] = _nobodys_id()
        response.headers["Server"] = "shunter"
        response.force_close()
        return response


def _nobodys_id() -> str:
    """Return the id of what can't be read, and so has no tenant."""
    return new_id("", SystemClock().now())
