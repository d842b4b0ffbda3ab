"""`shunter policy backtest --quotes`: what was promised, kept and charged over a replay."""

import json
from collections.abc import Iterable
from dataclasses import replace
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from policies.backtest.fault_model import Reality
from policies.backtest.quote_outcomes import QuoteEnd, measured_errors, quote_scores
from policies.backtest.workload import Arrival
from policies.config.quotes import Quotes
from shunter.backtest import quotes
from shunter.backtest.files import read_trace
from shunter.backtest.suite import Setting
from shunter.cli import app
from streams.config.declarations import load_fleet, load_policy


@pytest.fixture(scope="module")
def arrivals() -> list[Arrival]:
    rows = read_trace(None)[:240]
    return [replace(row, arrival_s=row.arrival_s - rows[0].arrival_s) for row in rows]


@pytest.fixture(scope="module")
def setting(arrivals: list[Arrival]) -> Setting:
    return Setting(arrivals, load_fleet(None), load_policy(None), Reality())


@pytest.fixture
def trace(tmp_path: Path, arrivals: list[Arrival]) -> Path:
    path = tmp_path / "trace.csv"
    columns = ("arrival_s", "task", "model", "input_tokens", "output_tokens")
    rows = [",".join(str(getattr(row, name)) for name in columns) for row in arrivals]
    path.write_text("\n".join([",".join(columns), *rows]))
    return path


def backtest(*words: str | Path) -> Any:
    found = CliRunner().invoke(app, ["policy", "backtest", "--no-bound", *map(str, words)])
    assert found.exit_code == 0, found.output
    return found


def counted(rows: list[dict[str, Any]]) -> dict[float, int]:
    return {row["chance"]: row["promises"] for row in rows}


def test_errors_are_judged_in_four_replays_in_which_others_take_quotes(
    trace: Path, tmp_path: Path
) -> None:
    errors = tmp_path / "errors.yaml"
    words = ("--trace", trace, "--quotes", "0.5", "--quote-errors", errors)
    found = backtest(*words, "--json")
    told = json.loads(found.stdout)
    assert len(told["by_replay"]) == len(quotes.JUDGING_DRAWS) == 4
    for chance, count in counted(told["by_chance"]).items():
        several = [told["by_replay"], list(told["by_time"].values())]
        for each in several:
            assert sum(counted(rows).get(chance, 0) for rows in each) == count
    assert told["quotes"] == sum(counted(told["by_chance"]).values())
    assert 0 < told["charged_usd"] <= min(told["quoted_usd"], told["cost_usd"])
    Quotes.model_validate(yaml.safe_load(errors.read_text()))
    assert "errors, round 1 of 6: " in found.stderr
    assert "errors, round 6 of 6: " in found.stderr
    assert "judged in 4 replays: " in found.stderr

    shown = backtest(*words).stdout
    assert "in each of 4 replays" in shown
    assert f"{told['quotes']:,} quotes of 4 replays: at most" in shown


def test_quotes_under_the_policys_own_errors_are_of_one_replay(trace: Path) -> None:
    shown = backtest("--trace", trace, "--quotes", "0.5").stdout
    assert "replays" not in shown
    told = json.loads(backtest("--trace", trace, "--quotes", "0.5", "--json").stdout)
    assert told["by_replay"] == [told["by_chance"]]
    assert f"{told['quotes']:,} quotes: at most" in shown


def test_a_table_has_the_worst_and_the_best_replay() -> None:
    def row(chance: float, kept: float) -> dict[str, float]:
        return {"chance": chance, "promises": 10, "kept": kept}

    replays = [[row(0.99, 0.9), row(0.95, 0.5)], [row(0.99, 1.0)], [row(0.99, 0.95)]]
    report = {"by_chance": [row(0.99, 0.95), row(0.95, 0.5)], "by_replay": replays}
    cells = [list(column.cells) for column in quotes.table_of_quotes(report).columns]
    assert cells[2:] == [["95.00%", "50.00%"], ["90.00% to 100.00%", "50.00%"]]


def test_another_draw_lets_others_ask_and_take_other_offers(setting: Setting) -> None:
    def chances(draw: int) -> dict[str, float]:
        ends = quotes.quoted_replay(setting, 0.5, draw).ends
        return {end.taken.quoted.id: end.taken.quoted.chance for end in ends}

    assert len({*quotes.TELLING_DRAWS, *quotes.JUDGING_DRAWS}) == 6
    drawn, count = [chances(draw) for draw in (0, 1, 2)], len(setting.arrivals)
    for one, other in combinations(drawn, 2):
        both = one.keys() & other.keys()
        # About a quarter of all are in both of two halves that know nothing of each other.
        assert 0.15 * count < len(both) < 0.35 * count
        assert sum(one[name] != other[name] for name in both) > len(both) / 4
    assert chances(1) == drawn[1]


def test_who_tells_of_errors_is_never_judged(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    telling: list[set[str]] = []
    judged: list[set[str]] = []
    found: list[quotes.Errors] = []

    def measured(ends: list[QuoteEnd], before: quotes.Errors, step: float) -> quotes.Errors:
        telling.append({end.taken.quoted.id for end in ends})
        assert before == (found[-1] if found else {})
        assert step == 2 / (len(found) + 2)
        found.append(measured_errors(ends, before, step))
        return found[-1]

    def scored(ends: Iterable[QuoteEnd]) -> Any:
        several = list(ends)
        judged.append({end.taken.quoted.id for end in several})
        return quote_scores(several)

    monkeypatch.setattr(quotes, "measured_errors", measured)
    monkeypatch.setattr(quotes, "quote_scores", scored)
    lines: list[str] = []
    _, policy = quotes.calibrated(setting, 1.0, 2, lines.append)
    assert policy.quotes.errors == found[-1]
    assert (len(telling), len(lines)) == (2, 3)
    assert not set(chain(*telling)) & set(chain(*judged))
    # All that are not refused tell, or are judged.
    assert len(set(chain(*telling, *judged))) > 0.9 * len(setting.arrivals)


@pytest.mark.parametrize("can_fork", [True, False])
def test_replays_are_the_same_wherever_they_are_made(
    setting: Setting, can_fork: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quotes, "can_fork", lambda: can_fork)
    told, policy = quotes.calibrated(setting, 0.5, 1)
    here = replace(setting, policy=policy)
    replays = [quotes.quoted_replay(here, 0.5, draw) for draw in quotes.JUDGING_DRAWS]
    held_back = [quotes._half(each.ends, tells=False) for each in replays]
    assert told["by_replay"] == [quote_scores(ends)["by_chance"] for ends in held_back]
    middle_s = setting.arrivals[len(setting.arrivals) // 2].arrival_s
    early = [end for end in chain(*held_back) if end.taken.at <= middle_s]
    assert 0 < len(early) < told["quotes"]
    assert told["by_time"]["first_half"] == quote_scores(early)["by_chance"]
    assert told["run_cost_usd"] == pytest.approx(sum(each.cost_usd for each in replays) / 4)
    assert told["slo_attainment"] == pytest.approx(sum(e.slo_attainment for e in replays) / 4)
