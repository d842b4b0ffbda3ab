"""State that handlers share, of a process and of the request that they answer."""

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from gateway.exchange.claims import ClaimFollower
from gateway.exchange.exchange import Exchange
from gateway.exchange.fleet_state import FleetState
from gateway.exchange.turns import Places
from gateway.http.body_room import BodyRoom
from gateway.http.key_limits import KeyLimits
from gateway.http.keys import ApiKeys, Caller, KeyProofs
from gateway.http.meter import Meter
from gateway.http.proxies import Proxies
from gateway.http.spans import HttpSpan
from streams.engine.clock import Clock
from streams.tracing.telemetry import Telemetry
from topics import Settings


@dataclass(slots=True)
class Gateway:
    """The parts of one gateway process."""

    settings: Settings
    exchange: Exchange
    fleet: FleetState
    claims: ClaimFollower
    keys: ApiKeys
    clock: Clock
    proofs: KeyProofs
    telemetry: Telemetry = field(default_factory=lambda: Telemetry(None))
    meter: Meter = field(default_factory=Meter)
    key_limits: KeyLimits = field(default_factory=KeyLimits)
    open_requests: int = 0
    """Requests that are being answered now."""
    proxies: Proxies = field(init=False)
    bodies: BodyRoom = field(init=False)
    """Room for what has come of requests and Kafka has not taken."""
    places: Places = field(init=False)
    """Who of those that ask a model may have its request run."""
    is_stopping: bool = False
    following: list[asyncio.Task[None]] = field(default_factory=list)
    """What keeps fleet, policy and claims up to date; a task of these ends by an error alone."""
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.proxies = Proxies(self.settings.gateway_proxies)
        self.bodies = BodyRoom(self.settings.gateway_body_bytes_max)
        self.places = Places(self.settings.gateway_open_max)

    def begin(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something that outlives the request that it comes of."""
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def finish(self, s_max: float) -> None:
        """Wait until all that was begun has ended, or cancel it."""
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=s_max)
            for task in late:
                task.cancel()


GATEWAY = web.AppKey("gateway", Gateway)
BY_TURN = web.AppKey("by_turn", frozenset[str])
"""Paths that take a place when their body is read, which tells whose turn it is."""
CALLER = web.RequestKey("caller", Caller)
REQUEST_ID = web.RequestKey("request_id", str)
SPAN = web.RequestKey("span", HttpSpan)


def caller_of(request: web.Request) -> Caller:
    """Return who asks; each path under ``/v1`` has one."""
    return request[CALLER]
