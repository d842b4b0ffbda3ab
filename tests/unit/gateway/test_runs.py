"""A request whose client left: while Kafka does not answer, or because its gateway stops."""

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.api import runs
from gateway.api.runs import Key, Run, followed, give_up, run_of
from gateway.exchange.claims import HeldKey
from gateway.exchange.mailbox import Mailbox
from gateway.exchange.publisher import UnavailableError
from streams.engine.clock import SystemClock
from topics import KeyClaim, decode


async def test_it_is_cancelled_as_soon_as_kafka_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runs, "CANCEL_AGAIN_S", 0.01)
    tried: list[str] = []
    tasks: list[asyncio.Task[None]] = []

    async def cancel(request_id: str, _reason: str) -> None:
        tried.append(request_id)
        if len(tried) < 3:
            raise UnavailableError("no broker")

    def begin(work: Any) -> None:
        tasks.append(asyncio.create_task(work))

    exchange = SimpleNamespace(cancel=cancel)
    gateway: Any = SimpleNamespace(clock=SystemClock(), exchange=exchange, begin=begin)
    give_up(gateway, Run("req_1"))
    await asyncio.wait_for(tasks[0], 60)
    assert tried == ["req_1"] * 3


@pytest.mark.parametrize("key", [None, Key("acme", "/", "k")])
async def test_a_gateway_that_stops_cancels_what_nobody_can_ask_for_again(key: Key | None) -> None:
    cancelled: list[str] = []
    begun: list[Any] = []

    @contextlib.contextmanager
    def follow(request_id: str) -> Iterator[Mailbox]:
        yield Mailbox(request_id)

    async def cancel(request_id: str, _reason: str) -> None:
        cancelled.append(request_id)

    async def publish(*_: Any, **__: Any) -> None:
        return None

    exchange = SimpleNamespace(follow=follow, cancel=cancel, publish=publish)
    claims = SimpleNamespace(find=lambda _: None)
    gateway: Any = SimpleNamespace(
        clock=SystemClock(),
        exchange=exchange,
        claims=claims,
        is_stopping=True,
        begin=begun.append,
    )

    span: Any = SimpleNamespace(publication=lambda _: None, headers=lambda _: [])
    began = asyncio.Event()

    async def waiting() -> None:
        async with followed(gateway, Run("req_1", key), b"{}", [], span):
            began.set()
            await asyncio.sleep(60)

    task = asyncio.create_task(waiting())
    await began.wait()
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    for work in begun:
        await work
    assert cancelled == ([] if key else ["req_1"])


class Claims:
    """The claims of one key, which a day's retention may take away."""

    def __init__(self) -> None:
        self.held: HeldKey | None = None

    def find(self, _name: str) -> HeldKey | None:
        return self.held

    async def seen(self, _name: str, _run: int) -> HeldKey:
        assert self.held is not None
        return self.held

    async def send(self, _topic: str, _name: str, value: bytes) -> None:
        claim = decode(KeyClaim, value)
        if self.held is None or claim.run > self.held.claim.run:
            self.held = HeldKey(claim, claim.at)


async def test_a_key_whose_claims_are_gone_is_run_under_another_id() -> None:
    """Under the old one it would be a duplicate, to which nothing is answered."""
    claims, now = Claims(), 1.8e9

    async def no_result(*_: Any, **__: Any) -> None:
        return None

    catalogue = SimpleNamespace(claims="claims")
    exchange = SimpleNamespace(catalogue=catalogue, send=claims.send, result=no_result)
    clock = SimpleNamespace(now=lambda: now)
    gateway: Any = SimpleNamespace(claims=claims, exchange=exchange, clock=clock)
    key, wanted = Key("acme", "/", "k"), SimpleNamespace(digest="d")
    first = await run_of(gateway, key, wanted)
    now += 86_000
    again = await run_of(gateway, key, wanted)
    assert (first.is_joined, again.is_joined) == (False, True)
    assert first.request_id == again.request_id
    now += 4000
    claims.held = None
    anew = await run_of(gateway, key, wanted)
    assert not anew.is_joined
    assert anew.request_id != first.request_id
