"""The page's script in a browser, before a router that is slow, silent, or up for days."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from importlib.resources import files

import pytest
from aiohttp import web
from browser import Tab, browsing, chromium
from live_cases import Topics

from streams.live import Snapshot
from topics import encode

STATUS = "document.getElementById('status')?.textContent"
PAUSE = "document.getElementById('pause').click()"
ASSETS = {
    "/": ("text/html", "page.html"),
    "/live.css": ("text/css", "page.css"),
    "/live.js": ("text/javascript", "page.js"),
}
Answer = Callable[[], Awaitable[Snapshot]]


def up_for(s: float) -> Snapshot:
    """A view of a router that has been up for so long, and whose last fallback is as old."""
    topics = Topics()
    topics.fell_back("r1", "a-pool")
    now, shown = time.time(), topics.shown()
    fallbacks = tuple(replace(each, at=now - s) for each in shown.fallbacks)
    return replace(shown, at=now, since=now - s, silent_s=0.0, fallbacks=fallbacks)


@asynccontextmanager
async def page(answer: Answer) -> AsyncIterator[Tab]:
    """The page of a router that answers so."""
    program = chromium()
    if program is None:
        pytest.skip("no Chromium here")

    async def asset(request: web.Request) -> web.Response:
        kind, name = ASSETS[request.path]
        body = (files("streams.live") / "assets" / name).read_bytes()
        return web.Response(body=body, content_type=kind, charset="utf-8")

    async def view(_: web.Request) -> web.Response:
        return web.Response(body=encode(await answer()), content_type="application/json")

    app = web.Application()
    app.add_routes([web.get(path, asset) for path in ASSETS])
    app.router.add_get("/view.json", view)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        async with browsing(program, f"http://127.0.0.1:{runner.addresses[0][1]}/") as tab:
            yield tab
    finally:
        await runner.cleanup()


async def test_a_router_that_answers_no_more_is_not_called_live() -> None:
    """Its last figures would stand for those of now, as long as the connection stands."""
    is_silent = False

    async def answer() -> Snapshot:
        if is_silent:
            await asyncio.sleep(300)
        return up_for(60)

    async with page(answer) as tab:
        await tab.until(f"{STATUS} === 'live'")
        is_silent = True
        await tab.until(f"{STATUS} === 'no view: no answer for 10 s'")
        is_silent = False
        await tab.until(f"{STATUS} === 'live'")


async def test_what_comes_after_a_pause_is_not_shown() -> None:
    asked, goes_on = asyncio.Event(), asyncio.Event()
    goes_on.set()

    async def answer() -> Snapshot:
        asked.set()
        await goes_on.wait()
        return up_for(60)

    async with page(answer) as tab:
        await tab.until(f"{STATUS} === 'live'")
        goes_on.clear()
        asked.clear()
        await asyncio.wait_for(asked.wait(), 30)
        await tab.evaluate(PAUSE)
        goes_on.set()
        await asyncio.sleep(1)
        assert await tab.evaluate(STATUS) == "paused"
        await tab.evaluate(PAUSE)
        await tab.until(f"{STATUS} === 'live'")


async def test_a_time_of_another_day_has_its_date() -> None:
    """A page stays open for days: 14:05 may be that of the day before yesterday."""

    async def answer() -> Snapshot:
        return up_for(2 * 86_400)

    async with page(answer) as tab:
        await tab.until(f"{STATUS} === 'live'")
        date = time.strftime("%Y-%m-%d", time.localtime(time.time() - 2 * 86_400))
        tiles = await tab.evaluate("document.getElementById('tiles').textContent")
        notes = await tab.evaluate("document.getElementById('notes').textContent")
        assert f" since {date} " in tiles
        assert f" counts from {date} " in notes
        assert (await tab.cells("fallbacks"))[1][0].startswith(date)
        now = await tab.evaluate("document.getElementById('at').textContent")
        assert "-" not in now
