"""`shunter top` and the page against the topics, on a real Kafka."""

import asyncio
import contextlib
import json
import os
import pty
import signal
import subprocess
import sys
import termios
import time
import urllib.error
import urllib.parse
import urllib.request
from collections import Counter
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
from browser import Tab, browsing, chromium
from live_counts import compare
from running_system import FLEET, ROOT, System, chat, eventually, records_of
from served_pages import asked

from policies import compile_options
from streams.config.declarations import load_fleet, load_policy
from streams.engine.clock import SystemClock
from streams.live import LiveView, evidence_search, on_demand_view
from streams.live.on_demand_view import OnDemandView
from streams.live.view import WINDOW_S
from topics import Catalogue, Evidence, Source, encode
from topics.embedded_broker.settings import free_port

pytestmark = pytest.mark.kafka

HOSTILE = "<img src=x onerror=\"document.title='taken over'\">"
# No worker of this pool is started: what may go nowhere else is held.
ABSENT = "absent"
FLEET_AND_ABSENT = {"pools": FLEET["pools"] | {ABSENT: deepcopy(FLEET["pools"]["lpddr-us"])}}


async def printed_once(system: System, *options: str) -> bytes:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shunter", "top", "--once", "--window", "600", *options),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(system),
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out


async def nothing_is_cut_where_no_terminal_is(system: System) -> None:
    piped = (await printed_once(system)).decode()
    assert "breaker" in piped
    assert "…" not in piped


def environment(system: System) -> dict[str, str]:
    return os.environ | {
        "SHUNTER_BOOTSTRAP_SERVERS": system.bootstrap_servers,
        "SHUNTER_TOPIC_PREFIX": system.prefix,
        "SHUNTER_FLEET": str(system.directory / "fleet.yaml"),
        "SHUNTER_POLICY": str(system.directory / "policy.yaml"),
    }


async def current(port: int) -> Any:
    """The page's view, once it has read what there is."""
    found: Any = None

    async def is_current() -> bool:
        nonlocal found
        # The router may not listen yet.
        with contextlib.suppress(urllib.error.URLError):
            _, found = await asked(port, "/view.json")
        return bool(found and found["is_current"])

    await eventually(is_current, "the page's view is current", 120)
    return found


async def held_ids(system: System) -> set[str]:
    held: dict[bytes, bool] = {}
    for record in await records_of(system, system.catalogue.held):
        held[record.key] = record.value is not None
    return {key.decode() for key, is_held in held.items() if is_held}


async def both_are_between(system: System, port: int) -> None:
    """What top and page show under load is what there was before and after they were asked."""
    await system.catch_up()
    before = sum(map(len, system.results.values()))
    shown: list[int] = []

    async def both_have_them() -> bool:
        (_, page), printed = await asyncio.gather(
            asked(port, "/view.json"), printed_once(system, "--json")
        )
        shown[:] = [view["ended_total"]["requests"] for view in (page, json.loads(printed))]
        return min(shown) >= before

    await eventually(both_have_them, "top and page have what had ended")
    await system.catch_up()
    assert max(shown) <= sum(map(len, system.results.values()))


