"""A hostile model server never stops a worker: each call ends in time, with what it means."""

import asyncio
import gzip
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
import pytest
from model_server import Exchange, serving
from openai_cases import backend_at, call
from system import eventually

from topics import ServerLoad, encode
from workers import CallError, openai, server_metrics
from workers.sse import EVENT_BYTES_MAX

MIB = 1024 * 1024
Behave = Callable[[Exchange], Awaitable[None]]


async def hang(_: Exchange) -> None:
    await asyncio.sleep(60)


async def hang_after_the_head(x: Exchange) -> None:
    await x.events()
    await asyncio.sleep(60)


async def hang_in_the_middle(x: Exchange) -> None:
    await x.events()
    await x.event(x.piece("one "))
    await asyncio.sleep(60)


async def drip_feed(x: Exchange) -> None:
    await x.events()
    while True:
        await x.chunk(b"d")
        await asyncio.sleep(0.02)


async def drip_feed_signs_of_life(x: Exchange) -> None:
    await x.events()
    await x.event(x.piece("one "))
    while True:
        await x.chunk(b": still here\n\n")
        await asyncio.sleep(0.02)


async def drip_feed_the_head(x: Exchange) -> None:
    for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 4000:
        await x.send(bytes([byte]))
        await asyncio.sleep(0.02)


async def garbage(x: Exchange) -> None:
    await x.json(b"\x00\xff{{{")


async def garbage_in_the_stream(x: Exchange) -> None:
    await x.events()
    await x.event(b'{"choices": [')
    await x.end()


async def no_http(x: Exchange) -> None:
    await x.send(b"SSH-2.0-OpenSSH_9.6\r\n\r\n")


async def another_shape(x: Exchange) -> None:
    await x.json([1, 2, 3])


async def nothing(x: Exchange) -> None:
    await x.json({})


async def error_under_200(x: Exchange) -> None:
    await x.json({"error": {"message": "CUDA out of memory"}})


async def another_shape_in_the_stream(x: Exchange) -> None:
    await x.events()
    await x.event({"choices": [{"index": "first"}]})
    await x.end()


async def a_delta_of_another_shape(x: Exchange) -> None:
    await x.events()
    await x.event({"choices": [{"index": 0, "delta": "abc"}]})
    await x.end()


async def no_choice(x: Exchange) -> None:
    await x.events()
    await x.end()


async def deep(x: Exchange) -> None:
    await x.json(b'{"a":' * 900 + b"1" + b"}" * 900)


async def deep_in_the_stream(x: Exchange) -> None:
    await x.events()
    inner = b'{"a":' * 300 + b'"x"' + b"}" * 300
    for _ in range(2):
        await x.event(b'{"choices":[{"index":0,"delta":' + inner + b"}]}")
    await x.end()


async def unwritable(x: Exchange) -> None:
    await x.events()
    inner = b'{"a":' * 260 + b'"x"' + b"}" * 260
    await x.event(b'{"choices":[{"index":0,"finish_reason":"stop","delta":' + inner + b"}]}")
    await x.end()


async def deep_error_in_the_stream(x: Exchange) -> None:
    await x.events()
    await x.event(b'{"error":{"code":400,"of":' + b"[" * 300 + b"]" * 300 + b"}}")
    await x.end()


async def deep_beside_a_choice(x: Exchange) -> None:
    await x.events()
    choice = orjson.dumps(x.piece("one ", "stop")["choices"][0])
    await x.event(b'{"choices":[' + choice + b'],"x":' + b"[" * 300 + b"]" * 300 + b"}")
    await x.end()


async def close_at_once(x: Exchange) -> None:
    x.writer.transport.abort()


async def close_in_the_stream(x: Exchange) -> None:
    await x.events()
    await x.event(x.piece("one "))
    x.writer.transport.abort()


async def end_before_the_end(x: Exchange) -> None:
    await x.events()
    await x.event(x.piece("one "))
    await x.end()


