"""A producer of requests that gets no answer: it is closed, and it is told what Kafka may have."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError

from gateway.exchange import publisher
from gateway.exchange.publisher import RequestPublisher, UnavailableError
from streams.kafka import writer
from topics import Settings


class Unanswered:
    """A producer whose broker answers nothing any more; its own close waits for that."""

    def __init__(self) -> None:
        self.closed: list[str] = []
        self.client = SimpleNamespace(_conns={}, close=self._closing("client"))
        self._sender = SimpleNamespace(close=self._closing("sender"))

    def _closing(self, what: str) -> Any:
        async def close() -> None:
            self.closed.append(what)

        return close

    async def send_and_wait(self, *_: Any, **__: Any) -> None:
        await asyncio.sleep(600)

    async def stop(self) -> None:
        await asyncio.sleep(600)


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(publisher, "PUBLISH_S_MAX", 0.02)
    for module in (publisher, writer):
        monkeypatch.setattr(module, "CLOSE_S_MAX", 0.02)


async def test_what_was_sent_and_not_answered_may_be_there_and_is_sent_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    producer = Unanswered()

    async def started(*_: Any, **__: Any) -> Unanswered:
        return producer

    monkeypatch.setattr(publisher, "started_producer", started)
    with pytest.raises(UnavailableError) as caught:
        await RequestPublisher(Settings()).send("requests", "r", b"{}")
    assert caught.value.may_be_there
    assert producer.closed == ["sender", "client"]


async def test_what_no_broker_could_be_told_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def started(*_: Any, **__: Any) -> Unanswered:
        raise KafkaConnectionError

    monkeypatch.setattr(publisher, "started_producer", started)
    with pytest.raises(UnavailableError) as caught:
        await RequestPublisher(Settings()).send("requests", "r", b"{}")
    assert not caught.value.may_be_there
