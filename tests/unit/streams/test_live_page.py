"""The page of a router, but for what it reads: who is answered, and what is sent."""

import re
from pathlib import Path
from typing import Any

import pytest
from live_cases import OPTIONS, POLICY

from streams.engine.clock import SystemClock
from streams.hosting.web import Answer, WebRequest
from streams.live.page import LivePage
from topics import Settings

ASSETS = Path(__file__).parents[3] / "streams/live/assets"


def page(**settings: Any) -> LivePage:
    return LivePage(Settings(**settings), OPTIONS, POLICY, SystemClock())


async def answer(path: str, of: LivePage | None = None, **headers: str) -> Answer:
    name, _, query = path.partition("?id=")
    asked = WebRequest({"id": query} if query else {}, {"Host": "localhost:8080"} | headers)
    return await (of or page()).views()[name](asked)


@pytest.mark.parametrize("path", ["/", "/live.css", "/live.js"])
async def test_each_file_is_sent_with_a_policy_that_lets_nothing_else_in(path: str) -> None:
    found = await answer(path)
    assert found.status == 200
    policy = found.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert found.headers["X-Content-Type-Options"] == "nosniff"


def test_nothing_comes_from_elsewhere_and_nothing_becomes_markup() -> None:
    for file in ASSETS.iterdir():
        text = file.read_text()
        assert not re.search(r"(https?:)?//[a-z]+\.", text), file
        for door in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
            assert door not in text, file
    html = (ASSETS / "page.html").read_text()
    assert not re.search(r"<script(?! src=)|style=| on\w+=", html)


@pytest.mark.parametrize("host", ["shunter.example", "localhost.example:8080", "10.0.0.1", "", "["])
async def test_on_loopback_a_name_that_was_made_to_point_here_gets_nothing(host: str) -> None:
    assert (await answer("/", Host=host)).status == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:8080", "[::1]:8080"])
async def test_this_machine_is_answered(host: str) -> None:
    assert (await answer("/", Host=host)).status == 200


async def test_the_script_of_another_site_gets_nothing_a_link_leads_here() -> None:
    away = {"Sec-Fetch-Site": "cross-site"}
    assert (await answer("/story.json?id=a", **away, **{"Sec-Fetch-Mode": "no-cors"})).status == 403
    assert (await answer("/", **away, **{"Sec-Fetch-Mode": "navigate"})).status == 200


@pytest.mark.parametrize(
    ("settings", "is_shown"),
    [
        ({}, True),
        ({"web_host": "::1"}, True),
        ({"web_host": "0.0.0.0"}, False),  # noqa: S104
        ({"web_host": "0.0.0.0", "web_page": True}, True),  # noqa: S104
        ({"web_page": False}, False),
    ],
)
def test_it_is_shown_to_others_only_where_that_is_wanted(settings: Any, is_shown: bool) -> None:
    assert bool(page(**settings).views()) is is_shown


async def test_opened_to_others_it_answers_under_any_name() -> None:
    open_page = page(web_host="0.0.0.0", web_page=True)  # noqa: S104
    assert (await answer("/", open_page, Host="shunter.example")).status == 200


@pytest.mark.parametrize("request_id", ["", " ", "x" * 129])
async def test_what_can_be_no_id_is_not_looked_for(request_id: str) -> None:
    assert (await answer(f"/story.json?id={request_id}")).status == 400


async def test_there_is_one_search_at_a_time() -> None:
    busy = page()
    async with busy._search:
        assert (await answer("/story.json?id=a", busy)).status == 429
