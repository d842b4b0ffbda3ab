"""`shunter plan` on input of the careless: what it refuses, and when, and odd traces."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from backtest_cases import FLEET, POLICY, sample
from typer.testing import CliRunner

from policies.backtest.fault_model import Reality
from shunter.backtest.files import read_known
from shunter.backtest.suite import Setting
from shunter.cli import app
from shunter.commands.planning import _bound
from shunter.console import UserError
from shunter.plan.judge import Case, FleetVerdict, Judge
from shunter.plan.market import Counts, Market, Offer, Rentable
from shunter.plan.search import FleetSearch, NoPlanError
from streams.config.declarations import load_fleet, load_policy

HEADER = "arrival_s,task,model,input_tokens,output_tokens\n"
GUARD = "safety_classification,llama-guard-3-8b,900,5\n"


def outcome(*words: str | Path) -> Any:
    return CliRunner().invoke(app, ["plan", "--minutes", "0.2", *map(str, words)])


def refusal(*words: str | Path) -> str:
    """What a plan is refused with, before any search."""
    found = outcome(*words)
    assert isinstance(found.exception, UserError), found.exception
    assert "bound:" not in found.stderr
    return str(found.exception)


def traced(tmp_path: Path, *rows: str) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + "".join(rows))
    return path


def test_a_class_that_the_policy_has_not_is_named_with_its_file_and_row(tmp_path: Path) -> None:
    path = traced(tmp_path, f"0,{GUARD}", "1,gossip,llama-3.1-8b,10,10\n")
    assert f"{path}: row 1: task 'gossip' is not one of" in refusal("--trace", path)
    with pytest.raises(UserError, match=r"trace\.csv: row 1: task 'gossip'"):
        read_known(path, load_fleet(None), load_policy(None))


def test_a_trace_that_nothing_may_serve_has_no_plan(tmp_path: Path) -> None:
    path = traced(tmp_path, "0,chat,no-such-model,10,10\n")
    assert "no pool that may serve" in refusal("--trace", path)


@pytest.mark.parametrize(
    ("series", "told"),
    [
        ({"value": 2.0}, r"pools.silicon-us.tariff: a plan"),
        (
            {"value": 2.0, "windows": [{"from": "22:00", "to": "06:00", "value": 1.0}]},
            "pools.silicon-us.tariff, series.night: a plan",
        ),
    ],
)
def test_a_fleet_whose_prices_move_is_refused_by_name(
    tmp_path: Path, series: dict[str, Any], told: str
) -> None:
    declared = yaml.safe_load(Path("policies/defaults/fleet.yaml").read_bytes())
    declared["series"] = {"night": series}
    declared["pools"]["silicon-us"]["tariff"] = "night"
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump(declared))
    assert told in refusal("--fleet", fleet)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("gone/plan.png", "can't be written: No such file"),
        ("", "can't be written: Is a directory"),
        ("plan.word", "can't be written: .word is no picture"),
    ],
)
def test_a_picture_that_cannot_be_written_is_told_before_the_search(
    tmp_path: Path, name: str, told: str
) -> None:
    assert told in refusal("--plot", tmp_path / name)


def test_one_request_has_a_plan_with_a_picture_under_the_name_that_was_given(
    tmp_path: Path,
) -> None:
    trace, picture = traced(tmp_path, f"0,{GUARD}"), tmp_path / "picture"
    words = ("--trace", trace, "--plot", picture)
    report = json.loads(outcome(*words, "--json").stdout)
    assert report["requests_per_s"] is None
    assert report["usd_per_hour"] == report["bound_usd_per_hour"] > 0
    (pool,) = report["pools"]
    assert report["binds"] == {pool: {"safety_classification": "deadline"}}
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert [each.name for each in tmp_path.iterdir() if "picture" in each.name] == ["picture"]
    assert all(point["replicas"] for point in report["curve"])
    shown = outcome(*words, "--no-kinds").stdout
    assert "for 1 requests at once;" in shown
    usd = f"${report['usd_per_hour']:.2f}"
    assert f"\nit is {usd}, less than which no fleet costs that holds under this policy" in shown
    assert f"\nit is {usd}, less than which no schedule needs" in shown
    assert f"with a replica less of {pool}: too many miss, of safety" in shown


def test_a_plan_for_nothing_is_no_division_by_zero(tmp_path: Path) -> None:
    market = tmp_path / "market.yaml"
    free = {"offers": [{"name": "own", "usd_per_hour": 0}]}
    market.write_text(json.dumps({"pools": dict.fromkeys(load_fleet(None).pools, free)}))
    trace = traced(tmp_path, f"0,{GUARD}", f"2000,{GUARD}")
    words = ("--trace", trace, "--market", market)
    report = json.loads(outcome(*words, "--json").stdout)
    assert report["usd_per_hour"] == 0
    assert {kind["dearer_by"] for kind in report["one_kind"].values()} == {None}
    shown = outcome(*words).stdout
    assert "of cpu alone: $0.00 an hour\n" in shown
    assert "for 0.001 requests/s" in shown


class Judging:
    """Processes that judge by a rule: so many miss with silicon, or without, whatever there is."""

    def __init__(self, with_silicon: int, without: int, tokens_usd: float = 0.0) -> None:
        self.least = {True: with_silicon, False: without}
        self.tokens_usd = tokens_usd

    def map(self, _: object, fleets: Iterable[Counts], __: Iterable[Case]) -> Iterator[Any]:
        for counts in fleets:
            least = self.least["silicon-us" in counts]
            lacking = max(least, 10 - 2 * counts.get("premium-eu", 0))
            tokens_usd = self.tokens_usd / counts.get("premium-eu", 1) ** 2
            yield FleetVerdict(1.0, {"chat": 1.0}, lacking, {}, 0, 0.0, tokens_usd)


def searching() -> FleetSearch:
    few = {name: Rentable(replicas_max=0) for name in FLEET.pools}
    rented = {"silicon-us": Rentable(replicas_max=1), "premium-eu": Rentable()}
    market = Market(pools=few | rented)
    judge = Judge(Setting(sample(5), FLEET, POLICY, Reality()), market, 0.99, 0.95)
    search = FleetSearch(judge, [], 60.0, lambda _: None)
    search._ends_at = float("inf")
    return search


class Enough:
    """Processes by which five premium replicas hold, and fewer don't."""

    def map(self, _: object, fleets: Iterable[Counts], __: Iterable[Case]) -> Iterator[Any]:
        for counts in fleets:
            lacking = 0 if counts.get("premium-eu", 0) >= 5 else 10
            yield FleetVerdict(1.0, {"chat": 1.0}, lacking, {}, 0, 0.0, 0.0)


