"""Health of the process: that it runs, and that it can work."""

from aiohttp import web

from gateway.http.errors import json_response
from gateway.http.state import GATEWAY


async def healthz(request: web.Request) -> web.Response:
    """Answer 200 while results are being read."""
    up = request.app[GATEWAY].exchange.is_up
    return json_response({"status": "up" if up else "down"}, status=200 if up else 503)


async def readyz(request: web.Request) -> web.Response:
    """Answer 200 while requests are taken."""
    gateway = request.app[GATEWAY]
    ready = gateway.exchange.is_up and not gateway.is_stopping
    return json_response(
        {"status": "ready" if ready else "not ready"}, status=200 if ready else 503
    )