@pytest.mark.slow
async def test_top_and_page_have_the_numbers_of_the_topics_under_load(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    port = free_port()
    env = {"router": {"SHUNTER_WEB_PORT": str(port)}}
    async with System(kafka, prefix, tmp_path, env_of=env, fleet=FLEET_AND_ABSENT) as system:
        system.start("router", *FLEET["pools"])
        served: list[str] = []

        async def load(count: int) -> None:
            for n in range(len(served), len(served) + count):
                request = chat(f"r{n}") if n % 3 else chat(f"r{n}", task="summarization")
                if n % 10 == 9:
                    request["constraints"] = {"regions": ["moon"]}
                served.append(request["id"])
                await system.publish(request)
                await asyncio.sleep(0.01)

        # Looked at first, so that its totals begin before anything has ended.
        await current(port)
        began_at = time.monotonic()
        await load(20)
        await system.wait_for_results(served)
        running = asyncio.create_task(load(150))
        while not running.done():
            await both_are_between(system, port)
        await running
        await system.publish(b"not a request", key=b"bad")
        await system.publish(chat("r0"))
        waiting = [f"w{n}" for n in range(5)]
        for name in waiting:
            wanted = {"pools": [ABSENT]}
            await system.publish(chat(name, task="summarization", constraints=wanted))
        await system.wait_for_results(served)

        async def all_there() -> bool:
            await system.catch_up()
            steps = Counter(e["step"] for e in system.evidence)
            are_held = set(waiting) <= {e["request_id"] for e in system.evidence}
            return are_held and steps["duplicate"] == steps["dead_lettered"] == 1

        await eventually(all_there, "the last steps")
        held = await held_ids(system)
        top, page = json.loads(await printed_once(system, "--json")), None

        async def page_is_level() -> bool:
            nonlocal page
            _, page = await asked(port, "/view.json")
            return bool(page["ended_total"] | {"per_s": 0} == top["ended_total"] | {"per_s": 0})

        await eventually(page_is_level, "the page has what top has")
        await system.catch_up()
        assert top["unreadable"] == page["unreadable"] == 0  # type: ignore[index]
        options = compile_options(load_fleet(system.directory / "fleet.yaml"))
        compare(top, system, options)
        # Its rates and quantiles are of the last minute, which on a busy machine is not all.
        compare(page, system, options, is_whole=time.monotonic() - began_at < WINDOW_S - 10)
        assert top["money_total"]["premium_estimate_usd"] == pytest.approx(
            page["money_total"]["premium_estimate_usd"]  # type: ignore[index]
        )
        assert await held_ids(system) == held, "what was compared changed meanwhile"
        assert held == set(waiting)
        for shown in (top, page):
            groups = [g for g in shown["holds"]["groups"] if g["held"]]  # type: ignore[index]
            assert [(g["held"], g["constraints"]) for g in groups] == [(5, {"pools": [ABSENT]})]
        await nothing_is_cut_where_no_terminal_is(system)


async def test_the_page_tells_stories_and_takes_nothing_for_markup(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    port = free_port()
    env = {"router": {"SHUNTER_WEB_PORT": str(port)}}
    async with System(kafka, prefix, tmp_path, env_of=env) as system:
        system.start_all()
        # Before the router has heard of a worker, it holds what comes.
        await system.warm_up()
        # However long the router takes to start.
        late = {"deadline": time.time() + 600}
        hostile = {"tenant": HOSTILE[:60], "metadata": {"note": HOSTILE}}
        await system.publish(chat(HOSTILE, **hostile, **late))
        await system.publish(chat("nowhere", constraints={"regions": [HOSTILE]}, **late))
        await system.wait_for_results([HOSTILE, "nowhere"])
        await current(port)
        status, found = await asked(port, f"/story.json?id={urllib.parse.quote(HOSTILE)}")
        assert status == 200
        assert [step["step"] for step in found["story"]["steps"]] == ["placed", "executed"]
        status, found = await asked(port, "/story.json?id=nobody")
        assert status == 404
        assert "nothing is known of request 'nobody'" in found["error"]
        assert (await asked(port, "/story.json?id="))[0] == 400
        program = chromium()
        if program is None:
            pytest.skip("no Chromium here")
        link = f"http://127.0.0.1:{port}/?id={urllib.parse.quote(HOSTILE)}"
        async with browsing(program, link) as tab:
            await tab.until("Boolean(document.querySelector('#told article'))")
            await drawn_as_told(tab, port, 3)
            page = await tab.evaluate("document.documentElement.outerHTML")
            assert "<title>Shunter</title>" in page
            assert "<img" not in page
            assert "Request &lt;img src=x onerror=" in page
            for part in (
                ">placed<",
                ">executed<",
                ">promised<",
                "premium-eu · h200",
                "Pools",
                ">live<",
            ):
                assert part in page, part
            # Another one, by the page's own search.
            await tab.evaluate("document.getElementById('close').click()")
            await tab.until("document.activeElement.id === 'id'")
            await tab.evaluate("document.getElementById('id').select()")
            await tab.type("nowhere")
            await tab.until("document.querySelector('#told strong')?.textContent === 'rejected'")
            assert await tab.evaluate("location.search") == "?id=nowhere"
            story = await tab.evaluate("document.getElementById('story').textContent")
            assert "Request nowhere" in story
            assert "no_pool" in story
            assert await tab.evaluate("document.title") == "Shunter"
            assert await tab.evaluate("document.querySelector('img')") is None


async def drawn_as_told(tab: Tab, port: int, ended: int) -> None:
    """The tables show what the view has; rates and shares of late change meanwhile."""

    async def are_alike() -> bool:
        _, view = await asked(port, "/view.json")
        pools = {p["pool"]: [device(p), cached(p), usd(p["total_usd"])] for p in view["pools"]}
        classes = {
            c["task"]: [str(c["total_ended"]), percent(c["total_attainment"])]
            for c in view["classes"]
        }
        total = view["ended_total"]
        refused = {f"refused: {code}": count for code, count in total["refusals"].items()}
        ends = {name: [str(count)] for name, count in (total["statuses"] | refused).items()}
        drawn = [
            {row[0]: [row[1], row[8], row[-1]] for row in (await tab.cells("pools"))[1:]},
            {row[0]: row[-2:] for row in (await tab.cells("classes"))[1:]},
            {row[0]: row[-1:] for row in (await tab.cells("ends"))[1:]},
        ]
        return bool(total["requests"] == ended and drawn == [pools, classes, ends])

    await eventually(are_alike, "the page shows what /view.json has")


def cached(pool: dict[str, Any]) -> str:
    return "\N{EN DASH}" if pool["cached_share"] is None else percent(pool["cached_share"])


def device(pool: dict[str, Any]) -> str:
    return f"{pool['device']}, assumed" if pool["assumed"] else str(pool["device"])


def usd(amount: float) -> str:
    return f"${amount:.4f}" if amount < 1 else f"${amount:.2f}"


def percent(share: float) -> str:
    return "100 %" if share == 1 else f"{100 * share:.1f} %"


async def test_a_search_has_an_end_and_a_view_that_nobody_looks_at_too(
    kafka: str, prefix: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with System(kafka, prefix, tmp_path) as system:
        clock = SystemClock()
        for n in range(40):
            source = Source(system.catalogue.requests, 0, n)
            step = Evidence(f"r{n}", "rejected", clock.now(), "w", source, reason="no_pool")
            topic, key = system.catalogue.evidence, step.request_id.encode()
            await system.producer.send_and_wait(topic, encode(step), key=key)
        found = await evidence_search.find_evidence(system.settings, clock, "r0")
        assert ([e.request_id for e in found.evidence], found.is_whole) == (["r0"], True)
        monkeypatch.setattr(evidence_search, "FIRST_RECORDS", 1)
        monkeypatch.setattr(evidence_search, "RECORDS_MAX", 3)
        limited = await evidence_search.find_evidence(system.settings, clock, "nobody")
        assert limited.records == 3
        assert (limited.evidence, limited.is_whole) == ([], False)

        monkeypatch.setattr(on_demand_view, "UNWATCHED_S", 1.0)
        options = compile_options(load_fleet(system.directory / "fleet.yaml"))
        policy = load_policy(None)

        def new_view() -> LiveView:
            catalogue = Catalogue(system.settings)
            return LiveView(catalogue, options, policy, since=clock.now() - 60)

        watched = OnDemandView(system.settings, clock, new_view)
        assert not watched.look().is_current

        async def is_current() -> bool:
            return watched.look().is_current

        await eventually(is_current, "the view is current")
        assert watched.look().ended.statuses == {"rejected": 40}
        following = watched._following
        assert following is not None
        await asyncio.wait_for(following, 90)
        # It begins again at the next look, from the topics.
        await eventually(is_current, "the view is current again")
        assert watched.look().ended.statuses == {"rejected": 40}
        await watched.on_stop()


async def test_the_terminal_is_left_as_it_was(kafka: str, prefix: str, tmp_path: Path) -> None:
    async with System(kafka, prefix, tmp_path) as system:
        for how in ("q", "SIGINT", "SIGTERM"):
            await draw_and_end(system, how)


async def draw_and_end(system: System, how: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "shunter", "top", "--interval", "0.2"),
        cwd=ROOT,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment(system) | {"TERM": "xterm-256color", "COLUMNS": "80", "LINES": "24"},
    )
    drawn = bytearray()
    loop = asyncio.get_running_loop()
    loop.add_reader(ours, lambda: drawn.extend(os.read(ours, 65536)))
    try:

        async def is_drawn() -> bool:
            return b"POOLS" in drawn

        await eventually(is_drawn, "the view is drawn")
        assert termios.tcgetattr(theirs)[3] & termios.ECHO == 0
        if how == "q":
            os.write(ours, b"q")
        else:
            process.send_signal(getattr(signal, how))
        assert await asyncio.wait_for(process.wait(), 90) == 0, how
        assert termios.tcgetattr(theirs) == before

        async def is_as_before() -> bool:
            # Out of the alternate screen, the cursor back.
            is_out = drawn.rfind(b"\x1b[?1049l") > drawn.rfind(b"\x1b[?1049h") > -1
            return is_out and drawn.rfind(b"\x1b[?25h") > drawn.rfind(b"\x1b[?25l")

        await eventually(is_as_before, f"after {how} the screen is as it was")
        assert b"Traceback" not in drawn
    finally:
        loop.remove_reader(ours)
        os.close(ours)
        os.close(theirs)
