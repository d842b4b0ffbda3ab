"""What handlers share of a process, and of the request that they answer."""

from dataclasses import dataclass

from aiohttp import web

from gateway.exchange.exchange import Exchange
from gateway.http.keys import Caller, Keys
from streams.engine.clock import Clock
from topics import Settings


@dataclass(slots=True)
class Gateway:
    """The parts of one gateway process."""

    settings: Settings
    exchange: Exchange
    keys: Keys
    clock: Clock
    open_requests: int = 0
    """Requests that are being answered now, of those that count against the limit."""
    is_stopping: bool = False


GATEWAY = web.AppKey("gateway", Gateway)
CALLER = web.RequestKey("caller", Caller)
REQUEST_ID = web.RequestKey("request_id", str)


def caller_of(request: web.Request) -> Caller:
    """Return who asks; each path under ``/v1`` has one."""
    return request[CALLER]
