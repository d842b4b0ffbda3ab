"""`shunter plan`: rents are the cheapest, the bound is below, and what is planned holds."""

import gzip
import itertools
import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import yaml
from backtest_cases import FLEET, POLICY, replay, sample
from exact_instances import instance
from exact_schedule import exact_schedule
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from policies import DeclarationError, Fleet, compile_options
from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replay import Replay
from policies.backtest.workload import Arrival, profiles_of
from shunter.backtest.programme import NoBoundError
from shunter.backtest.suite import Setting, run_one, shunter
from shunter.cli import app
from shunter.plan.capacity import capacity, servable_without
from shunter.plan.judge import Case, Judge, busiest, judging
from shunter.plan.market import (
    Market,
    Offer,
    Rentable,
    SiteLimits,
    devices_of,
    fleet_of,
    is_allowed,
    offers_of,
    parse_market,
    rent,
    usd_per_hour,
)
from shunter.plan.search import FleetSearch

ROWS = 300
SETTING = Setting(sample(ROWS), FLEET, POLICY, Reality())
POOL = "premium-eu"
DEVICES = devices_of(FLEET.pools[POOL])


def market(*offers: Offer, **sites: SiteLimits) -> Market:
    return Market(pools={POOL: Rentable(offers=offers)} if offers else {}, sites=sites)


@st.composite
def offered(draw: st.DrawFn) -> tuple[Offer, ...]:
    return tuple(
        Offer(
            name=f"offer-{number}",
            usd_per_hour=draw(st.floats(0, 9)),
            replicas_max=draw(st.integers(0, 3)),
            interruptions_per_hour=draw(st.floats(0, 2)),
        )
        for number in range(draw(st.integers(1, 3)))
    )


@given(offered(), st.integers(0, 9))
def test_no_other_way_to_rent_costs_less(offers: tuple[Offer, ...], replicas: int) -> None:
    known = market(*offers)
    ways = [
        way
        for way in itertools.product(*(range(offer.replicas_max + 1) for offer in offers))
        if sum(way) == replicas
    ]
    if not ways:
        with pytest.raises(ValueError, match=POOL):
            rent(POOL, replicas, FLEET, known)
        return
    found = rent(POOL, replicas, FLEET, known)
    least = min(
        sum(n * DEVICES * o.usd_per_hour for n, o in zip(way, offers, strict=True)) for way in ways
    )
    assert found.usd_per_hour == pytest.approx(least)
    assert sum(found.by_offer.values()) == replicas
    rates = {offer.name: offer.interruptions_per_hour for offer in offers}
    taken = sum(count * rates[name] for name, count in found.by_offer.items())
    assert found.interruptions_per_hour * replicas == pytest.approx(taken)


def test_without_offers_a_pool_costs_what_the_fleet_says() -> None:
    (offer,) = offers_of("cpu-eu", FLEET, Market())
    assert offer.usd_per_hour == FLEET.pools["cpu-eu"].usd_per_hour
    (offer,) = offers_of(POOL, FLEET, Market())
    assert offer.usd_per_hour == FLEET.devices[FLEET.pools[POOL].device].usd_per_hour


def test_a_pool_without_offers_is_interrupted_as_the_fleet_says() -> None:
    spot = FLEET.pools["cpu-eu"].model_copy(update={"interruptions_per_hour": 2.0})
    fleet = FLEET.model_copy(update={"pools": FLEET.pools | {"cpu-eu": spot}})
    assert rent("cpu-eu", 3, fleet, Market()).interruptions_per_hour == 2.0
    own = Rentable(offers=(Offer(name="own", usd_per_hour=1.0, interruptions_per_hour=0.5),))
    for known, rate in ((Market(), 2.0), (Market(pools={"cpu-eu": own}), 0.5)):
        judge = Judge(replace(SETTING, fleet=fleet), known, 0.99, 0.95)
        judged = judge._setting_of({"cpu-eu": 3, "silicon-us": 1})
        # Both what comes and what the policy knows of it.
        assert judged.reality.preemptions_per_hour == {"cpu-eu": rate}
        assert judged.fleet.pools["cpu-eu"].interruptions_per_hour == rate


