"""No record ends a process: what can't be read or handled is set aside, and the rest goes on."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import orjson
import pytest
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException
from hold_cases import hold, make_batcher, run
from stream_cases import START, Yard, drain, header, keys, make_settings, step_until
from worker_cases import ScriptedBackend, place, serve

from policies.placement import placer
from streams.batcher import partition_state
from streams.batcher import stage as batcher_stage
from streams.cancellation.stage import Canceller
from streams.engine.log import Outgoing, Partition, Record
from streams.engine.stage import Stage
from streams.kafka.follower import TopicFollower
from streams.router import stage as router_stage
from streams.router.stage import Router
from topics import BadRecordError
from topics.records import headers as h
from workers.stage import routed_request

TORN = BadRecordError("decode", "corrupt_batch", "the record batch at offset 0 to 3 is torn")


def make_router(yard: Yard) -> Router:
    return Router(
        yard.situation(),
        yard.evidence_writer(),
        yard.clock,
        yard.telemetry,
        request_bytes_max=yard.settings.request_bytes_max,
        duplicate_window_records=yard.settings.duplicate_window_records,
    )


@dataclass(frozen=True)
class Door:
    """A topic that a stage reads, and what stands beside the bad record there."""

    topic: Callable[[Yard], str]
    stage: Callable[[Yard], Stage]
    publish_good: Callable[[Yard], object]
    is_served: Callable[[Yard], bool]


DOORS = {
    "ingest": Door(
        lambda yard: yard.catalogue.requests,
        make_router,
        lambda yard: yard.publish(0, id="good"),
        lambda yard: keys(yard.lane("premium-eu", "direct")) == ["good"],
    ),
    "reroutes": Door(
        lambda yard: yard.catalogue.reroutes,
        make_router,
        lambda yard: yard.publish(0, id="good"),
        lambda yard: keys(yard.lane("premium-eu", "direct")) == ["good"],
    ),
    "hold": Door(
        lambda yard: yard.catalogue.held,
        make_batcher,
        lambda yard: hold(yard, "good", partition=0),
        lambda yard: keys(yard.held()) == ["good"],
    ),
    "cancellations": Door(
        lambda yard: yard.catalogue.cancellations,
        lambda yard: Canceller(yard.evidence_writer(), yard.clock),
        lambda yard: yard.cluster.publish(
            Outgoing(yard.catalogue.cancellations, b"good", None, partition=0)
        ),
        lambda yard: len(yard.evidence("cancel_requested")) == 1,
    ),
}


@pytest.mark.parametrize("name", DOORS)
async def test_a_batch_that_can_not_be_read_is_a_dead_letter_by_its_offset(name: str) -> None:
    door, yard = DOORS[name], Yard()
    topic = door.topic(yard)
    # A null key and value, as of a batch nobody can look into: no tombstone of anything.
    torn = yard.cluster.publish(Outgoing(topic, None, None, [], 0), unreadable=TORN)
    door.publish_good(yard)
    await drain(await yard.run(door.stage(yard)))
    (letter,) = yard.dead_letters()
    assert header(letter, h.REASON) == "corrupt_batch"
    assert header(letter, "__connect.errors.topic") == topic
    assert header(letter, "__connect.errors.offset") == str(torn.offset)
    (evidence,) = yard.evidence("dead_lettered")
    assert (evidence.source.topic, evidence.source.offset) == (topic, torn.offset)
    assert evidence.message == TORN.message
    assert door.is_served(yard)


async def test_what_the_hold_can_not_read_is_set_aside_once_whoever_takes_it_over() -> None:
    """It can't be told by a tombstone, since it has no key."""
    yard = Yard()
    hold(yard, "oldest", partition=0)
    yard.cluster.publish(Outgoing(yard.catalogue.held, None, None, [], 0), unreadable=TORN)
    for _ in range(3):
        await drain(await run(yard, make_batcher(yard)))
    assert len(yard.dead_letters()) == 1
    assert keys(yard.held()) == ["oldest"]


async def test_a_worker_sets_aside_what_it_can_not_read() -> None:
    yard = Yard()
    backend = ScriptedBackend()
    lane = yard.catalogue.pool_lane("premium-eu", "direct")
    yard.cluster.publish(Outgoing(lane, None, None, [], 0), unreadable=TORN)
    place(yard, "good", number=0)
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: bool(backend.running), "the good one")
    backend.finish("good")
    await step_until(transactor, yard.results, "its result")
    assert keys(yard.dead_letters()) == [""]


