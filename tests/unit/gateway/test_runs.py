"""A request whose client left, while Kafka does not answer."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.api import runs
from gateway.api.runs import Run, give_up
from gateway.exchange.publisher import UnavailableError
from streams.engine.clock import SystemClock


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
    await asyncio.wait_for(tasks[0], 5)
    assert tried == ["req_1"] * 3
