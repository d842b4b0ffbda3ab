"""`shunter top`: what fits a terminal, what the keys do, what goes wrong."""

import io
import re
from dataclasses import replace
from typing import Any

import pytest
from live_cases import CATALOGUE, NOW, OPTIONS, Topics
from rich.console import Console
from typer.testing import CliRunner

from shunter.cli import app
from shunter.console import UserError
from shunter.top.figures import bar, duration, percent, usd
from shunter.top.screen import HEAD_LINES, screen
from shunter.top.state import SECTIONS, State
from streams.live import Snapshot
from topics import PoolStatus, QualityEntry, VariantQuality, encode
from topics.admin.provisioning import AdminError
from topics.embedded_broker.settings import free_port
from topics.records.heartbeat import VariantStatus

EXPECTED_IN_24_LINES = [
    *("shunter top", "ended/s", "completed 9", "no_pool 1", "% less"),
    *(
        "POOLS",
        "silicon-us",
        "1 open 1 drift",
        "no worker",
        "CLASSES",
        "chat",
        "HOLDS",
        "FALLBACKS",
    ),
]


def snapshot() -> Snapshot:
    """A view with something of everything, and names that are long or hostile."""
    topics = Topics()
    for pool, options in OPTIONS.by_pool.items():
        if pool == "cpu-eu":
            continue
        variants = {o.variant: VariantStatus(speed=0.9 + n / 10) for n, o in enumerate(options)}
        if pool == "silicon-us":
            variants[options[0].variant] = VariantStatus(circuit="open")
            drifted = VariantQuality(pool, options[0].variant, "reference", verdict="drifted")
            topics.put(CATALOGUE.quality, encode(QualityEntry(variant=drifted)))
        status = PoolStatus(
            *(pool, "w", NOW, "up", 1.0, "d", "r", 1024, 345, 1234, 98.7),
            variants=variants,
            replicas=2,
        )
        topics.put(CATALOGUE.pool_status, encode(status))
    for n, task in enumerate(["safety_classification", "long_context", "agent_step"] * 3):
        topics.placed(f"r{n}", on_premium=True)
        topics.executed(f"r{n}", task=task, usd=0.00001, ttft_s=123.456, finish_s=4567.8)
    topics.step("x", "rejected", reason="no_pool")
    for n in range(8):
        topics.hold(
            f"h{n}", f"model-{n}|chat|batch|le512" + '|[["a-region-of-the-world"]]' * (n % 2)
        )
    for n in range(5):
        topics.fell_back(f"[red]{n}" * 9, "a-pool")
    return topics.shown()


SNAPSHOT = snapshot()


def drawn(state: State, width: int, height: int | None, of: Snapshot = SNAPSHOT) -> list[str]:
    console = Console(width=width, file=io.StringIO(), no_color=True)
    console.print(screen(of, state, width, height, where="inference on 127.0.0.1:9092"))
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def pressed(*keys: str, state: State | None = None) -> State:
    state = state or State()
    assert not any(state.press(key) for key in keys)
    return state


