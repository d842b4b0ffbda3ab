"""Health of the process: that it runs, and that it can work."""

from aiohttp import web

from gateway.http.errors import json_response
from gateway.http.state import GATEWAY, Gateway
from streams.hosting.readiness import no_broker, readiness_told


async def healthz(request: web.Request) -> web.Response:
    """Answer 200 while results are being read."""
    up = request.app[GATEWAY].exchange.is_up
    return json_response({"status": "up" if up else "down"}, status=200 if up else 503)


async def readyz(request: web.Request) -> web.Response:
    """Answer 200 while requests are taken and can be published."""
    content = readiness_told(_obstacle(request.app[GATEWAY]) or no_broker())
    return json_response(content, status=503 if "reason" in content else 200)


def _obstacle(gateway: Gateway) -> str | None:
    if not gateway.exchange.is_up:
        return "results are not read"
    return "the gateway stops" if gateway.is_stopping else None
