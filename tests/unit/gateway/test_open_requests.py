"""What a gateway keeps of a request while it is open."""

import contextlib
import gc
from collections.abc import Iterator
from types import AsyncGeneratorType, CoroutineType, SimpleNamespace
from typing import Any, cast

import aiohttp
from aiohttp import web

from gateway.api.inference import infer
from gateway.exchange.mailbox import Mailbox
from gateway.exchange.turns import Places
from gateway.http.spans import HttpSpan
from gateway.http.state import CALLER, GATEWAY, REQUEST_ID, SPAN
from streams.engine.clock import SystemClock
from topics import Response, Result, Settings, Timing, encode

MESSAGES = 1237
BODY = {"model": "m", "messages": [{"role": "user", "content": "x"}] * MESSAGES}
LONG = b'"content":"x"'


def kept() -> int:
    """Objects of this process that hold the messages: lists, and bytes in what is suspended."""
    gc.collect()
    found = gc.get_objects()
    frames = [each.cr_frame for each in found if isinstance(each, CoroutineType)]
    frames += [each.ag_frame for each in found if isinstance(each, AsyncGeneratorType)]
    values = [value for frame in frames if frame for value in frame.f_locals.values()]
    lists = sum(type(each) is list and len(each) == MESSAGES for each in found)
    return lists + sum(isinstance(value, bytes) and LONG in value for value in values)


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
