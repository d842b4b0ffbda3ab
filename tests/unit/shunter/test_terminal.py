"""Clients' text in each command: controls are escaped, markup is text, formulas are text."""

import asyncio
import csv
import io
import logging
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from click.testing import Result as Outcome
from client_commands import (
    ended,
    evidence,
    installation,
    producing,
    result,
    started,
    write,
)
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from span_cases import span
from stream_cases import make_key
from typer.testing import CliRunner

from shunter.audit.keyring import Keyring
from shunter.cli import app
from shunter.client.request_lines import Checked
from shunter.client.submit import SubmitTally
from shunter.commands import trace as trace_command
from shunter.commands.evidence import keys_table
from shunter.commands.submit import _tell_tally
from shunter.console import PlainConsole
from shunter.render.spreadsheet import cell
from streams.logs import set_up_logging
from topics import Catalogue, ResultError, Settings, encode
from topics.iso_time import iso_time
from topics.terminal_text import visible, visible_line

# Clears the screen, sets the title, rings, goes back, turns the text around, begins a line, and
# pretends to be markup.
HOSTILE = "r\x1b[2J\x1b]0;pwned\x07\x9b31m\r\u202e\n[red]done[/red]"
TENANT = "=cmd|' /C calc'!A0"
UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2028]")


def assert_plain(text: str) -> None:
    assert not UNSAFE.search(text), repr(text)
    assert "\\x1b[2J" in text
    assert "[red]done" in text.replace("\n", "")


@given(st.text())
def test_nothing_unsafe_is_left_and_nothing_safe_is_changed(text: str) -> None:
    assert not UNSAFE.search(visible(text))
    line = visible_line(text)
    assert len(line.splitlines()) <= 1
    if text.isprintable():
        assert visible(text) == line == text


def test_line_breaks_stay_where_there_may_be_several() -> None:
    assert visible("a\n\tb\rc") == "a\n\tb\\rc"
    assert visible_line("a\n\tb") == "a\\n\\tb"


def test_a_console_writes_controls_of_its_own_alone() -> None:
    file = io.StringIO()
    console = PlainConsole(file=file, width=200, force_terminal=True, color_system="standard")
    table = Table("[bold]heading[/bold]")
    table.add_row(HOSTILE)
    table.add_row(Text(HOSTILE, "red"))
    for each in (HOSTILE, table):
        console.print(each, highlight=False)
    written = file.getvalue()
    assert "\x1b[31m" in written
    assert_plain(re.sub(r"\x1b\[[0-9;]*m", "", written))
    assert "[bold]heading[/bold]" in written


def test_a_log_line_stays_one(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging("info")
    logging.getLogger("streams.x").error("request %s", HOSTILE, exc_info=ValueError(HOSTILE))
    told = capsys.readouterr().err
    assert_plain(told)
    assert "\\n[red]done" in told.splitlines()[0]


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_a_formula_becomes_text(text: str) -> None:
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", ["a=1", "", "1-2", -1, -0.5, None, 7])
def test_what_is_no_formula_stays(value: object) -> None:
    assert cell(value) is value


def test_a_trace_shows_no_controls(monkeypatch: pytest.MonkeyPatch) -> None:
    async def find(*_: Any) -> Sequence[Any]:
        said = {"shunter.decision.reason": HOSTILE, "shunter.pool": HOSTILE}
        return [span(1, HOSTILE, 0.0, 1.0, service=HOSTILE, error=HOSTILE, attributes=said)]

    monkeypatch.setattr(trace_command, "_find", find)
    told = CliRunner().invoke(app, ["trace", "x"])
    assert told.exit_code == 0, told.output
    assert_plain(told.output)


def test_a_dead_letter_that_submit_tells_of_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    tally = SubmitTally(1)
    tally.dead_letters[HOSTILE] = HOSTILE
    _tell_tally(tally, Checked(), as_json=False)
    (line,) = capsys.readouterr().err.splitlines()
    assert_plain(line)


@pytest.mark.kafka
class TestCommands:
    @pytest.fixture
    async def settings(self, kafka: str, prefix: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
        settings = await installation(kafka, prefix, monkeypatch)
        names = Catalogue(settings)
        failed = replace(result(HOSTILE, "failed"), error=ResultError("x", HOSTILE))
        await write(settings, names.results, HOSTILE, encode(failed))
        now = time.time()
        steps = [
            replace(step, at=now, tenant=TENANT, task=HOSTILE, message=HOSTILE, reason=HOSTILE)
            for step in evidence(HOSTILE)
        ]
        async with producing(settings) as producer:
            for step in steps:
                value = encode(step)
                await producer.send_and_wait(names.evidence, value, key=HOSTILE.encode())
            forged = b'{"request_id":"%b' % HOSTILE.encode()
            await producer.send_and_wait(names.evidence, forged, key=b"f")
        return settings

    async def command(self, *args: object) -> Outcome:
        return await asyncio.to_thread(CliRunner().invoke, app, [*map(str, args)])

    @pytest.mark.parametrize(
        "words",
        [
            ("results", HOSTILE),
            ("audit", "show", HOSTILE),
            ("ledger",),
            ("top", "--once", "--window", "3600"),
        ],
        ids=lambda words: words[0],
    )
    async def test_it_shows_no_controls(self, settings: Settings, words: tuple[str, ...]) -> None:
        outcome = await self.command(*words)
        assert outcome.exit_code == 0, outcome.output
        assert_plain(outcome.output)

    async def test_verify_shows_no_controls(self, settings: Settings) -> None:
        outcome = await self.command("audit", "verify")
        assert outcome.exit_code == 1
        assert not UNSAFE.search(outcome.output)
        assert "altered: " in outcome.output

    async def test_results_are_a_line_each(self, settings: Settings) -> None:
        following = await started("results", "--from-beginning")
        try:
            assert following.stdout is not None
            await following.stdout.readline()
            line = (await asyncio.wait_for(following.stdout.readline(), 60)).decode()
        finally:
            ended(following)
        assert_plain(line)

    async def test_a_report_has_no_formula(self, settings: Settings) -> None:
        outcome = await self.command("audit", "report")
        rows = list(csv.DictReader(io.StringIO(outcome.stdout)))
        assert {row["tenant"] for row in rows} == {f"'{TENANT}"}
        assert any(float(row["cost_usd"]) > 0 for row in rows)


def test_keys_are_told_whole_in_80_columns() -> None:
    file, key = io.StringIO(), make_key(1)
    published = key.publish("worker/silicon-us/silicon-us-0.example.org", 1.8e9)
    PlainConsole(file=file, width=80).print(keys_table([published], Keyring()))
    assert key.id in file.getvalue()
    assert iso_time(1.8e9) in file.getvalue()