def test_sites_bear_so_much_power_and_so_many_devices() -> None:
    power_w = FLEET.devices[FLEET.pools[POOL].device].power_w
    assert power_w is not None
    three_kw = 3 * DEVICES * power_w / 1000
    for site in (
        SiteLimits(power_kw_max=three_kw),
        SiteLimits(liquid_kw_max=three_kw),
        SiteLimits(devices_max=3 * DEVICES),
    ):
        known = market(**{"eu-west": site})
        assert is_allowed({POOL: 3}, FLEET, known)
        assert not is_allowed({POOL: 4}, FLEET, known)
        # Another region's power is its own.
        assert is_allowed({POOL: 3, "premium-us": 4}, FLEET, known)
    # Boards that are cooled by air take no liquid.
    assert is_allowed({"lpddr-eu": 9}, FLEET, market(**{"eu-west": SiteLimits(liquid_kw_max=0)}))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "pools: {premium-eux: {}}",
            "pools.premium-eux: premium-eux: no such pool; did you mean premium-eu?",
        ),
        ("sites: {eu-wast: {}}", "sites.eu-wast: eu-wast: no pool is there; did you mean eu-west?"),
        ("pools: {premium-eu: {replicas: 3}}", "pools.premium-eu.replicas"),
        ("pools: {premium-eu: {offers: [{name: a, usd_per_hour: -1}]}}", "usd_per_hour"),
        (
            "pools: {cpu-eu: {offers: [{name: a, usd_per_hour: 1}, {name: a, usd_per_hour: 2}]}}",
            "names an offer twice",
        ),
    ],
)
def test_what_is_wrong_with_a_market_is_told(text: str, told: str) -> None:
    with pytest.raises(DeclarationError) as caught:
        parse_market(text, "market.yaml", FLEET)
    assert told in str(caught.value)
    assert "market.yaml" in str(caught.value)


@pytest.mark.slow
def test_the_bound_is_below_each_fleet_that_holds() -> None:
    """All fleets of up to so many replicas are judged; what holds costs more than the bound."""
    found = capacity(SETTING, Market(), [], 30)
    judge = Judge(SETTING, Market(), 1.0, 1.0)
    prices = []
    for premium, silicon, boards in itertools.product((0, 2), (0, 2), (0, 2)):
        counts = {POOL: premium, "silicon-us": silicon, "lpddr-eu": boards, "cpu-eu": 1}
        if judge.judge(counts, ()).is_kept:
            prices.append(usd_per_hour(counts, FLEET, Market()))
    assert prices
    assert 0 < found.bound_usd_per_hour <= min(prices)
    assert usd_per_hour(found.replicas, FLEET, Market()) >= found.bound_usd_per_hour - 1e-6
    with_less = capacity(SETTING, Market(), [("silicon-us",)], 30)
    assert with_less.bound_usd_per_hour >= found.bound_usd_per_hour - 1e-6


@pytest.mark.parametrize(("rate", "wanted"), [(20.0, (0.98, 0.9)), (30.0, (0.9, 0.6))])
def test_each_fleet_that_holds_keeps_each_cut(rate: float, wanted: tuple[float, float]) -> None:
    """By replays of the fleets themselves, and counts of what they attain."""
    arrivals = sample(ROWS, rate)
    found = capacity(Setting(arrivals, FLEET, POLICY, Reality()), Market(), [], 30, wanted)
    assert len(found.cuts) > 1
    held = []
    for silicon, processors in itertools.product((2, 4, 7, 12), (2, 8)):
        counts = {"silicon-us": silicon, "cpu-eu": processors}
        outcomes = replayed(arrivals, fleet_of(counts, FLEET, Market()))
        kept, asked = Counter[str](), Counter(each.profile.task for each in outcomes)
        kept.update(each.profile.task for each in outcomes if each.attained)
        if kept.total() >= wanted[0] * asked.total() and all(
            kept[task] >= wanted[1] * count for task, count in asked.items()
        ):
            held.append(counts)
    assert held
    for counts in held:
        assert max(cut.lacks(counts) for cut in found.cuts) <= 1e-6, counts
        assert usd_per_hour(counts, FLEET, Market()) >= found.bound_usd_per_hour - 1e-6