class TestScreen:
    @pytest.mark.parametrize(("width", "height"), [(80, 24), (100, 30), (140, 48), (200, 60)])
    def test_it_fits_and_shows_something_of_everything(self, width: int, height: int) -> None:
        lines = drawn(State(), width, height)
        assert len(lines) <= height
        assert max(map(len, lines)) <= width
        text = "\n".join(lines)
        for part in EXPECTED_IN_24_LINES:
            assert part in text, part
        assert "q quit" in lines[-1]

    def test_more_room_shows_more(self) -> None:
        narrow, wide = (" ".join(drawn(State(), *size)) for size in ((80, 24), (140, 60)))
        for heading in ("device", "direct", "SLO in all", "because of"):
            assert heading not in narrow
            assert heading in wide
        assert re.search(r"HOLDS \d/8", narrow)
        assert "model-7" in wide

    @pytest.mark.parametrize("height", [1, 5, 10])
    def test_a_terminal_that_is_too_low_is_no_error(self, height: int) -> None:
        assert drawn(State(), 80, height)

    def test_figures_are_whole_where_only_names_may_be_cut(self) -> None:
        lines = drawn(pressed("3", "\r"), 80, 24)
        assert any("1/128" in line or "1%" in line for line in lines)
        assert all("…" not in line.split("█")[-1] for line in lines if "█" in line)

    @pytest.mark.parametrize("width", [80, 105, 130, 140, 200])
    def test_columns_give_way_where_the_figures_of_others_are_long(self, width: int) -> None:
        lines = drawn(pressed("1", "\r"), width, 24)
        rows = [line for line in lines if line.startswith(tuple(OPTIONS.by_pool))]
        assert len(rows) == len(OPTIONS.by_pool)
        assert not any("…" in line for line in rows)
        (drifted,) = [line for line in rows if "1 open 1 drift " in line]
        assert drifted.startswith("silicon-us")

    @pytest.mark.parametrize("width", [80, 105, 130, 140, 200])
    def test_a_long_name_of_a_pool_gives_way_to_figures(self, width: int) -> None:
        known = snapshot()
        named = [
            replace(p, pool=f"pool-of-a-team-far-away-{n:039d}") for n, p in enumerate(known.pools)
        ]
        lines = drawn(pressed("1", "\r"), width, 24, replace(known, pools=named))
        rows = [line for line in lines if line.startswith("pool-of")]
        assert len(rows) == len(named)
        assert all(re.match(r"\S+ ", row) and "…" not in row.partition(" ")[2] for row in rows)
        assert max(map(len, lines)) <= width

    def test_markup_in_an_id_is_shown_as_it_is(self) -> None:
        assert "[red]0" in " ".join(drawn(State(), 140, 60))

    def test_nothing_is_told_by_colour_alone(self) -> None:
        text = " ".join(drawn(State(), 140, 60))
        assert "no worker" in text
        assert "1 open" in text

    def test_a_pool_that_gets_nothing_for_its_worker_is_no_idle_one(self) -> None:
        pools = [replace(pool, state="misfit") for pool in SNAPSHOT.pools]
        text = " ".join(drawn(State(), 140, 60, replace(SNAPSHOT, pools=pools)))
        assert text.count("misfit") == len(pools)

    @pytest.mark.parametrize(
        ("change", "told"),
        [
            ({"is_current": False}, "reads the topics"),
            ({"silent_s": 12.0}, "no news from Kafka: 12 s"),
            ({"silent_s": 12.0, "unanswered_s": 11.4}, "Kafka is away: pools as 11 s ago"),
            ({"silent_s": 12.0, "unanswered_s": 0.6}, "no news from Kafka: 12 s"),
            ({"silent_s": None}, "no news from Kafka: nothing yet"),
        ],
    )
    def test_it_says_when_it_is_not_up_to_date(self, change: Any, told: str) -> None:
        assert told in drawn(State(), 100, 24, replace(SNAPSHOT, **change))[0]

    def test_an_empty_system_is_shown_as_that(self) -> None:
        text = " ".join(drawn(State(), 120, 24, Topics().shown()))
        assert "HOLDS none" in text
        assert "$0.0000/h spent, nothing to compare with premium GPUs " in text
        assert "no worker" in text

    def test_help_tells_each_key(self) -> None:
        text = " ".join(drawn(pressed("?"), 80, 30))
        for key in ("q ", "p, Space", "/ ", "Tab, 1-4", "s ", "r ", "Enter", "Esc"):
            assert key in text

    def test_help_is_whole_in_80_columns_and_24_lines(self) -> None:
        lines = drawn(pressed("?"), 80, 24)
        assert len(lines) <= 24
        assert not any("…" in line for line in lines[HEAD_LINES:])
        assert "Any key leads back." in lines[-2]

    def test_money_in_all_is_of_the_requests_that_are_compared(self) -> None:
        money = replace(
            SNAPSHOT.money_total, usd=70.5, compared_usd=3.25, premium_estimate_usd=4.75, compared=9
        )
        text = " ".join(drawn(State(), 140, 48, replace(SNAPSHOT, money_total=money)))
        assert "in all $3.25, $4.75 for 9 of" in text


