"""Deeds of a model server that means harm, or fails, and how each is told."""

import asyncio
import gzip
from collections.abc import Awaitable, Callable
from typing import Any

import orjson
from model_server import Exchange

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


def limits_for(code: str) -> dict[str, float]:
    """Return limits that a case which is about them meets soon, and no other on a busy machine."""
    is_short = code == "timeout"
    return {"first_token_s_max": 0.3 if is_short else 10.0, "idle_s_max": 0.2 if is_short else 10.0}