def test_the_least_multiple_that_holds_is_narrowed_down_to() -> None:
    found = searching()._narrowed(cast(Any, Enough()), {"premium-eu": 4}, (1.0, 1.5, 2.0))
    assert found.counts == {"premium-eu": 5}


@pytest.mark.parametrize(("raised", "told"), [(None, 10.0), (12.0, 12.0), (20.0, 16.0)])
def test_the_bound_under_the_policy_is_between_the_other_and_the_plan(
    raised: float | None, told: float
) -> None:
    start, best = SimpleNamespace(bound_usd_per_hour=10.0), SimpleNamespace(usd_per_hour=16.0)
    bound = None if raised is None else SimpleNamespace(usd_per_hour=raised)
    assert _bound(cast(Any, (start, SimpleNamespace(bound=bound), best))) == told


def test_where_more_mends_nothing_a_pool_less_may() -> None:
    """Where work gathers on a pool of which there is too little, fleets without it hold."""
    few = {name: Rentable(replicas_max=0) for name in FLEET.pools}
    market = Market(pools=few | {"silicon-us": Rentable(replicas_max=1), "premium-eu": Rentable()})
    judge = Judge(Setting(sample(5), FLEET, POLICY, Reality()), market, 0.99, 0.95)
    start = {"silicon-us": 1, "premium-eu": 1}
    search = FleetSearch(judge, [], 60.0, lambda _: None)
    search._ends_at = float("inf")
    found = search._grown(cast(Any, Judging(3, 0)), start)
    assert found.is_kept
    assert found.counts.keys() == {"premium-eu"}
    search.seen.clear()
    with pytest.raises(NoPlanError, match="neither more nor less of any pool"):
        search._grown(cast(Any, Judging(3, 3)), start)


