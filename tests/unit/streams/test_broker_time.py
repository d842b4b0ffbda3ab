"""A topic that has not the broker's time is told of, once, and for no other reason."""

from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import TopicPartition

from streams.kafka.broker_time import Stamps
from topics import Catalogue, Settings

SETTINGS = Settings(topic_prefix="yard")
NAMES = Catalogue(SETTINGS)
WRITERS, BROKERS = 0, 1


def first(topic: str, timestamp_type: int, value: bytes | None = b"{}") -> dict[Any, Any]:
    record = SimpleNamespace(timestamp_type=timestamp_type, value=value)
    return {TopicPartition(topic, 0): [record]}


def test_a_topic_with_the_time_of_its_writers_is_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stamps = Stamps(SETTINGS)
    stamps.look(first(NAMES.requests, BROKERS))
    assert not caplog.messages
    for _ in range(3):
        stamps.look(first(NAMES.requests, WRITERS))
    (line,) = caplog.messages
    assert line.startswith("yard.requests has not the broker's time")


@pytest.mark.parametrize(
    "polled",
    [
        first(NAMES.held, WRITERS),
        # As what stands for a batch that can't be read.
        first(NAMES.requests, WRITERS, None),
        {TopicPartition(NAMES.requests, 0): []},
    ],
)
def test_what_says_nothing_of_the_topic_is_passed_over(
    polled: dict[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    Stamps(SETTINGS).look(polled)
    assert not caplog.messages
