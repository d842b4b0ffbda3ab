"""A producer of requests that gets no answer: it is closed, and it is told what Kafka may have."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiokafka.errors import KafkaConnectionError, ProducerClosed

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
    requests = RequestPublisher(Settings())
    with pytest.raises(UnavailableError) as caught:
        await requests.send("requests", "r", b"{}")
    assert caught.value.may_be_there
    await asyncio.gather(*requests._closing)
    assert producer.closed == ["sender", "client"]


async def test_a_gateway_that_stops_leaves_no_producer_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[Unanswered] = []

    async def started(*_: Any, **__: Any) -> Unanswered:
        made.append(Unanswered())
        return made[-1]

    monkeypatch.setattr(publisher, "started_producer", started)
    requests = RequestPublisher(Settings())
    with pytest.raises(UnavailableError):
        await requests.send("requests", "r", b"{}")
    await requests.start()
    await requests.stop()
    assert [each.closed for each in made] == [["sender", "client"]] * 2


async def test_a_record_whose_producer_is_closed_for_another_goes_by_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(publisher, "PUBLISH_S_MAX", 5.0)
    taken: list[bytes] = []

    class Closed(Unanswered):
        async def send_and_wait(self, *_: Any, **__: Any) -> None:
            requests._replace(cast(Any, self))
            raise ProducerClosed

    class Open(Unanswered):
        async def send_and_wait(self, _topic: str, value: bytes, **__: Any) -> None:
            taken.append(value)

    producers = [Closed(), Open()]

    async def started(*_: Any, **__: Any) -> Unanswered:
        return producers.pop(0)

    monkeypatch.setattr(publisher, "started_producer", started)
    requests = RequestPublisher(Settings())
    await requests.send("requests", "r", b"{}")
    await requests.stop()
    assert taken == [b"{}"]


async def test_what_no_broker_could_be_told_is_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    async def started(*_: Any, **__: Any) -> Unanswered:
        raise KafkaConnectionError

    monkeypatch.setattr(publisher, "started_producer", started)
    with pytest.raises(UnavailableError) as caught:
        await RequestPublisher(Settings()).send("requests", "r", b"{}")
    assert not caught.value.may_be_there
