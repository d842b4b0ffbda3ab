"""Telling the others: a broker that fails ends no process, a right that is missing does."""

from typing import Any

import pytest
from aiokafka.errors import KafkaConnectionError, KafkaError, TopicAuthorizationFailedError

from streams.kafka import idempotent_producer
from streams.kafka.announcer import Announcer
from topics import Settings


class Producers:
    """Makes producers, of which each raises what it is told to, or keeps what it is given."""

    def __init__(self, *errors: Exception | None) -> None:
        self._errors = list(errors)
        self.made = self.stopped = 0
        self.sent: list[bytes] = []

    def __call__(self, **_: Any) -> Any:
        self.made += 1
        return self

    async def start(self) -> None:
        """Nothing to start."""

    async def stop(self) -> None:
        self.stopped += 1

    async def send_and_wait(self, _topic: str, value: bytes, *, key: bytes) -> None:
        error = self._errors.pop(0) if self._errors else None
        if error is not None:
            raise error
        self.sent.append(value)


def announcing(monkeypatch: pytest.MonkeyPatch, *errors: Exception | None) -> Producers:
    producers = Producers(*errors)
    monkeypatch.setattr(idempotent_producer, "AIOKafkaProducer", producers)
    return producers


async def test_what_is_lost_is_followed_by_the_next_over_a_new_producer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    producers = announcing(monkeypatch, None, KafkaConnectionError("gone"))
    told = Announcer(Settings(), "status")
    await told.start()
    for value in (b"one", b"two", b"three"):
        await told.tell(b"pool/instance", value)
    assert producers.sent == [b"one", b"three"]
    assert (producers.made, producers.stopped) == (2, 1)
    assert "has not been told of pool/instance" in caplog.text
    await told.stop((b"pool/instance", b"four"))
    assert producers.sent[-1] == b"four"
    assert producers.stopped == 2


async def test_what_must_be_known_is_not_lost_in_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    announcing(monkeypatch, KafkaConnectionError("gone"))
    told = Announcer(Settings(), "keys")
    await told.start()
    with pytest.raises(KafkaError):
        await told.publish(b"key/1", b"one")


async def test_a_right_that_is_missing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    announcing(monkeypatch, TopicAuthorizationFailedError("status"))
    told = Announcer(Settings(), "status")
    await told.start()
    with pytest.raises(TopicAuthorizationFailedError):
        await told.tell(b"pool/instance", b"one")


async def test_who_never_started_has_nothing_to_say(monkeypatch: pytest.MonkeyPatch) -> None:
    producers = announcing(monkeypatch)
    await Announcer(Settings(), "status").stop((b"pool/instance", b"down"))
    assert (producers.made, producers.sent) == (0, [])
