"""The report of a demo fits a terminal of 80 columns."""

import ast
import io
import signal
import sys
import time
from types import SimpleNamespace
from typing import cast

import pytest
import typer
from demo_cases import FLEET, POLICY, console, outcome, printed

from policies import compile_options
from shunter.cli import app
from shunter.commands import demo as command
from shunter.demo import Plan
from shunter.demo.check import Verdict
from shunter.demo.installation import stop
from shunter.demo.report import print_door, report
from shunter.demo.show import Lines
from shunter.demo.system import System
from shunter.demo.view import View, saving
from shunter.demo.watch import Watch
from streams.engine.log import Partition, Record
from streams.live import LiveView
from topics import Catalogue, PoolStatus, Settings, encode
from topics.records import headers as h

OPTIONS = compile_options(FLEET)


@pytest.mark.parametrize("kept", [True, False])
def test_the_report_has_classes_pools_a_story_and_how_to_go_on(kept):
    on = console(80)
    done = outcome(Verdict(0, 0, 0, 0, 0))
    done.figures["assumed_pools"] = ["silicon-us"]
    on.print(report(done, kept=kept))
    text = printed(on)
    assert "silicon-us, assumed" in text
    assert "2,000 requests in, 2,000 results out: none lost" in text
    for name in [*FLEET.pools, *POLICY.classes, "One that was served at once", "How to go on"]:
        assert name in text
    assert "…" not in text
    assert ("export SHUNTER_BOOTSTRAP_SERVERS=127.0.0.1:9092" in text) is kept
    assert ("http://127.0.0.1:12345/" in text) is kept
    verify = f"shunter audit verify --trust {done.figures['trail']['trusted']}"
    assert (verify in text) is kept
    assert "carries 400 requests/s; 99.6% were expected" in text
    assert "$0.2000; the same on premium GPUs $2.0000 (90% less)" in text


def test_lines_of_python_are_whole_and_printed_only_where_they_work():
    ends, stays, real = console(40), console(40), console(40)
    print_door(ends, "", kept=False)
    assert "shunter demo --keep" in printed(ends)
    assert "import" not in printed(ends)
    print_door(stays, "http://127.0.0.1:8400", kept=True)
    lines = [line for line in printed(stays).splitlines() if "door" in line or "import" in line]
    ast.parse("\n".join(lines))
    assert len(lines) == 3
    assert max(map(len, lines)) <= 80
    assert "http://127.0.0.1:8400/v1" in lines[1]
    assert "http://127.0.0.1:8400 and the live page are open until Ctrl-C here." in printed(stays)
    print_door(real, "http://127.0.0.1:9", kept=True, model="gemma")
    assert 'model="gemma"' in printed(real)
    without = console(40)
    print_door(without, "", kept=True)
    assert "The live page is open until Ctrl-C here." in printed(without)
    assert "import" not in printed(without)


@pytest.mark.parametrize(
    ("terminals", "options", "stays"),
    [
        ("stdin stdout", [], True),
        ("stdin stdout", ["--no-keep"], False),
        ("stdin stdout", ["--json"], False),
        ("stdin stdout", ["--json", "--keep"], True),
        ("stdin", [], False),
        ("stdout", [], False),
        ("", ["--keep"], True),
    ],
)
def test_a_demo_stays_up_where_somebody_sits_at_a_terminal(
    terminals, options, stays, monkeypatch: pytest.MonkeyPatch
):
    plans: list[Plan] = []
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGHUP)}

    def run(plan: Plan, *_: object) -> bool:
        plans.append(plan)
        return True

    monkeypatch.setattr(command, "run_demo", run)
    for name in ("stdin", "stdout"):
        at_one = io.TextIOWrapper(io.BytesIO())
        monkeypatch.setattr(at_one, "isatty", lambda name=name: name in terminals)
        monkeypatch.setattr(sys, name, at_one)
    try:
        typer.main.get_command(app)(["demo", *options], standalone_mode=False)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert [plan.keep for plan in plans] == [stays]


async def test_a_demo_whose_terminal_was_closed_stops_its_processes_all_the_same():
    class Closed(Lines):
        def say(self, message: str) -> None:
            raise OSError(5, message)

    stopped: list[bool] = []
    system = cast("System", SimpleNamespace(stop=lambda: stopped.append(True)))
    await stop(Plan(), system, Settings(), FLEET.pools, Closed(console(80)))
    assert stopped


def test_the_report_says_what_went_wrong():
    on = console(80)
    on.print(report(outcome(Verdict(1, 0, 0, 0, 0, ["1 without a result: demo-7"])), kept=False))
    assert "1 without a result: demo-7" in printed(on)
    assert "none lost" not in printed(on)


def watch() -> Watch:
    now = time.time()
    catalogue = Catalogue(Settings())
    live = LiveView(catalogue, OPTIONS, POLICY, since=now)
    found = Watch(catalogue, set(map(str, range(2000))), live, "http://127.0.0.1:12345/")
    live.total.usd, live.total.premium_usd = 0.6, 0.9
    for name, pool in FLEET.pools.items():
        if name != "cpu-eu":
            status = PoolStatus(name, "w", now, "up", 1.0, pool.device, pool.region, 640, 9, 8, 0.0)
            found.live.workers.take(status)
        found.live.total.of_pool(name).usd = 1.5
    group = found.live.total.of_group("llama-3.1-70b|chat|batch|le512")
    group.batches, group.released = 3, 300
    profile = encode({"deadline": now + 60, "window_s": 30.0})
    for number in range(49):
        headers = [
            (h.GROUP, b"llama-3.1-70b|chat|batch|le512"),
            (h.HELD_AT, repr(now).encode()),
            (h.PROFILE, profile),
        ]
        key = str(number).encode()
        found.take(Record(Partition(catalogue.held, 0), number, key, b"{}", headers, 0))
    return found


@pytest.mark.parametrize("width", [80, 120])
def test_the_live_view_shows_all_of_it_at(width):
    on = console(width)
    with View(on) as view:
        view.update(watch())
        view.say("a worker was started again")
    text = printed(on)
    for shown in [
        "published",
        "silicon-us",
        "crescent-island",
        "llama-3.1-70b",
        "49",
        "100.0",
        "no worker",
        "http://127.0.0.1:12345/",
    ]:
        assert shown in text
    assert "33% less" in text
    assert "a worker was started again" in text
    assert "…" not in text


def test_without_a_terminal_there_is_a_line_now_and_then():
    on = console(200)
    with Lines(on) as lines:
        lines.update(watch())
        lines.update(watch())
    assert printed(on).count("waiting for a batch") == 1


def test_a_saving_is_told_in_words():
    assert saving(0.5, 1.0) == "50% less"
    assert saving(1.5, 1.0) == "50% more"
    assert saving(1.0, 0.0) == ""