async def too_long_content_length(x: Exchange) -> None:
    await x.json({"choices": []}, Content_Length="5000")
    x.writer.transport.close()


async def too_short_content_length(x: Exchange) -> None:
    await x.json({"choices": []}, Content_Length="3")


async def no_number_content_length(x: Exchange) -> None:
    await x.json({"choices": []}, Content_Length="many")


async def hundred_megabytes(x: Exchange) -> None:
    await x.head(Content_Type="application/json", Content_Length=str(100 * MIB))
    for _ in range(100):
        await x.send(b" " * MIB)


async def hundred_megabytes_of_events(x: Exchange) -> None:
    await x.events()
    for _ in range(200):
        await x.event(x.piece("x" * (MIB // 2)))


async def endless_line(x: Exchange) -> None:
    await x.events()
    while True:
        await x.chunk(b"x" * MIB)


async def bomb(x: Exchange) -> None:
    data = gzip.compress(b" " * (8 * MIB))
    await x.json(data, Content_Encoding="gzip")


async def endless_headers(x: Exchange) -> None:
    await x.send(b"HTTP/1.1 200 OK\r\n")
    while True:
        await x.send(b"X: " + b"y" * 4096 + b"\r\n")


async def never_end(x: Exchange) -> None:
    await x.events()
    await x.event(x.piece("one ", "stop"))
    await x.event(b"[DONE]")
    await asyncio.sleep(60)


async def cut_behind_the_end(x: Exchange) -> None:
    await x.events()
    await x.event(x.piece("one ", "stop"))
    await x.event(b"[DONE]")
    await asyncio.sleep(0.1)
    x.writer.close()


async def older_error_in_the_stream(x: Exchange) -> None:
    await x.events()
    await x.event({"object": "error", "message": "maximum context length is 4", "code": 400})
    await x.end()


async def error_in_the_stream(x: Exchange) -> None:
    await x.events()
    await x.event({"error": {"message": "CUDA out of memory", "code": 500}})
    await x.end()


def status(code: int, error: Any = None, **headers: str) -> Behave:
    async def behave(x: Exchange) -> None:
        await x.json({"error": error or {"message": "no"}}, code, **headers)

    return behave


# What it does: the code it has, where it is tried again, whether it speaks against the server.
CASES: dict[str, tuple[Behave, str, str, bool]] = {
    f.__name__: (f, *expected)
    for f, *expected in [
        (hang, "timeout", "elsewhere", True),
        (hang_after_the_head, "timeout", "elsewhere", True),
        (hang_in_the_middle, "timeout", "elsewhere", True),
        (drip_feed, "timeout", "elsewhere", True),
        (drip_feed_signs_of_life, "timeout", "elsewhere", True),
        (drip_feed_the_head, "timeout", "elsewhere", True),
        (garbage, "bad_answer", "elsewhere", True),
        (garbage_in_the_stream, "bad_answer", "elsewhere", True),
        (no_http, "bad_answer", "elsewhere", True),
        (another_shape, "bad_answer", "elsewhere", True),
        (nothing, "bad_answer", "elsewhere", True),
        (error_under_200, "out_of_memory", "elsewhere", True),
        (another_shape_in_the_stream, "bad_answer", "elsewhere", True),
        (a_delta_of_another_shape, "bad_answer", "elsewhere", True),
        (no_choice, "bad_answer", "elsewhere", True),
        (deep, "bad_answer", "elsewhere", True),
        (deep_in_the_stream, "bad_answer", "elsewhere", True),
        (unwritable, "bad_answer", "elsewhere", True),
        (deep_error_in_the_stream, "bad_answer", "elsewhere", True),
        (deep_beside_a_choice, "bad_answer", "elsewhere", True),
        (close_at_once, "connect", "here", True),
        (close_in_the_stream, "connection_lost", "elsewhere", True),
        (end_before_the_end, "connection_lost", "elsewhere", True),
        (too_long_content_length, "connection_lost", "elsewhere", True),
        (too_short_content_length, "bad_answer", "elsewhere", True),
        (no_number_content_length, "bad_answer", "elsewhere", True),
        (hundred_megabytes, "answer_too_large", "elsewhere", False),
        (hundred_megabytes_of_events, "answer_too_large", "elsewhere", False),
        (endless_line, "answer_too_large", "elsewhere", False),
        (bomb, "bad_answer", "elsewhere", True),
        (endless_headers, "bad_answer", "elsewhere", True),
        (error_in_the_stream, "out_of_memory", "elsewhere", True),
        (older_error_in_the_stream, "context_too_long", "elsewhere", False),
    ]
}
TOO_LONG = {"code": "context_length_exceeded", "message": "maximum context length is 4096"}
LLAMA_CPP = {"type": "exceed_context_size_error", "message": "exceeds the available context size"}
CASES |= {
    "500": (status(500), "server_error", "elsewhere", True),
    "502": (status(502), "server_error", "elsewhere", True),
    "no memory": (status(500, "CUDA out of memory"), "out_of_memory", "elsewhere", True),
    "503": (status(503), "unavailable", "here", True),
    "429": (status(429), "overloaded", "here", False),
    "no quota": (status(429, {"code": "insufficient_quota"}), "no_quota", "elsewhere", True),
    "401": (status(401), "unauthorized", "elsewhere", True),
    "404": (status(404), "not_found", "elsewhere", True),
    "too long": (status(400, TOO_LONG), "context_too_long", "elsewhere", False),
    "too long, llama.cpp": (status(400, LLAMA_CPP), "context_too_long", "elsewhere", False),
    "501": (status(501), "operation_not_served", "elsewhere", False),
    "400": (status(400), "request_refused", "never", False),
    "refused": (status(400, {"code": "content_filter"}), "content_refused", "never", False),
}


async def written(chunk: dict[str, Any]) -> None:
    """Do as a stream does with a chunk."""
    encode(chunk)


def limits_for(code: str) -> dict[str, float]:
    """Return limits that a case which is about them meets soon, and no other on a busy machine."""
    is_short = code == "timeout"
    return {"first_token_s_max": 0.3 if is_short else 10.0, "idle_s_max": 0.2 if is_short else 10.0}


@pytest.mark.parametrize("name", CASES)
async def test_a_hostile_server_fails_its_calls_and_nothing_else(name: str) -> None:
    behave, code, retry, is_pool_fault = CASES[name]
    limits = limits_for(code) | {"answer_bytes_max": 4 * MIB}
    async with serving(behave) as server, backend_at(server.base_url, **limits) as backend:
        async with asyncio.timeout(15):
            with pytest.raises(CallError) as caught:
                await backend.execute(call(tell=written))
        error = caught.value
        assert (error.code, error.retry, error.is_pool_fault) == (code, retry, is_pool_fault)
        assert "count" not in error.message, "no text of the request may be told"
        # It was asked once, and nothing that is not its own was followed.
        assert [exchange.path for exchange in server.asked] == ["/v1/chat/completions"]
        assert backend.load().variants["small-bf16"].running == 0
    async with serving() as server, backend_at(server.base_url) as backend:
        assert (await backend.execute(call())).usage.output_tokens == 3


@pytest.mark.parametrize("behave", [never_end, cut_behind_the_end])
async def test_an_answer_that_is_complete_counts_though_its_body_has_no_end(behave: Any) -> None:
    async with serving(behave) as server, backend_at(server.base_url, idle_s_max=9) as backend:
        async with asyncio.timeout(8):
            outcome = await backend.execute(call())
    assert outcome.response.body["choices"][0]["message"]["content"] == "one "


async def test_memory_for_an_answer_is_bounded() -> None:
    sent = 0

    async def counting(x: Exchange) -> None:
        nonlocal sent
        await x.events()
        while True:
            await x.chunk(b"x" * 65536)
            sent += 65536

    async with serving(counting) as server, backend_at(server.base_url) as backend:
        with pytest.raises(CallError, match="cut off"):
            await backend.execute(call())
    # The rest is what sockets and streams hold.
    assert sent < EVENT_BYTES_MAX + 24 * MIB


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2", 2.0),
        ("Wed, 01 Jan 2020 00:00:00 GMT", 0.0),
        ("soon", None),
        ("-1", None),
        ("", None),
        (f"Mon, 01 Jan {'9' * 20} 00:00:00 GMT", None),
        (f"Mon, 01 Jan 2030 00:00:00 +{'9' * 20}", None),
    ],
)
async def test_retry_after_is_seconds_or_a_date(value: str, seconds: float | None) -> None:
    behave = status(429, Retry_After=value)
    async with serving(behave) as server, backend_at(server.base_url) as backend:
        with pytest.raises(CallError) as caught:
            await backend.execute(call())
    assert caught.value.after_s == seconds


async def test_a_refusal_is_handed_to_the_client_whose_request_it_is() -> None:
    async with serving(status(400, "bad seed")) as server, backend_at(server.base_url) as backend:
        with pytest.raises(CallError) as caught:
            await backend.execute(call())
    assert caught.value.response is not None
    assert caught.value.response.status_code == 400
    assert caught.value.response.body == {"error": "bad seed"}
    assert "bad seed" not in caught.value.message


async def test_a_server_that_is_not_there_is_a_connect_error() -> None:
    async with serving() as server:
        pass
    async with backend_at(server.base_url) as backend:
        with pytest.raises(CallError) as caught:
            await backend.execute(call())
    assert (caught.value.code, caught.value.retry) == ("connect", "here")


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_a_redirect_is_not_followed(code: int) -> None:
    async def redirect(x: Exchange) -> None:
        await x.head(code, Location=f"{other.base_url}/chat/completions", Content_Length="0")

    async with serving() as other, serving(redirect) as server:
        async with backend_at(server.base_url) as backend:
            with pytest.raises(CallError) as caught:
                await backend.execute(call())

            async def is_asked_for_metrics() -> bool:
                return "/metrics" in [exchange.path for exchange in server.seen]

            await eventually(is_asked_for_metrics, "the metrics are asked for, too", 5)
        error = caught.value
        assert (error.code, error.retry, error.is_pool_fault) == ("redirected", "elsewhere", True)
        assert len(server.asked) == 1
        assert not other.seen


async def test_what_nobody_has_thought_of_is_a_bad_answer_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(_: bytes) -> None:
        raise KeyError("text of the answer")

    monkeypatch.setattr(openai, "_parsed", stumble)
    async with serving() as server, backend_at(server.base_url) as backend:
        with caplog.at_level(logging.WARNING):
            for _ in range(3):
                for asked in (backend.execute(call()), backend.probe("small-bf16")):
                    with pytest.raises(CallError, match="KeyError") as caught:
                        await asked
                    assert (caught.value.code, caught.value.retry) == ("bad_answer", "elsewhere")
                    assert caught.value.is_pool_fault
        assert backend.load().variants["small-bf16"].running == 0
    (message,) = caplog.messages
    assert message.startswith("pool here: a call failed by KeyError in ")
    assert "text of the answer" not in message


async def test_metrics_are_read_on_whatever_a_page_raises(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[Any] = [ServerLoad(1), ZeroDivisionError("no"), ServerLoad(2), KeyError("x")]

    def read(*_: object) -> ServerLoad:
        end = ends.pop(0) if ends else ServerLoad(3)
        if isinstance(end, Exception):
            raise end
        return end

    monkeypatch.setattr(server_metrics, "read_load", read)
    monkeypatch.setattr(server_metrics, "SCRAPE_S", 0.01)
    async with serving() as server, backend_at(server.base_url) as backend:

        async def is_read_on() -> bool:
            return backend.load().server == ServerLoad(3)

        await eventually(is_read_on, "the load is known again", 5)
