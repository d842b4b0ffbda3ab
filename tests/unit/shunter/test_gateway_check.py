"""The check of a gateway before a Kafka on which no router runs."""

import asyncio
from types import SimpleNamespace
from typing import Any

import openai
import pytest
from aiohttp import web

from shunter.client import gateway_check


async def test_it_says_at_once_that_no_router_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing after the refusal is tried, as each would wait for a minute."""
    monkeypatch.setattr(gateway_check, "REFUSAL_S_MAX", 0.3)
    asked: list[str] = []

    async def models(_: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [{"id": "m", "object": "model"}]})

    async def chat(request: web.Request) -> web.Response:
        asked.append((await request.json())["model"])
        await asyncio.sleep(60)
        return web.json_response({})

    app = web.Application()
    app.add_routes([web.get("/v1/models", models), web.post("/v1/chat/completions", chat)])
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = runner.addresses[0][1]
    alive: Any = SimpleNamespace(
        models=lambda: {"m": [SimpleNamespace(operations=("chat",))]}, backlog_s=lambda _: 0.0
    )
    client = openai.AsyncOpenAI(
        base_url=f"http://127.0.0.1:{port}/v1", api_key="k", max_retries=0, timeout=60
    )
    try:
        async with asyncio.timeout(30), client:
            told = [each async for each in gateway_check._tried(client, openai, alive)]
    finally:
        await runner.cleanup()
    assert [name for name, _, _ in told] == ["models", "a model that is not there"]
    assert told[1][1:] == (
        "failed: no router has answered within 0.3 s; does a `shunter router` run?",
        False,
    )
    assert asked == ["no-such-model"]
