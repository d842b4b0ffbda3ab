"""No byte of a payload is in what is kept of it: a canary goes through every path, and none sings.

What a client or a model server may write anything into holds ``CANARY``, and every byte of
evidence, roots, progress, heartbeats, ids, logs, spans, metrics and live view is looked at.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import orjson
import pytest
from hold_cases import hold, make_batcher
from memory_log import MemoryLog
from metrics_cases import make_metrics
from model_server import Exchange, ModelServer
from openai_cases import of_yard
from stream_cases import MODEL, START, Yard, drain, step_until
from trace_cases import TracedYard
from worker_cases import make_worker, place

from streams.cancellation.stage import Canceller
from streams.engine.log import Outgoing
from streams.engine.stage import Stage
from streams.live import LiveView, snapshot_of
from streams.live.story import tell
from topics import Cancellation, encode
from topics.records import headers as h

# Any piece of six characters shows it, wherever a text is cut.
PIECE = "zqxjkv"
CANARY = PIECE * 40
GOOD = {"model": MODEL, "messages": [{"role": "user", "content": CANARY}]}
LONG = {"task": "summarization", "hints": {"batchable": True}}


def kept(yard: Yard) -> Iterator[tuple[str, bytes]]:
    """Yield all that is kept of requests but themselves, and what is answered to clients."""
    c = yard.catalogue
    for topic in (c.evidence, c.evidence_roots, c.evidence_salts, c.progress, c.seen_ids):
        for record in yard.cluster.records(topic):
            yield topic, (record.key or b"") + (record.value or b"")
    for record in yard.cluster.records(c.dead_letters):
        told = [v for name, v in record.headers if name.startswith("__connect") or name == h.REASON]
        yield "reason of a dead letter", b" ".join(value or b"" for value in told)


class Watched(TracedYard):
    """A yard of which all that can be seen from outside is kept."""

    def __init__(self, caplog: pytest.LogCaptureFixture, **options: Any) -> None:
        super().__init__(**options)
        caplog.set_level(logging.DEBUG)
        self._caplog = caplog
        self.metrics = make_metrics(self)
        self.heartbeats: list[bytes] = []

    async def through(self, stage: Stage) -> None:
        """Let a stage do all that there is, counted and traced."""
        transactor = await self.run(stage)
        transactor._observers = [*transactor._observers, self.metrics.observer]
        await drain(transactor)

    def everything(self) -> Iterator[tuple[str, bytes]]:
        yield from kept(self)
        yield "log", self._caplog.text.encode()
        self.span_queue.flush()
        for sent in self.collector.requests:
            yield "spans", sent
        yield "metrics", self.metrics.page("")[1]
        for raw in self.heartbeats:
            yield "heartbeat", raw
        view = LiveView(self.catalogue, self.options, self.policy, since=START - 60)
        for topic in (self.catalogue.evidence, self.catalogue.held):
            for record in self.cluster.records(topic):
                view.take(record, self.clock.now())
        yield "live view", orjson.dumps(snapshot_of(view, self.clock.now()))
        steps = self.evidence()
        for name in {step.request_id for step in steps}:
            told = tell([step for step in steps if step.request_id == name])
            yield "story", orjson.dumps(told, default=str)

    def assert_silent(self, *, pieces: int = 1) -> None:
        found = list(self.everything())
        assert sum(place == self.catalogue.evidence for place, _ in found) >= pieces
        heard = [(place, raw[:2000]) for place, raw in found if PIECE.encode() in raw]
        assert not heard


def value(**fields: Any) -> bytes:
    return orjson.dumps({"id": "r1", "body": GOOD, "created_at": START} | fields)


UNREADABLE: dict[str, bytes] = {
    "a body that is a text": value(body=CANARY),
    "a body that is a list": value(body=[CANARY]),
    "a text in place of an object": orjson.dumps(CANARY),
    "no JSON": CANARY.encode(),
    "JSON that breaks off": value()[:-9],
    "JSON with a stray byte": value()[:-1] + b"\xff}",
    "a field twice": value()[:-1] + b',"%b":1,"%b":2}' % ((CANARY.encode(),) * 2),
    "a field twice in the body": b'{"id":"r1","body":{"%b":1,"%b":2}}' % ((CANARY.encode(),) * 2),
    "an unknown field": value(**{CANARY: CANARY}),
    "an unknown constraint": value(constraints={CANARY: 1}),
    "constraints that are a text": value(constraints=CANARY),
    "regions that are a text": value(constraints={"regions": CANARY}),
    "a label of another type": value(constraints={"labels": {CANARY: [CANARY]}}),
    "a deadline that is a text": value(deadline=CANARY),
    "a tier that there is not": value(service_tier=CANARY),
    "a window that is no duration": value(completion_window=CANARY),
    "a limit that is a text": value(body=GOOD | {"max_tokens": CANARY}),
    "a stream that is a text": value(body=GOOD | {"stream": CANARY}),
    "a model that is a list": value(model=[CANARY]),
    "a tenant that is too long": value(tenant=CANARY),
    "an id that is too long": value(id=CANARY),
    "hints that are texts": value(hints={"input_tokens": CANARY}),
    "an objective that is a text": value(slo={"ttft_ms": CANARY}),
    "a url with a text": value(url=f"/{CANARY} "),
    "a line with an unknown field": orjson.dumps(
        {"custom_id": "c", "url": "/v1/x", "body": GOOD, CANARY: CANARY}
    ),
    "a line with another method": orjson.dumps(
        {"custom_id": "c", "url": "/v1/x", "body": GOOD, "method": CANARY}
    ),
    "too deep": b'{"id":"r1","body":{"x":' + b"[" * 300 + b'"%b"' % CANARY.encode() + b"]" * 300,
    "a lone surrogate": b'{"id":"r1","body":{"model":"yard-8b","x":"\\ud800%b"}}' % CANARY.encode(),
    "too large": value(body=GOOD | {"x": CANARY * 1000}),
}


@pytest.mark.parametrize("what", UNREADABLE)
async def test_what_can_t_be_read_leaves_no_text(
    what: str, caplog: pytest.LogCaptureFixture
) -> None:
    yard = Watched(caplog)
    raw = UNREADABLE[what]
    headers = [("note", CANARY.encode()), ("tracestate", CANARY.encode())]
    for topic in (yard.catalogue.requests, yard.catalogue.reroutes):
        yard.cluster.publish(Outgoing(topic, b"r1", raw, headers, 0))
    await yard.through(yard.router())
    for name in ("placed", "held"):
        assert not yard.evidence(name)
    assert yard.dead_letters()
    yard.assert_silent(pieces=2)


BODIES: dict[str, dict[str, Any]] = {
    "messages": GOOD,
    "parts, tools and a schema": {
        "model": MODEL,
        "messages": [
            {"role": "system", "content": CANARY},
            {"role": "user", "name": PIECE, "content": [{"type": "text", "text": CANARY}]},
        ],
        "tools": [{"type": "function", "function": {"name": PIECE, "description": CANARY}}],
        "response_format": {"type": "json_schema", "json_schema": {"name": CANARY}},
        "metadata": {CANARY: CANARY},
        "user": CANARY,
        "stop": [CANARY],
        CANARY: CANARY,
    },
}


@pytest.mark.parametrize("fields", [{}, LONG, {"task": "none"}, {"deadline": 1.0}])
@pytest.mark.parametrize("what", BODIES)
async def test_what_is_routed_held_cancelled_or_refused_leaves_no_text(
    what: str, fields: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    yard = Watched(caplog)
    for _ in range(2):  # The second is a duplicate.
        yard.publish(
            body=BODIES[what],
            metadata={CANARY: [CANARY]},
            session=CANARY[:100],
            headers=[("authorization", CANARY.encode()), (CANARY, b"1")],
            **fields,
        )
    await yard.through(yard.router())
    assert yard.cluster.records(yard.catalogue.evidence)
    yard.cluster.publish(
        Outgoing(yard.catalogue.cancellations, b"r1", orjson.dumps({"reason": CANARY}))
    )
    yard.cluster.publish(Outgoing(yard.catalogue.cancellations, b"r1", CANARY.encode()))
    yard.cluster.publish(Outgoing(yard.catalogue.cancellations, b"\xff" + CANARY.encode(), b""))
    yard.cancellations.add("r1", Cancellation(CANARY), yard.clock.now())
    await yard.through(Canceller(yard.evidence_writer(), yard.clock))
    await yard.through(make_batcher(yard))
    if fields == LONG:
        assert yard.evidence("cancelled")
        assert CANARY in str(yard.results()["r1"].error)
    yard.assert_silent(pieces=4)


async def test_a_hold_that_can_t_be_read_leaves_no_text(caplog: pytest.LogCaptureFixture) -> None:
    yard = Watched(caplog)
    record = hold(yard, "c0", partition=0, body=GOOD)
    for name in (h.PROFILE, h.HELD_AT):
        torn = h.replaced(record.headers, {name: CANARY.encode()})
        yard.cluster.publish(Outgoing(yard.catalogue.held, b"x" + name.encode(), b"{}", torn, 0))
    await yard.through(make_batcher(yard))
    yard.assert_silent()


async def says(x: Exchange, status: int) -> None:
    await x.json({"error": {"message": CANARY, "type": CANARY, "code": CANARY}}, status)


async def answers(x: Exchange) -> None:
    await x.events()
    for _ in range(2):
        await x.event(x.piece(CANARY))
    await x.event(x.piece(None, "stop"))
    await x.event({"choices": [], "usage": {"prompt_tokens": CANARY}})
    await x.end()


async def fails_in_the_stream(x: Exchange) -> None:
    await x.events()
    await x.event({"error": {"message": CANARY, "code": 500}})
    await x.end()


async def babbles(x: Exchange) -> None:
    await x.events()
    await x.event(CANARY.encode())
    await x.end()


async def breaks_off(x: Exchange) -> None:
    await x.events()
    await x.event(x.piece(CANARY))
    x.writer.close()


async def speaks_no_http(x: Exchange) -> None:
    await x.send(CANARY.encode() + b"\r\n\r\n")
    x.writer.close()


async def is_silent(x: Exchange) -> None:
    await x.events()
    await x.event(x.piece(CANARY))
    await asyncio.sleep(60)


def status(code: int) -> Callable[[Exchange], Awaitable[None]]:
    return lambda x: says(x, code)


SERVERS: dict[str, tuple[Callable[[Exchange], Awaitable[None]], str]] = {
    "answers": (answers, "executed"),
    "finds it at fault and says why": (status(400), "failed"),
    "can't process it": (status(422), "failed"),
    "fails": (status(500), "fell_back"),
    "wants another key": (status(401), "fell_back"),
    "has none of it": (status(404), "fell_back"),
    "fails in the stream": (fails_in_the_stream, "fell_back"),
    "babbles": (babbles, "fell_back"),
    "breaks off": (breaks_off, "fell_back"),
    "speaks no HTTP": (speaks_no_http, "fell_back"),
    "falls silent": (is_silent, "fell_back"),
}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("what", SERVERS)
async def test_what_a_model_server_says_leaves_no_text(
    what: str, stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    behave, step = SERVERS[what]
    yard = Watched(caplog)
    declared = {"first_token_s_max": 2.0, "idle_s_max": 0.3}
    async with (
        ModelServer(behave) as server,
        of_yard(yard, server.base_url, **declared) as backend,
    ):
        place(yard, "c0", body=GOOD | {"stream": stream}, metadata=CANARY)
        worker = make_worker(yard, backend)
        transactor = await yard.run(worker, MemoryLog(yard.cluster, "a"))
        transactor._observers = [*transactor._observers, yard.metrics.observer]
        await step_until(transactor, lambda: yard.evidence(step), what, timeout_s=60.0)
        load = encode(backend.load())
        yard.heartbeats.append(load)
        assert server.asked
        assert PIECE in str(server.asked[0].body)
    yard.assert_silent()
    if step == "executed":
        assert CANARY in str(yard.results()["c0"].response)


@pytest.mark.parametrize("stream", [False, True])
async def test_texts_that_are_switched_on_stand_in_one_span_and_nowhere_else(
    stream: bool, caplog: pytest.LogCaptureFixture
) -> None:
    yard = Watched(caplog, text_max=600)
    async with ModelServer(answers) as server, of_yard(yard, server.base_url) as backend:
        place(yard, "c0", body=GOOD | {"stream": stream}, metadata=CANARY)
        transactor = await yard.run(make_worker(yard, backend), MemoryLog(yard.cluster, "a"))
        await step_until(transactor, lambda: yard.evidence("executed"), "answers", timeout_s=60.0)
    heard = {place for place, raw in yard.everything() if PIECE.encode() in raw}
    assert heard == {"spans"}
    shown = [span for span in yard.spans() if PIECE in str(span.attributes)]
    assert [span.name for span in shown] == [f"chat {MODEL}"]
    told = shown[0].attributes or {}
    (asked,) = orjson.loads(str(told["gen_ai.input.messages"]))
    (answered,) = orjson.loads(str(told["gen_ai.output.messages"]))
    assert asked == {"role": "user", "parts": [{"type": "text", "content": CANARY}]}
    assert answered["role"] == "assistant"
    # What is longer than the limit is cut, and the JSON is whole.
    assert answered["parts"][0]["content"] == (CANARY * 3)[: min(600, len(CANARY) * 2)]


async def test_the_canary_is_heard_where_it_may_sing(caplog: pytest.LogCaptureFixture) -> None:
    """What is looked at would show it: a reason that were the client's text is found."""
    yard = Watched(caplog)
    yard.cluster.publish(Outgoing(yard.catalogue.requests, CANARY[:100].encode(), b"{}", [], 0))
    await yard.through(yard.router())
    with pytest.raises(AssertionError):
        yard.assert_silent()