async def test_null_header_values_travel_through_every_stage() -> None:
    yard = Yard()
    nulls: list[tuple[str, bytes | None]] = [("a", None), ("a", b""), ("traceparent", None)]
    yard.publish(0, nulls, id="chat")
    yard.publish(0, nulls, id="sum", task="summarization", completion_window="10m")
    await drain(await yard.run(make_router(yard)))
    (sent,) = yard.lane("premium-eu", "direct")
    (kept,) = yard.held()
    for record in (sent, kept):
        assert list(record.headers)[:3] == nulls
    backend = ScriptedBackend()
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: "chat" in backend.running, "the call")
    backend.finish("chat")
    await step_until(transactor, yard.results, "the result")
    yard.clock.at = START + 400
    await drain(await run(yard, make_batcher(yard)))
    assert not yard.held()
    assert not yard.dead_letters()


async def test_a_cancellation_may_have_a_null_for_anything() -> None:
    yard = Yard()
    for key, value in ((None, None), (b"x", None), (b"y", b"null")):
        record = Outgoing(yard.catalogue.cancellations, key, value, [("n", None)], 0)
        yard.cluster.publish(record)
    await drain(await yard.run(Canceller(yard.evidence_writer(), yard.clock)))
    assert {e.request_id for e in yard.evidence("cancel_requested")} == {"x", "y"}
    assert len(yard.dead_letters()) == 1


def failing(what: Callable[..., Any], unless: Callable[..., bool]) -> Callable[..., Any]:
    """Return what fails as a defect would, on some of what it is given."""

    def fail(*given: Any, **named: Any) -> Any:
        if unless(*given):
            return what(*given, **named)
        raise ZeroDivisionError("secret payload")

    return fail


