"""What a gateway does beside its requests: it goes on, or the process says why not and ends."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import TopicAuthorizationFailedError

from gateway import server
from gateway.batches import service
from gateway.batches.service import BatchService
from gateway.server import make_gateway, run_gateway
from streams.engine.clock import SystemClock
from topics import Settings


class Idle:
    """A part of a gateway that starts, waits and stops."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def failed(self) -> None:
        await asyncio.Event().wait()

    async def step(self, timeout_s: float) -> None:
        await asyncio.sleep(timeout_s)


class Refused(Idle):
    """A follower from which the right to read is taken."""

    async def step(self, timeout_s: float) -> None:
        raise TopicAuthorizationFailedError("inference.claims")


@pytest.mark.parametrize("part", ["claims", "fleet"])
async def test_a_process_that_can_follow_no_more_ends(
    part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(gateway_port=0, bootstrap_servers="127.0.0.1:1")
    gateway: Any = make_gateway(settings)
    gateway.exchange = Idle()
    gateway.claims = Refused() if part == "claims" else Idle()
    gateway.fleet.followers = [Refused() if part == "fleet" else Idle()]
    monkeypatch.setattr(server, "make_gateway", lambda _: gateway)
    with pytest.raises(TopicAuthorizationFailedError):
        async with asyncio.timeout(5):
            await run_gateway(settings)


async def test_a_look_at_the_batches_that_fails_is_not_the_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    again: dict[str, int] = {}
    loop, enough = asyncio.get_running_loop(), asyncio.Event()

    def fail(what: str) -> None:
        again[what] = again.get(what, 0) + 1
        if len(again) == 2 and min(again.values()) >= 3:
            loop.call_soon_threadsafe(enough.set)
        raise ValueError("what is there can not be read")

    for pause in ("LOOK_S", "BEAT_S"):
        monkeypatch.setattr(service, pause, 0.01)
    store: Any = SimpleNamespace(
        start=lambda: None,
        stop=lambda: None,
        beat=lambda: fail("beat"),
        open_batches=lambda: fail("look"),
    )
    parts: Any = SimpleNamespace(clock=SystemClock())
    looking = BatchService(store, store, parts)
    await looking.start()
    async with asyncio.timeout(5):
        await enough.wait()
    await looking.stop()