def replayed(arrivals: Sequence[Arrival], fleet: Fleet) -> list[ReplayOutcome]:
    options = compile_options(fleet)
    setting = Setting(arrivals, fleet, POLICY, Reality())
    run = Replay(shunter(setting, options), options, POLICY, Reality(), random.Random(1).random)
    tokens = [arrival.output_tokens for arrival in arrivals]
    return run.run(profiles_of(arrivals, fleet, POLICY), tokens).outcomes


@pytest.mark.parametrize("seed", [1, 3])
def test_the_bound_is_below_the_fleets_that_some_schedule_can_do_with(seed: int) -> None:
    """Whether a fleet can do is decided by a programme of whole numbers, the model itself."""
    case = instance(seed)
    bound_usd = capacity(case, Market(), [], 30).bound_usd_per_hour
    rents = []
    for name in ("near", "far"):
        alone = case.fleet.model_copy(update={"pools": {name: case.fleet.pools[name]}})
        try:
            exact_schedule(replace(case, fleet=alone))
        except NoBoundError:
            continue
        rents.append(usd_per_hour({name: 1}, case.fleet, Market()))
    assert rents
    assert 0 < bound_usd <= min(rents)


def test_a_replay_ends_where_too_many_have_missed() -> None:
    judge = Judge(SETTING, Market(), 0.99, 0.95)
    poor = judge.judge({"lpddr-eu": 1}, ())
    assert not poor.is_kept
    assert not poor.is_whole
    assert poor.lacking > 0
    good = judge.judge({"silicon-us": 6, "cpu-eu": 2}, ())
    assert good.is_kept
    assert good.is_whole


def test_a_long_trace_is_judged_in_its_busiest_stretch_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("shunter.plan.judge.LONG", 100)
    monkeypatch.setattr("shunter.plan.judge.STRETCH_S", 4.0)
    stretch = busiest(SETTING)
    assert 10 < len(stretch) < ROWS / 2
    judge = Judge(SETTING, Market(), 0.99, 0.95)
    seen: list[int] = []

    def counted(name: str, setting: Setting, *rest: Any) -> Any:
        seen.append(len(setting.arrivals))
        return run_one(name, setting, *rest)

    monkeypatch.setattr("shunter.plan.judge.run_one", counted)
    assert judge.judge({"silicon-us": 6, "cpu-eu": 2}, ()).is_kept
    assert seen == [len(stretch), ROWS]
    seen.clear()
    assert not judge.judge({"lpddr-eu": 1}, ()).is_kept
    assert seen == [len(stretch)]


def four_bits_on_silicon() -> Fleet:
    """Return the packaged fleet with llama-3.1-70b at FP4 on silicon, which chats may not have."""
    silicon = FLEET.pools["silicon-us"]
    changed = {"variant": "llama-3.1-70b-fp4", "precision": "fp4"}
    serves = tuple(
        each.model_copy(update=changed) if each.model == "llama-3.1-70b" else each
        for each in silicon.serves
    )
    pools = FLEET.pools | {"silicon-us": silicon.model_copy(update={"serves": serves})}
    return FLEET.model_copy(update={"pools": pools})


