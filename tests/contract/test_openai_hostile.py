"""A hostile model server never stops a worker: each call ends in time, with what it means."""

import asyncio
import logging
from typing import Any

import pytest
from hostile_server import CASES, MIB, cut_behind_the_end, limits_for, never_end, status
from model_server import Exchange, serving
from openai_cases import backend_at, call
from running_system import eventually

from topics import ServerLoad, encode
from workers.backends.base import CallError
from workers.backends.openai import backend as openai_backend
from workers.backends.openai import server_metrics
from workers.backends.openai.sse import EVENT_BYTES_MAX


async def written(chunk: dict[str, Any]) -> None:
    """Do as a stream does with a chunk."""
    encode(chunk)


@pytest.mark.parametrize("name", CASES)
async def test_a_hostile_server_fails_its_calls_and_nothing_else(name: str) -> None:
    behave, code, retry, is_pool_fault = CASES[name]
    limits = limits_for(code) | {"answer_bytes_max": 4 * MIB}
    async with serving(behave) as server, backend_at(server.base_url, **limits) as backend:
        async with asyncio.timeout(60):
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
    async with serving(behave) as server, backend_at(server.base_url, idle_s_max=60) as backend:
        async with asyncio.timeout(90):
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

            await eventually(is_asked_for_metrics, "the metrics are asked for, too")
        error = caught.value
        assert (error.code, error.retry, error.is_pool_fault) == ("redirected", "elsewhere", True)
        assert len(server.asked) == 1
        assert not other.seen


async def test_what_nobody_has_thought_of_is_a_bad_answer_and_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def stumble(_: bytes) -> None:
        raise KeyError("text of the answer")

    monkeypatch.setattr(openai_backend, "_parsed", stumble)
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

        await eventually(is_read_on, "the load is known again")
