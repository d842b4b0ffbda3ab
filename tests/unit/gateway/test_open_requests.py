"""What a gateway keeps of a request while it is open."""

import asyncio
import contextlib
import gc
from collections.abc import AsyncIterator, Iterator
from types import AsyncGeneratorType, CoroutineType, SimpleNamespace
from typing import Any, cast

import aiohttp
import orjson
import pytest
from aiohttp import web

from gateway.api.inference import infer
from gateway.exchange.mailbox import Mailbox
from gateway.exchange.publisher import UnavailableError
from gateway.exchange.turns import Places
from gateway.http.body_room import BodyRoom
from gateway.http.spans import HttpSpan
from gateway.http.state import CALLER, GATEWAY, REQUEST_ID, SPAN
from gateway.server import listening, make_gateway
from streams.engine.clock import SystemClock
from topics import Catalogue, Response, Result, Settings, Timing, encode

MESSAGES = 1237
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}] * MESSAGES}
LONG = b'"content":"x"'
KEY = {"Authorization": "Bearer k"}


def as_objects() -> int:
    """Lists of messages."""
    gc.collect()
    return sum(type(each) is list and len(each) == MESSAGES for each in gc.get_objects())


def kept() -> int:
    """Objects of this process that hold the messages: lists, and bytes in what is suspended."""
    gc.collect()
    found = gc.get_objects()
    frames = [each.cr_frame for each in found if isinstance(each, CoroutineType)]
    frames += [each.ag_frame for each in found if isinstance(each, AsyncGeneratorType)]
    values = [value for frame in frames if frame for value in frame.f_locals.values()]
    return as_objects() + sum(isinstance(value, bytes) and LONG in value for value in values)


async def test_its_body_is_gone_once_it_is_published() -> None:
    seen: list[int] = []

    async def publish(_id: str, value: bytes, *_: Any, **__: Any) -> None:
        assert value.count(LONG) == MESSAGES

    class Answered(Mailbox):
        """Looks, while the request waits for its result, at what is kept of it."""

        async def result(self) -> Result:
            seen.append(kept())
            return await super().result()

    @contextlib.contextmanager
    def answered(request_id: str) -> Iterator[Mailbox]:
        box = Answered(request_id)
        response = Response(200, {"choices": []})
        box.put_result(encode(Result(request_id, "completed", Timing(1.0), response=response)))
        yield box

    gateway: Any = SimpleNamespace(
        settings=Settings(),
        clock=SystemClock(),
        places=Places(9),
        bodies=BodyRoom(10**6),
        fleet=SimpleNamespace(default_model=lambda _: None),
        exchange=SimpleNamespace(follow=answered, publish=publish),
        proofs=SimpleNamespace(headers=lambda *_: []),
    )
    span = SimpleNamespace(publication=lambda _: None, headers=lambda *_: [])

    async def handle(request: web.Request) -> web.StreamResponse:
        request[CALLER] = cast(Any, SimpleNamespace(tenant="acme", key=None, key_id=None))
        request[REQUEST_ID], request[SPAN] = "req_1", cast(HttpSpan, span)
        return await infer(request)

    app = web.Application()
    app[GATEWAY] = gateway
    app.router.add_post("/v1/chat/completions", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    before = kept()
    try:
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/v1/chat/completions"
        async with aiohttp.ClientSession() as session, session.post(url, json=BODY) as answer:
            assert answer.status == 200, await answer.text()
    finally:
        await runner.cleanup()
    assert seen == [before]


async def test_its_body_is_no_objects_while_a_slow_kafka_has_not_its_key() -> None:
    """Ten times the bytes, for as long as that takes."""
    lists: list[int] = []

    class KeyWaits(Held):
        """Looks, while a claim is on its way, at what there is of the body."""

        async def send(self, *_: Any) -> None:
            lists.append(as_objects())
            raise UnavailableError("Kafka is slow")

    async with at_door(KeyWaits()) as url, aiohttp.ClientSession() as session:
        before = as_objects()
        async with session.post(url, json=BODY, headers=KEY | {"Idempotency-Key": "a"}) as answer:
            assert answer.status == 503
    assert lists == [before]


class Held:
    """An exchange whose Kafka takes nothing until it is let go on, and answers nothing then."""

    def __init__(self) -> None:
        self.goes_on = asyncio.Event()
        self.seen: asyncio.Queue[str] = asyncio.Queue()
        self.catalogue = Catalogue(Settings())

    @contextlib.contextmanager
    def follow(self, request_id: str) -> Iterator[Mailbox]:
        yield Mailbox(request_id)

    async def publish(self, _id: str, value: bytes, *_: Any, **__: Any) -> None:
        assert value.count(LONG) == MESSAGES
        self.seen.put_nowait("begun")
        await self.goes_on.wait()
        self.seen.put_nowait("published")

    async def cancel(self, *_: Any) -> None:
        pass


@contextlib.asynccontextmanager
async def at_door(exchange: Held, **own: Any) -> AsyncIterator[str]:
    """A gateway before such an exchange."""
    settings = Settings(
        gateway_port=0, bootstrap_servers="127.0.0.1:1", gateway_answer_s_max=1.0, **own
    )
    gateway = make_gateway(settings)
    gateway.exchange = exchange  # type: ignore[assignment]
    async with listening(gateway) as port:
        yield f"http://127.0.0.1:{port}/v1/chat/completions"
        for _ in range(200):
            if not gateway.bodies.taken:
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"{gateway.bodies.taken} bytes are never given back")


async def pieces(data: bytes) -> AsyncIterator[bytes]:
    """A body that doesn't tell its length."""
    yield data[:-1]
    yield data[-1:]


@pytest.mark.parametrize("is_chunked", [False, True])
async def test_bodies_have_a_limit_together_while_kafka_takes_none(*, is_chunked: bool) -> None:
    body = orjson.dumps(BODY)
    exchange = Held()
    headers = KEY | {"Content-Type": "application/json"}

    async with (
        asyncio.timeout(20),
        at_door(exchange, gateway_body_bytes_max=2 * len(body) - 1) as url,
        aiohttp.ClientSession() as session,
    ):

        async def post() -> tuple[int, Any, str]:
            data = pieces(body) if is_chunked else body
            async with session.post(url, data=data, headers=headers) as answer:
                return answer.status, await answer.json(), answer.headers.get("Retry-After", "")

        first = asyncio.create_task(post())
        assert await exchange.seen.get() == "begun"
        for _ in range(2):
            status, told, wait = await post()
            assert (status, told["error"]["code"], wait) == (503, "overloaded", "1")
            assert "SHUNTER_GATEWAY_BODY_BYTES_MAX" in told["error"]["message"]
        assert exchange.seen.empty()
        exchange.goes_on.set()
        assert await exchange.seen.get() == "published"
        # The first is open, and its body is Kafka's.
        second = asyncio.create_task(post())
        assert [await exchange.seen.get() for _ in range(2)] == ["begun", "published"]
        assert not first.done()
        assert [(await each)[0] for each in (first, second)] == [504, 504]


async def test_a_body_that_is_larger_than_the_room_is_taken_alone() -> None:
    exchange = Held()
    exchange.goes_on.set()
    async with (
        at_door(exchange, gateway_body_bytes_max=1) as url,
        aiohttp.ClientSession() as session,
        session.post(url, json=BODY, headers=KEY) as answer,
    ):
        assert answer.status == 504
    assert [exchange.seen.get_nowait() for _ in range(2)] == ["begun", "published"]