def test_the_bound_rents_what_is_good_enough_for_a_class() -> None:
    """The packaged policy has a floor, and 70b chats find FP8 in the premium pools alone."""
    case = replace(SETTING, fleet=four_bits_on_silicon())
    premium = {name for name in FLEET.pools if name.startswith("premium")}
    assert any(capacity(case, Market(), [], 30).replicas.get(name) for name in premium)
    unserved = {
        profile.id
        for profile in profiles_of(case.arrivals, case.fleet, POLICY)
        if (profile.task, profile.model) == ("chat", "llama-3.1-70b")
    }
    assert unserved
    assert not set(servable_without(case, premium)) & unserved
    # On the packaged fleet silicon has FP8 as well, and is cheaper.
    assert set(servable_without(SETTING, premium)) >= unserved


def test_a_pool_that_is_gone_serves_nothing_and_what_only_it_serves_does_not_count() -> None:
    judge = Judge(SETTING, Market(), 0.9, 0.9)
    both = {POOL: 2, "silicon-us": 2}
    alone = judge.judge({POOL: 2}, ())
    assert judge.judge(both, ("silicon-us",)) == alone
    assert judge.judge(both, tuple(FLEET.pools)).attainment == 0.0
    assert not judge.judge({}, ()).is_kept


class Recorded:
    """The judging processes, with the cases that they were asked about."""

    def __init__(self, processes: ProcessPoolExecutor) -> None:
        self._processes = processes
        self.asked: list[Case] = []

    def map(self, judged: Any, counts: Iterable[Any], cases: Iterable[Case]) -> Any:
        known = list(cases)
        self.asked += known
        return self._processes.map(judged, counts, known)


def test_a_fleet_is_judged_until_one_case_fails_and_in_none_that_takes_nothing() -> None:
    """What is kept is the same as by all cases, where the fleet holds and where it doesn't."""
    counts = {POOL: 1, "silicon-us": 2, "cpu-eu": 2}
    judge = Judge(Setting(sample(80), FLEET, POLICY, Reality()), Market(), 0.99, 0.95)
    borne: list[Case] = [("lpddr-eu",), (POOL,)]
    failed: Case = ("silicon-us", POOL)
    with judging(judge) as processes:
        for cases in (borne, [*borne, failed]):
            search = FleetSearch(judge, cases, 60.0, lambda _: None)
            recorded = Recorded(processes)
            (found,) = search._judged(cast(Any, recorded), [counts], until_one_fails=True)
            assert found.is_kept == all(judge.judge(counts, case).is_kept for case in cases)
            assert found.is_kept == (cases == borne)
            assert recorded.asked == [(), *cases[1:]]
        recorded.asked.clear()
        (other,) = search._judged(
            cast(Any, recorded), [counts | {"cpu-eu": 3}], until_one_fails=True
        )
    assert found.worst_case == other.worst_case == failed
    assert recorded.asked == [(), failed]


def plan(tmp_path: Path, *words: str, **known: Any) -> dict[str, Any]:
    file = tmp_path / "market.yaml"
    file.write_text(json.dumps(known))
    trace = tmp_path / "trace.csv"
    if not trace.exists():
        packed = Path("shunter/data/workload-open-small.csv.gz").read_bytes()
        lines = gzip.decompress(packed).decode().splitlines(keepends=True)
        trace.write_text("".join(lines[: ROWS + 1]))
    outcome = CliRunner().invoke(
        app,
        ["plan", "--trace", str(trace), "--market", str(file), "--json", *words],
    )
    assert outcome.exit_code == 0, outcome.output + str(outcome.exception)
    found: dict[str, Any] = json.loads(outcome.stdout)
    return found


