"""A request whose client left: while Kafka does not answer, or because its gateway stops."""

import asyncio
import contextlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.api import runs
from gateway.api.runs import Key, Run, followed, give_up
from gateway.exchange.mailbox import Mailbox
from gateway.exchange.publisher import UnavailableError
from streams.engine.clock import SystemClock

KEY = Key("acme", "/", "k")


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


@pytest.mark.parametrize("key", [None, KEY])
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


@pytest.mark.parametrize(
    ("may_be_there", "key", "is_back"),
    [(True, None, False), (True, KEY, False), (True, KEY, True), (False, None, False)],
)
async def test_what_kafka_may_have_all_the_same_runs_for_nobody(
    may_be_there: bool, key: Key | None, is_back: bool
) -> None:
    cancelled: list[str] = []
    begun: list[Any] = []

    @contextlib.contextmanager
    def follow(request_id: str) -> Iterator[Mailbox]:
        yield Mailbox(request_id)

    async def cancel(request_id: str, reason: str) -> None:
        assert "Kafka" in reason
        cancelled.append(request_id)

    async def publish(*_: Any, **__: Any) -> None:
        raise UnavailableError("no answer", may_be_there=may_be_there)

    gateway: Any = SimpleNamespace(
        clock=SystemClock(),
        exchange=SimpleNamespace(
            follow=follow, cancel=cancel, publish=publish, is_followed=lambda _: is_back
        ),
        claims=SimpleNamespace(find=lambda _: None),
        settings=SimpleNamespace(gateway_reclaim_s=0.01),
        is_stopping=False,
        begin=begun.append,
    )
    span: Any = SimpleNamespace(publication=lambda _: None, headers=lambda _: [])
    with pytest.raises(UnavailableError):
        await followed(gateway, Run("req_1", key), b"{}", [], span).__aenter__()
    for work in begun:
        await work
    # With a key it goes on for whoever has come back for it.
    assert cancelled == ([] if is_back or not may_be_there else ["req_1"])
