"""Pieces of streams over a producer that fails."""

import asyncio
from typing import Any

import pytest
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    ProducerFenced,
)
from stream_cases import START, FakeClock, make_policy, make_profile

from streams.kafka import idempotent_producer
from topics import Settings
from workers.stage.chunks import StreamPublisher, Streams


class OneOfMany:
    """A producer; once a batch was refused it refuses all that comes, as aiokafka's does."""

    def __init__(self, made: list["OneOfMany"]) -> None:
        made.append(self)
        self.refusal: KafkaError | None = None
        self.later: KafkaError | None = None
        self.stored: asyncio.Future[object] | None = None
        self.sent = 0
        self.is_stopped = False

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        self.is_stopped = True

    async def send(self, *_: Any, **__: Any) -> asyncio.Future[object]:
        if self.refusal is not None:
            raise self.refusal
        self.sent += 1
        if self.stored is not None:
            return self.stored
        stored: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        if self.later is None:
            stored.set_result(None)
        else:
            stored.set_exception(self.later)
        return stored


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[OneOfMany]:
    producers: list[OneOfMany] = []
    monkeypatch.setattr(idempotent_producer, "AIOKafkaProducer", lambda **_: OneOfMany(producers))
    return producers


async def tell(publisher: StreamPublisher) -> None:
    """Publish a stream of one piece."""
    stream = Streams(publisher).open(make_profile(make_policy()))
    await stream.tell({"choices": []})
    await stream.finish()


@pytest.mark.parametrize(
    ("refusal", "later"), [(ProducerFenced(), None), (None, OutOfOrderSequenceNumber())]
)
async def test_a_producer_that_has_failed_is_replaced(
    refusal: KafkaError | None, later: KafkaError | None, made: list[OneOfMany]
) -> None:
    publisher = StreamPublisher(Settings(), FakeClock(START))
    await tell(publisher)
    made[0].refusal, made[0].later = refusal, later
    await tell(publisher)
    await tell(publisher)
    await tell(publisher)
    assert [(each.is_stopped, each.sent) for each in made[1:]] == [(False, 2)]
    assert made[0].is_stopped
    await publisher.on_stop()
    assert made[1].is_stopped


async def test_a_piece_that_is_too_large_says_nothing_of_the_producer(
    made: list[OneOfMany],
) -> None:
    publisher = StreamPublisher(Settings(), FakeClock(START))
    await tell(publisher)
    made[0].refusal = MessageSizeTooLargeError()
    await tell(publisher)
    made[0].refusal = None
    await tell(publisher)
    assert [(each.is_stopped, each.sent) for each in made] == [(False, 2)]


async def test_pieces_that_a_closed_producer_cancels_leave_a_gap_and_no_more(
    made: list[OneOfMany], caplog: pytest.LogCaptureFixture
) -> None:
    publisher = StreamPublisher(Settings(), FakeClock(START))
    stream = Streams(publisher).open(make_profile(make_policy()))
    await stream.tell({"choices": []})
    waits: asyncio.Future[object] = asyncio.get_running_loop().create_future()
    waits.cancel()
    made[0].stored = waits
    await stream.tell({"choices": []})
    await stream.finish()
    assert "has a gap" in caplog.text
