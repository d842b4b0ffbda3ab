"""Streams to clients that join late, read slowly, or see a run begin again."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web

from gateway.api import streams
from gateway.api.runs import Key, Run
from gateway.api.streams import StreamedAnswer
from gateway.api.translation import wanted
from gateway.exchange import mailbox
from gateway.exchange.mailbox import Mailbox, PiecesBefore
from gateway.http.errors import ApiError
from streams.engine.clock import SystemClock
from topics import Response, Result, StreamPiece, Timing, Usage, encode

REQUEST = "req_0"
CLOCK = SystemClock()


def piece(index: int, text: str, offset: int) -> tuple[bytes, int]:
    """A piece of the log, and its offset."""
    chunk = {"id": "c", "choices": [{"index": 0, "delta": {"content": text}}]}
    return encode(StreamPiece(REQUEST, 1, index, 0.0, chunk)), offset


def end(index: int, offset: int) -> tuple[bytes, int]:
    return encode(StreamPiece(REQUEST, 1, index, 0.0, result=result("", ""))), offset


def result(*texts: str) -> Result:
    message = {"role": "assistant", "content": "".join(texts)}
    body = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    timing = Timing(created_at=1.0, finished_at=2.0)
    return Result(REQUEST, "completed", timing, response=Response(200, body), usage=Usage(1, 1))


@contextlib.asynccontextmanager
async def streaming(
    act: Callable[[Mailbox], Awaitable[None]],
    *,
    run: Run | None = None,
    deadline_s: float | None = None,
    before: PiecesBefore | None = None,
) -> AsyncIterator[str]:
    """A server whose one answer is a stream of what is put into its mailbox."""

    async def pieces(_request_id: str, _since: float) -> PiecesBefore | None:
        return before

    exchange = SimpleNamespace(pieces=pieces)
    gateway: Any = SimpleNamespace(
        clock=CLOCK, exchange=exchange, fleet=None, begin=lambda work: work.close()
    )
    body = {"model": "m", "messages": [{"role": "user", "content": "x"}], "stream": True}
    if deadline_s is not None:
        body["shunter"] = {"deadline": CLOCK.now() + deadline_s}

    async def handle(request: web.Request) -> web.StreamResponse:
        box = Mailbox(REQUEST)
        asked = wanted("/v1/chat/completions", body, {}, "acme", CLOCK.now())
        answer = StreamedAnswer(gateway, request, run or Run(REQUEST), asked, box, lambda: None)
        acting = asyncio.ensure_future(act(box))
        try:
            async with asyncio.timeout(deadline_s):
                return await answer.send({})
        except TimeoutError:
            return await answer.expire(ApiError(504, "deadline_exceeded", "late"))
        finally:
            acting.cancel()

    app = web.Application()
    app.router.add_get("/", handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        await runner.cleanup()


async def read(url: str) -> list[str]:
    """The events of an answer; texts, codes of errors, and the end."""
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        found = []
        async for line in answer.content:
            if line.startswith(b"data: {"):
                event = orjson.loads(line[6:])
                if "error" in event:
                    found.append(event["error"]["code"])
                elif text := event["choices"][0]["delta"].get("content"):
                    found.append(text)
            elif line.startswith(b"data: [DONE]"):
                found.append("DONE")
        return found


async def test_who_joins_gets_each_piece_once_and_as_it_is_made() -> None:
    seen_early = asyncio.Event()

    async def act(box: Mailbox) -> None:
        # Came while the log was read, which had it.
        box.put_piece(*piece(1, "b", 11))
        await asyncio.wait_for(seen_early.wait(), 60)
        box.put_piece(*piece(1, "b", 11))
        box.put_piece(*piece(2, "c", 12))
        box.put_piece(*end(3, 13))
        box.put_result(encode(result("a", "b", "c")))

    before = PiecesBefore([piece(0, "a", 10)[0], piece(1, "b", 11)[0]], 12)
    run = Run(REQUEST, Key("acme", "/", "k"), is_joined=True)
    async with (
        streaming(act, run=run, before=before) as url,
        aiohttp.ClientSession() as session,
        session.get(url) as answer,
    ):
        found: list[Any] = []
        async for line in answer.content:
            if line.startswith(b"data: {"):
                found += [orjson.loads(line[6:])["choices"][0]["delta"].get("content")]
            if found[-1:] == ["b"]:
                seen_early.set()
    assert [text for text in found if text] == ["a", "b", "c"]


async def test_a_run_that_begins_again_ends_the_stream() -> None:
    async def act(box: Mailbox) -> None:
        box.put_piece(*piece(0, "a", 1))
        box.put_piece(*piece(0, "a", 2))

    async with streaming(act) as url:
        assert await read(url) == ["a", "stream_interrupted"]
    async with streaming(act, deadline_s=60) as url:
        assert await read(url) == ["a", "stream_interrupted"]


async def test_one_that_begins_again_just_before_its_deadline_ends_by_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # It would end by itself long after.
    monkeypatch.setattr(streams, "LATE_S", 30.0)

    async def act(box: Mailbox) -> None:
        box.put_piece(*piece(0, "a", 1))
        await asyncio.sleep(0.2)
        box.put_piece(*piece(0, "a", 2))

    async with streaming(act, deadline_s=0.4) as url:
        began_at = CLOCK.now()
        assert await read(url) == ["a", "deadline_exceeded"]
        assert 0.35 < CLOCK.now() - began_at < 20.0


async def test_pieces_beyond_what_may_wait_are_made_up_for_from_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(mailbox, "WAITING_BYTES_MAX", 3000)
    text = "x" * 1000

    async def act(box: Mailbox) -> None:
        for n in range(6):
            box.put_piece(*piece(n, text, n))
        box.put_piece(*end(6, 6))
        box.put_result(encode(result(*[text] * 6)))

    async with streaming(act) as url:
        found = await read(url)
    assert "".join(found[:-1]) == text * 6
    assert found[-1] == "DONE"


async def test_pieces_that_are_lost_never_look_like_an_end() -> None:
    async def act(box: Mailbox) -> None:
        box.put_piece(*piece(0, "a", 1))
        box.put_piece(*piece(2, "c", 3))
        # What was sent is no beginning of it.
        box.put_result(encode(result("other")))

    async with streaming(act) as url:
        assert await read(url) == ["a", "stream_interrupted"]


async def test_a_client_that_reads_nothing_is_given_up_and_holds_up_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "STALLED_S_MAX", 0.3)
    text = "x" * 100_000
    pieces = 200
    ends: list[BaseException | None] = []

    async def act(box: Mailbox) -> None:
        try:
            for n in range(pieces):
                box.put_piece(*piece(n, text, n))
                await asyncio.sleep(0.005)
            box.put_piece(*end(pieces, pieces))
            box.put_result(encode(result(*[text] * pieces)))
            await asyncio.sleep(60)
        except asyncio.CancelledError as error:
            ends.append(error)

    async with streaming(act) as url:
        port = int(url.rsplit(":", 1)[1].strip("/"))
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        found = await read(url)
        assert "".join(found[:-1]) == text * pieces
        assert found[-1] == "DONE"
        async with asyncio.timeout(60):
            while len(ends) < 2:  # noqa: ASYNC110 - of the server's side nothing else is told
                await asyncio.sleep(0.02)
        with contextlib.suppress(ConnectionError):
            while got := await reader.read(65536):
                assert b"[DONE]" not in got
        writer.close()