async def test_a_request_that_no_code_can_route_is_rejected_and_set_aside(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    yard = Yard()
    unless = lambda profile, *_: profile.id != "bad"  # noqa: E731
    monkeypatch.setattr(placer, "decide", failing(placer.decide, unless))  # type: ignore[attr-defined]
    for name in ("before", "bad", "after"):
        yard.publish(0, id=name)
    await drain(await yard.run(make_router(yard)))
    assert keys(yard.lane("premium-eu", "direct")) == ["before", "after"]
    (letter,) = yard.dead_letters()
    assert header(letter, h.REASON) == "unhandled"
    assert yard.results()["bad"].status == "rejected"
    assert sorted(e.step for e in yard.evidence() if e.request_id == "bad") == [
        "dead_lettered",
        "rejected",
    ]
    told = caplog.text + orjson.dumps([dict(letter.headers)], default=repr).decode()
    assert "ZeroDivisionError" in told
    assert "router/stage.py" in caplog.text
    assert "secret payload" not in told


@pytest.mark.parametrize("parser", ["parse_request"])
async def test_a_parser_that_fails_sets_its_record_aside(
    monkeypatch: pytest.MonkeyPatch, parser: str
) -> None:
    yard = Yard()
    unless = lambda value, *_: b'"bad"' not in value  # noqa: E731
    monkeypatch.setattr(router_stage, parser, failing(getattr(router_stage, parser), unless))
    for name in ("before", "bad", "after"):
        yard.publish(0, id=name)
    await drain(await yard.run(make_router(yard)))
    assert keys(yard.lane("premium-eu", "direct")) == ["before", "after"]
    assert keys(yard.dead_letters()) == ["bad"]


async def test_a_held_request_that_no_code_can_take_in_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = Yard()
    unless = lambda profile, *_: profile.id != "bad"  # noqa: E731
    monkeypatch.setattr(partition_state, "group_in", failing(partition_state.group_in, unless))  # type: ignore[attr-defined]
    hold(yard, "bad", partition=0)
    hold(yard, "good", partition=0)
    await drain(await run(yard, make_batcher(yard)))
    assert keys(yard.held()) == ["good"]
    assert yard.results()["bad"].status == "failed"
    assert header(yard.dead_letters()[0], h.REASON) == "unhandled"


async def test_a_batch_that_no_code_can_release_fails_member_by_member(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = Yard()
    monkeypatch.setattr(batcher_stage, "Hold", failing(batcher_stage.Hold, lambda *_: False))  # type: ignore[attr-defined]
    hold(yard, "s0", partition=0)
    hold(yard, "s1", partition=0)
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at = START + 45
    await drain(transactor)
    assert not yard.held()
    assert sorted(keys(yard.dead_letters())) == ["s0", "s1"]
    assert {result.status for result in yard.results().values()} == {"failed"}


async def test_a_batch_for_which_no_pool_can_be_found_ends_at_its_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = Yard()

    def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(placer, "find_target", fail)
    hold(yard, "s0", partition=0)
    transactor = await run(yard, make_batcher(yard))
    yard.clock.at = START + 10_000_000
    await drain(transactor)
    assert yard.results()["s0"].status in ("expired", "rejected")


async def test_a_request_that_no_code_can_take_into_a_worker_fails(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    yard = Yard()
    unless = lambda value, *_: b'"bad"' not in value  # noqa: E731
    parser = failing(routed_request.parse_request, unless)  # type: ignore[attr-defined]
    monkeypatch.setattr(routed_request, "parse_request", parser)
    backend = ScriptedBackend()
    place(yard, "bad", number=0)
    place(yard, "good", number=0)
    _, transactor = await serve(yard, backend)
    await step_until(transactor, lambda: bool(yard.results()), "the failure")
    assert yard.results()["bad"].status == "failed"
    assert backend.running == ["good"]


class Follower(TopicFollower):
    def __init__(self, take: Callable[[Record], object]) -> None:
        super().__init__(make_settings(), "t")
        self.take = take  # type: ignore[method-assign,assignment]

    def take(self, record: Record) -> None:
        raise NotImplementedError


class Consumer:
    """A consumer that returns what is given, in turn, and notes where it was sent."""

    def __init__(self, *polls: object) -> None:
        self.polls = list(polls)
        self.sought: dict[TopicPartition, int] = {}

    def assignment(self) -> set[TopicPartition]:
        return {TopicPartition("t", 0)}

    def seek(self, partition: TopicPartition, offset: int) -> None:
        self.sought[partition] = offset

    async def getmany(self, **_: object) -> Any:
        found = self.polls.pop(0)
        if isinstance(found, Exception):
            raise found
        return {TopicPartition("t", 0): found}


def consumed(offset: int, *headers: tuple[str, object]) -> Any:
    """Return a record as the client does, or what stands for a batch that can't be read."""
    is_lost = any(value is TORN for _, value in headers)
    return SimpleNamespace(
        offset=offset,
        key=None if is_lost else b"k",
        value=None if is_lost else b"v",
        headers=headers,
        timestamp=1,
        leader_epoch=None,
    )


async def test_a_follower_passes_over_what_it_can_not_take_in(
    caplog: pytest.LogCaptureFixture,
) -> None:
    taken: list[int] = []

    def take(record: Record) -> None:
        if record.offset == 1:
            raise RecursionError("secret payload")
        taken.append(record.offset)

    follower = Follower(take)
    polled = [consumed(0), consumed(1), consumed(2, ("", TORN)), consumed(3)]
    follower._consumer = cast("AIOKafkaConsumer", Consumer(polled))
    with caplog.at_level(logging.WARNING):
        await follower.step(0.1)
    assert taken == [0, 3]
    assert follower.set_aside == {"t": 2}
    assert follower._positions[Partition("t", 0)] == 4
    assert "RecursionError" in caplog.text
    assert TORN.message in caplog.text
    assert "secret payload" not in caplog.text


async def test_a_cancellation_counts_whatever_its_headers_are_called() -> None:
    yard = Yard()
    odd = BadRecordError("decode", "header_not_utf8", "not UTF-8")
    record = Outgoing(yard.catalogue.cancellations, b"odd", None, partition=0)
    yard.cluster.publish(record, unreadable=odd)
    await drain(await yard.run(Canceller(yard.evidence_writer(), yard.clock)))
    assert [e.request_id for e in yard.evidence("cancel_requested")] == ["odd"]


async def test_a_follower_takes_what_has_a_key_whatever_its_headers_are_called() -> None:
    odd = BadRecordError("decode", "header_not_utf8", "not UTF-8")
    taken: list[bytes | None] = []
    follower = Follower(lambda record: taken.append(record.key))
    follower._consumer = cast("AIOKafkaConsumer", Consumer([consumed(0, ("x", b"v"), ("", odd))]))
    await follower.step(0.1)
    assert taken == [b"k"]


async def test_a_follower_goes_back_where_a_checksum_was_wrong() -> None:
    taken: list[int] = []
    follower = Follower(lambda record: taken.append(record.offset))
    consumer = Consumer([consumed(0)], CorruptRecordException("bad"), [consumed(1)])
    follower._consumer = cast("AIOKafkaConsumer", consumer)
    for _ in range(3):
        await follower.step(0.1)
    assert taken == [0, 1]
    assert consumer.sought == {TopicPartition("t", 0): 1}