def test_fewer_replicas_that_pay_more_for_tokens_are_no_better() -> None:
    """A replica less saves 8 dollars of rent; from six on tokens cost more by then."""
    search, judging = searching(), cast(Any, Judging(9, 0, tokens_usd=1000.0))
    (start,) = search._judged(judging, [{"premium-eu": 8}])
    found = search._shrunk(judging, start)
    held = [each for each in search.seen.values() if each.is_kept]
    assert found.usd_per_hour == min(each.usd_per_hour for each in held)
    assert found.usd_per_hour == pytest.approx(8.0 * 6 + 1000 / 36)


def test_of_what_costs_nothing_no_more_is_rented_than_is_needed() -> None:
    few = {name: Rentable(replicas_max=0) for name in FLEET.pools}
    free = Rentable(offers=(Offer(name="own", usd_per_hour=0.0),))
    market = Market(pools=few | {"premium-eu": free})
    judge = Judge(Setting(sample(5), FLEET, POLICY, Reality()), market, 0.99, 0.95)
    search, judging = FleetSearch(judge, [], 60.0, lambda _: None), cast(Any, Judging(9, 0))
    search._ends_at = float("inf")
    (start,) = search._judged(judging, [{"premium-eu": 8}])
    found = search._shrunk(judging, start)
    assert (found.counts, found.usd_per_hour) == ({"premium-eu": 5}, 0.0)


def test_what_is_taken_away_more_than_once_a_second_is_refused(tmp_path: Path) -> None:
    declared = yaml.safe_load(Path("policies/defaults/fleet.yaml").read_bytes())
    declared["pools"]["cpu-eu"]["interruptions_per_hour"] = 4000
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump(declared))
    told = "pools.cpu-eu.interruptions_per_hour is 4000: a plan takes 3600 at most"
    assert told in refusal("--fleet", fleet)


def test_what_is_paid_for_tokens_is_told_beside_rents(tmp_path: Path) -> None:
    declared = yaml.safe_load(Path("policies/defaults/fleet.yaml").read_bytes())
    price = {"usd_per_million": {"input": 1.0, "output": 2.0}}
    pool = declared["pools"]["cpu-eu"] | {"token_price": price}
    del pool["usd_per_hour"]
    declared["pools"] = {"cpu-eu": pool}
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(yaml.safe_dump(declared))
    trace = traced(tmp_path, f"0,{GUARD}", f"3600,{GUARD}")
    words = ("--trace", trace, "--fleet", fleet, "--no-kinds")
    report = json.loads(outcome(*words, "--json").stdout)
    assert report["tokens_usd_per_hour"] == pytest.approx(2 * (900 + 2 * 5) / 1e6)
    rents = sum(pool["usd_per_hour"] for pool in report["pools"].values())
    assert report["usd_per_hour"] == rents + report["tokens_usd_per_hour"]
    assert "for tokens $0.00 an hour" in outcome(*words).stdout


def test_a_search_that_the_time_ends_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(search: FleetSearch, *_: object) -> Iterator[Any]:
        search._ends_at = 0.0
        return iter(())

    monkeypatch.setattr(FleetSearch, "_holding", late)
    words = ("--trace", traced(tmp_path, f"0,{GUARD}"), "--no-kinds")
    assert json.loads(outcome(*words, "--json").stdout)["is_cut_short"]
    assert "the time was over before the search" in outcome(*words).stdout