@pytest.mark.slow
def test_what_is_planned_holds_when_it_is_replayed(tmp_path: Path) -> None:
    """By a replay of its own, with no pool gone and with each of them."""
    report = plan(tmp_path, "--minutes", "2", "--without-any", "pool", "--no-kinds")
    counts = {name: pool["replicas"] for name, pool in report["pools"].items()}
    assert report["usd_per_hour"] == pytest.approx(usd_per_hour(counts, FLEET, Market()))
    bounds = report["bound_usd_per_hour"], report["policy_bound_usd_per_hour"]
    assert bounds[0] <= bounds[1] <= report["usd_per_hour"]
    fleet = fleet_of(counts, FLEET, Market())
    run, _ = replay(rows=ROWS, fleet=fleet)
    attained = sum(outcome.attained for outcome in run.outcomes) / len(run.outcomes)
    assert attained == pytest.approx(report["attainment"])
    assert attained >= 0.985
    for gone in counts:
        left = fleet.model_copy(
            update={"pools": {n: p for n, p in fleet.pools.items() if n != gone}}
        )
        run, _ = replay(rows=ROWS, fleet=left)
        assert sum(outcome.attained for outcome in run.outcomes) / len(run.outcomes) >= 0.8
    curve = report["curve"]
    assert all(each["replicas"] for each in curve)
    assert all(a["usd_per_hour"] < b["usd_per_hour"] for a, b in itertools.pairwise(curve))
    assert all(a["attainment"] < b["attainment"] for a, b in itertools.pairwise(curve))


@pytest.mark.slow
def test_the_bound_under_the_policy_is_above_that_of_any_schedule(tmp_path: Path) -> None:
    report = plan(tmp_path, "--rate", "30", "--minutes", "0.2", "--no-kinds")
    usd, under_policy = report["usd_per_hour"], report["policy_bound_usd_per_hour"]
    assert report["bound_usd_per_hour"] < under_policy <= usd
    assert report["policy_gap"] == pytest.approx(usd / under_policy - 1)
    judge = Judge(Setting(sample(ROWS, 30.0), FLEET, POLICY, Reality()), Market(), 0.99, 0.95)
    assert report["fleets_that_fail"]
    assert all(judge.fails_clearly(counts, ()) for counts in report["fleets_that_fail"])


@pytest.mark.slow
def test_offers_and_limits_change_the_plan(tmp_path: Path) -> None:
    """With a premium pool for next to nothing it is rented, as spot as far as there is any."""
    spot = {"name": "spot", "usd_per_hour": 0.01, "replicas_max": 1}
    reserved = {"name": "reserved", "usd_per_hour": 0.02}
    report = plan(
        tmp_path,
        *("--minutes", "0.3", "--no-kinds"),
        pools={
            POOL: {"offers": [reserved, spot]},
            "silicon-us": {"replicas_max": 0},
            "premium-us": {"replicas_max": 0},
        },
    )
    assert set(report["pools"]) <= {POOL, "lpddr-eu", "lpddr-us", "cpu-eu"}
    assert report["pools"][POOL]["rented"]["spot"] == 1


def test_where_nothing_holds_it_is_told_what_is_missed(tmp_path: Path) -> None:
    file = tmp_path / "market.yaml"
    few = {name: {"replicas_max": 0} for name in FLEET.pools if name != "cpu-eu"}
    file.write_text(json.dumps({"pools": few}))
    outcome = CliRunner().invoke(app, ["plan", "--market", str(file), "--no-kinds"])
    assert outcome.exit_code == 1
    assert "no fleet" in str(outcome.exception)


def test_a_pool_that_is_faster_than_its_devices_is_refused_by_name(tmp_path: Path) -> None:
    declared = yaml.safe_load(Path("policies/defaults/fleet.yaml").read_bytes())
    for name, scale in (("silicon-us", 10), ("cpu-eu", 1)):
        declared["pools"][name]["backend"] = {"type": "simulated", "time_scale": scale}
    file = tmp_path / "fleet.yaml"
    file.write_text(yaml.safe_dump(declared))
    words = ["plan", "--fleet", str(file), "--no-kinds", "--minutes", "0.1"]
    outcome = CliRunner().invoke(app, words)
    assert outcome.exit_code == 1
    assert "pools have a time_scale, silicon-us of 10: a plan rents" in str(outcome.exception)