class TestKeys:
    @pytest.mark.parametrize("key", ["q", "\x03", "\x04"])
    def test_it_ends(self, key: str) -> None:
        assert State().press(key)

    def test_it_ends_from_help_too_and_any_other_key_leads_back(self) -> None:
        assert pressed("?").press("q")
        assert not pressed("?", "x").has_help

    def test_a_filter_is_typed_kept_and_cleared(self) -> None:
        state = pressed("/", *"Prem", "x", "\x7f")
        assert state.is_typing
        assert [p.pool for p in state.rows("pools", SNAPSHOT)] == ["premium-us", "premium-eu"]
        assert not pressed("\r", state=state).is_typing
        assert state.filter == "Prem"
        assert "only “Prem”" in drawn(state, 80, 24)[-1]
        assert pressed("\x1b", state=state).filter == ""

    def test_keys_of_a_filter_do_nothing_else(self) -> None:
        state = pressed("/", "q", "p", "s")
        assert (state.filter, state.is_paused) == ("qps", False)
        assert pressed("\x1b", state=state).filter == ""

    def test_a_class_is_found_by_its_name(self) -> None:
        state = pressed("/", *"agent", "\r")
        assert [c.task for c in state.rows("classes", SNAPSHOT)] == ["agent_step"]
        assert state.rows("holds", SNAPSHOT) == []

    @pytest.mark.parametrize("section", SECTIONS)
    def test_each_table_can_be_sorted_by_each_of_its_columns(self, section: str) -> None:
        state = State(active=section)
        seen = set()
        for _ in SECTIONS[section]:
            pressed("s", state=state)
            rows = state.rows(section, SNAPSHOT)
            assert len(rows) > 2
            seen.add(state.sort[section])
            pressed("r", state=state)
            assert sorted(map(id, state.rows(section, SNAPSHOT))) == sorted(map(id, rows))
            pressed("r", state=state)
        assert seen - {""} <= {c.heading for c in SECTIONS[section] if c.value}

    def test_figures_sort_from_the_largest_names_from_the_first(self) -> None:
        state = State(sort={"pools": "pool", "holds": "held", "classes": "ended", "fallbacks": ""})
        names = [p.pool for p in state.rows("pools", SNAPSHOT)]
        assert names == sorted(names)
        ended = [c.ended for c in state.rows("classes", SNAPSHOT)]
        assert ended == sorted(ended, reverse=True)
        pressed("r", state=state)
        assert [p.pool for p in state.rows("pools", SNAPSHOT)] == names[::-1]

    def test_the_column_sorted_by_is_marked(self) -> None:
        assert "*busy" in " ".join(drawn(pressed("s", "s", "s", "s"), 140, 48))

    def test_a_table_is_chosen_and_shown_alone(self) -> None:
        state = pressed("\t", "\t", "\r")
        text = " ".join(drawn(state, 80, 24))
        assert "▸HOLDS" in text
        assert "model-7" in text
        assert "POOLS" not in text
        assert "POOLS" in " ".join(drawn(pressed("\x1b", state=state), 80, 24))

    def test_a_pause_is_told(self) -> None:
        assert "PAUSED" in drawn(pressed("p"), 80, 24)[0]
        assert "PAUSED" not in drawn(pressed("p", " "), 80, 24)[0]

    def test_a_key_without_a_meaning_changes_nothing(self) -> None:
        assert pressed("x", "é", "\x00") == State()


class TestFigures:
    @pytest.mark.parametrize(
        ("seconds", "told"),
        [
            (None, "-"),
            (0.0, "0 ms"),
            (0.9994, "999 ms"),
            (0.9996, "1.00 s"),
            (9.996, "10.0 s"),
            (99.4, "99.4 s"),
            (100, "2 min"),
            (7200, "2.0 h"),
            (-0.5, "-500 ms"),
        ],
    )
    def test_times_have_the_unit_that_suits_them(self, seconds: float | None, told: str) -> None:
        assert duration(seconds) == told

    def test_something_is_never_shown_as_nothing_nor_as_more_than_all(self) -> None:
        assert bar(0.001, 6) == "█░░░░░"
        assert bar(0, 6) == "░░░░░░"
        assert bar(7.0, 6) == "██████"
        assert (percent(0.9996), percent(1.0), percent(None)) == ("100.0%", "100%", "-")
        assert (usd(0.00012), usd(1234.5)) == ("$0.0001", "$1,234.50")


class TestCommand:
    @pytest.mark.parametrize(
        ("arguments", "told"),
        [(["top", "--json"], "--once --json"), (["top"], "no terminal")],
    )
    def test_what_makes_no_sense_is_told(self, arguments: list[str], told: str) -> None:
        outcome = CliRunner().invoke(app, arguments)
        assert isinstance(outcome.exception, UserError)
        assert told in str(outcome.exception)

    def test_without_a_broker_it_says_so_within_seconds(self) -> None:
        servers = f"127.0.0.1:{free_port()}"
        outcome = CliRunner().invoke(app, ["top", "--once", "--bootstrap-servers", servers])
        assert isinstance(outcome.exception, UserError | AdminError)
        assert "no Kafka broker answers" in str(outcome.exception)
