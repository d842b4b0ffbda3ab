"""Prices and emissions by the hour: what a decision promises, and what it lets wait."""

from dataclasses import replace
from math import exp
from typing import Any

import pytest
from decisions import decide_in, group_there, target_in
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import FLEET, NOW, POLICY, PROPERTY, a_situation, bulk, profile

from policies import Decision, Member, Situation, parse_fleet
from policies.backtest.route import Send
from policies.backtest.workload import Arrival
from policies.batching.windows import Release, windows_of
from policies.config.curves import mean
from policies.placement.inputs import inputs_of, release_again, release_inputs_of
from policies.placement.placer import Placer
from policies.placement.reservation import amounts_of
from policies.scoring.candidates import failure_rate
from shunter.backtest.check import emits_too_much
from topics import Evidence, InferenceRequest, Profile, Source, decode
from topics.records.evidence_bytes import evidence_bytes

HOUR = 3600.0
DAY = 24 * HOUR
POWER = FLEET.replace("usd_per_hour: 4.0}", "usd_per_hour: 4.0, power_w: 700}").replace(
    "usd_per_hour: 0.4}", "usd_per_hour: 0.4, power_w: 300}"
)


def a_fleet(series: dict[str, Any], **pools: str) -> str:
    """The fleet with these series, and lines added to pools; an ``eu`` one is of its region."""
    text = POWER
    for pool, line in pools.items():
        text = text.replace(f"  {pool}:\n", f"  {pool}:\n    {line}\n")
    declared = ", ".join(f"{name}: {{steps: {steps}}}" for name, steps in series.items())
    return text.replace("pools:\n", f"series: {{{declared}}}\npools:\n", 1)


def steps(*values: float, each_s: float = HOUR) -> list[list[float]]:
    """Values from now on, each for an hour."""
    return [[NOW + each_s * n, value] for n, value in enumerate(values)]


def carbon(fleet: str, series: str) -> str:
    places = f"{{eu-west: {{gco2_per_kwh: {series}}}, us-east: {{gco2_per_kwh: {series}}}}}"
    return fleet.replace("series:", f"regions: {places}\nseries:", 1)


def chosen(decision: Decision) -> Any:
    return decision.candidates[0]


CHEAP_LATER = a_fleet({"spot": steps(0.4, 0.4, 0.04, 0.4)}, board="tariff: spot")


def patient(**changes: Any) -> Profile:
    return bulk(**{"deadline": NOW + 6 * HOUR} | changes)


def test_work_that_may_wait_is_held_for_the_cheap_hour() -> None:
    where = a_situation("board", fleet=CHEAP_LATER)
    decision = decide_in(patient(), where, NOW)
    assert (decision.action, decision.reason) == ("hold", "cheaper_hour")
    assert decision.promised is not None
    assert decision.promised.finish_s >= 2 * HOUR
    assert decision.footprint is not None
    assert decision.footprint.usd_per_hour == 0.04
    # Of what runs now it is a tenth, for the same device time.
    now = decide_in(patient(deadline=NOW + HOUR), where, NOW)
    assert now.promised is not None
    assert decision.promised.cost_usd < now.promised.cost_usd / 5


@pytest.mark.parametrize(
    "hurried",
    [
        {"deadline": NOW + 2 * HOUR},
        {"deadline": NOW + 6 * HOUR, "ttft_s": 30.0},
        {"deadline": NOW + 6 * HOUR, "batchable": False},
    ],
)
def test_what_may_not_wait_so_long_does_not(hurried: dict[str, Any]) -> None:
    where = a_situation("premium", "board", fleet=CHEAP_LATER)
    decision = decide_in(patient(**hurried), where, NOW)
    assert decision.promised is not None
    assert decision.promised.finish_s < HOUR


def test_the_cheapest_hour_is_that_of_those_which_can_be_waited_for() -> None:
    ever_cheaper = a_fleet({"spot": steps(0.4, 0.2, 0.04)}, board="tariff: spot")
    where = a_situation("board", fleet=ever_cheaper)
    decision = decide_in(patient(deadline=NOW + 1.75 * HOUR), where, NOW)
    assert decision.reason == "cheaper_hour"
    assert decision.footprint is not None
    assert decision.footprint.usd_per_hour == 0.2


def test_a_class_says_how_long_its_requests_wait_for_a_price() -> None:
    for wait_s, reason in ((HOUR, "only_candidate"), (3 * HOUR, "cheaper_hour")):
        text = POLICY.replace("  bulk: {", f"  bulk: {{price_wait_s: {wait_s}, ")
        where = a_situation("board", fleet=CHEAP_LATER, policy=text)
        assert decide_in(patient(), where, NOW).reason == reason


def test_a_market_that_nobody_knows_ahead_is_not_waited_for() -> None:
    unknown = CHEAP_LATER.replace("{spot: {", "{spot: {known_ahead_s: 0, ")
    decision = decide_in(patient(), a_situation("board", fleet=unknown), NOW)
    assert decision.reason == "only_candidate"
    known = CHEAP_LATER.replace("{spot: {", f"{{spot: {{known_ahead_s: {2 * HOUR}, ")
    assert decide_in(patient(), a_situation("board", fleet=known), NOW).reason == "cheaper_hour"


FEW = settings(PROPERTY, max_examples=40)
HOURS = st.lists(st.sampled_from([0.05, 0.2, 0.4, 0.8, 1.7]), min_size=1, max_size=30)


@FEW
@given(HOURS, HOURS, st.floats(0.1, 26), st.booleans(), st.integers(1, 4000))
def test_a_promise_is_the_device_time_at_the_tariff_of_its_hour(
    spot: list[float], power: list[float], hours: float, is_bulk: bool, tokens: int
) -> None:
    fleet = a_fleet(
        {"spot": steps(*spot), "power": steps(*power)},
        board="tariff: spot\n    site: hall",
        premium="site: hall",
    ).replace("series:", "sites: {hall: {usd_per_kwh: power, gco2_per_kwh: 420}}\nseries:", 1)
    where, declared = a_situation("premium", "board", fleet=fleet), parse_fleet(fleet, "f")
    request = (bulk if is_bulk else profile)(deadline=NOW + hours * HOUR, input_tokens=tokens)
    decision = decide_in(request, where, NOW)
    promised, taken = decision.promised, decision.footprint
    assert promised is not None
    assert taken is not None
    # Nothing waits beyond its deadline, whatever it saves.
    if promised.finish_s > hours * HOUR:
        assert promised.chance is not None
        assert promised.chance < request.target_chance
    pool = declared.pools[chosen(decision).pool]
    device = declared.devices[pool.device]
    assert promised.ttft_s is not None
    span = NOW + promised.ttft_s, NOW + promised.finish_s
    usd = device.usd_per_hour
    if pool.tariff:
        usd = mean(declared.series["spot"].curve, *span)
    busy_kw = (device.busy_w or 0.0) / 1000
    usd += busy_kw * mean(declared.series["power"].curve, *span)
    assert taken.usd_per_hour == pytest.approx(usd, rel=1e-12)
    device_hours = promised.cost_usd / usd
    assert taken.energy_wh == pytest.approx(device_hours * busy_kw * 1000, rel=1e-6, abs=1e-8)
    assert taken.gco2 == pytest.approx(device_hours * busy_kw * 420, rel=1e-6, abs=1e-8)


@FEW
@given(st.booleans(), st.floats(0.1, 20), st.integers(1, 4000))
def test_prices_that_never_move_change_no_decision(
    is_bulk: bool, hours: float, tokens: int
) -> None:
    still = a_fleet(
        {"chip": [[0, 9.0]], "board": [[0, 0.4], [NOW + HOUR, 0.4]]},
        silicon="tariff: chip",
        board="tariff: board",
    )
    request = (bulk if is_bulk else profile)(deadline=NOW + hours * HOUR, input_tokens=tokens)
    moving = decide_in(request, a_situation(fleet=still), NOW)
    plain = decide_in(request, a_situation(fleet=POWER), NOW)
    assert replace(moving, footprint=None, group=None) == replace(plain, group=None)


@FEW
@given(HOURS, st.floats(0.0001, 0.5), st.floats(0.1, 26), st.booleans(), st.integers(1, 4000))
def test_no_placement_is_expected_to_emit_more_than_it_may(
    intensity: list[float], limit_g: float, hours: float, is_bulk: bool, tokens: int
) -> None:
    fleet = carbon(a_fleet({"grid": steps(*(1000 * each for each in intensity))}), "grid")
    request = (bulk if is_bulk else profile)(
        deadline=NOW + hours * HOUR, input_tokens=tokens, max_gco2=limit_g
    )
    decision = decide_in(request, a_situation(fleet=fleet), NOW)
    if decision.promised is not None:
        assert decision.footprint is not None
        assert decision.footprint.gco2 is not None
        assert decision.footprint.gco2 <= limit_g
        # The chip's power is not declared, so that nobody knows what it emits.
        assert chosen(decision).pool != "silicon"
    else:
        assert "max_gco2" in (decision.refusals or {}).values()


def test_a_limit_of_emissions_waits_for_the_green_hour() -> None:
    fleet = carbon(a_fleet({"grid": steps(500, 500, 50, 500)}), "grid")
    where = a_situation("board", fleet=fleet)
    taken = decide_in(patient(), where, NOW).footprint
    assert taken is not None
    assert taken.gco2 is not None
    held = decide_in(patient(max_gco2=taken.gco2 / 3), where, NOW)
    assert (held.action, held.reason) == ("hold", "only_candidate")
    assert held.promised is not None
    assert held.promised.finish_s > 2 * HOUR
    refused = decide_in(patient(max_gco2=taken.gco2 / 3, deadline=NOW + HOUR), where, NOW)
    codes = {each.pool: each.refused for each in refused.candidates}
    assert codes["board"] == "max_gco2"
    assert refused.promised is None


@pytest.mark.parametrize(("part", "is_broken"), [(1.01, False), (0.99, True)])
def test_the_check_of_backtests_counts_emissions_by_itself(part: float, is_broken: bool) -> None:
    text = carbon(a_fleet({"air": steps(300.0, 100.0)}), "air")
    where, asked = a_situation("premium", fleet=text), profile()
    decision = decide_in(asked, where, NOW)
    assert decision.option is not None
    assert decision.footprint is not None
    assert decision.footprint.gco2 is not None
    limit = {"max_gco2": part * decision.footprint.gco2}
    told = {"id": "r", "model": asked.model, "body": {}, "constraints": limit}
    request = InferenceRequest.model_validate(told)
    send = Send(asked, decision.option, "direct", promised=decision.promised)
    fleet, arrival = parse_fleet(text, "fleet"), Arrival.of(asked, request)
    assert emits_too_much(send, arrival, fleet, where.policy) == is_broken


def members(where: Situation, *requests: Profile) -> list[Member]:
    return [Member(each, group_there(each, where), NOW, at) for at, each in enumerate(requests)]


def due(where: Situation, held: list[Member], now: float) -> Release | float:
    target = target_in(held, where, now)
    assert target is not None
    return windows_of(where.policy).judge(held, len(held), target, now)


def test_a_group_goes_at_the_cheap_hour_and_not_before() -> None:
    where = a_situation("premium", "board", fleet=CHEAP_LATER)
    held = members(where, *(patient(id=str(n)) for n in range(40)))
    for minutes in (0, 1, 30, 90, 119):
        looked = due(where, held, NOW + 60 * minutes)
        assert isinstance(looked, float), minutes
        assert NOW + 60 * minutes < looked <= NOW + 2 * HOUR
    release = due(where, held, NOW + 2 * HOUR)
    assert isinstance(release, Release)
    assert release.target.option.pool == "board"
    assert release.target.footprint is not None
    assert release.target.footprint.usd_per_hour == 0.04
    inputs = release_inputs_of(release, where)
    again = release_again(held[0].profile, inputs, where.options, where.policy, NOW + 2 * HOUR)
    assert again is not None
    assert (again.target, again.reason, again.slack_s) == (
        *(release.target, release.reason, release.slack_s),
    )


def test_a_group_goes_before_the_cheap_hour_where_not_all_could_go_then() -> None:
    where = a_situation("board", fleet=CHEAP_LATER)
    held = members(where, *(patient(id=str(n), deadline=NOW + 2.2 * HOUR) for n in range(32)))
    target = target_in(held, where, NOW + 60)
    assert target is not None
    assert target.wait_until == NOW + 2 * HOUR
    windows = windows_of(where.policy)
    assert isinstance(windows.judge(held, 32, target, NOW + 60), float)
    release = windows.judge(held, 200_000, target, NOW + 60)
    assert isinstance(release, Release)
    assert release.target.wait_until == 0


def test_the_replicas_of_a_pool_share_what_waits_for_its_hour() -> None:
    where = a_situation("board", fleet=CHEAP_LATER)
    held = members(where, *(patient(id=str(n), deadline=NOW + 2.2 * HOUR) for n in range(32)))
    target = target_in(held, where, NOW)
    assert target is not None
    assert target.option.replicas == 2
    run_s = target.estimate.finish_s - 2 * HOUR
    left_s = 2.2 * HOUR - target.estimate.latest_s - where.policy.windows.margin_s
    in_time = 1 + int(2 * left_s / run_s)
    windows = windows_of(where.policy)
    assert isinstance(windows.judge(held, 32 * in_time, target, NOW), float)
    assert isinstance(windows.judge(held, 32 * in_time + 1, target, NOW), Release)


@FEW
@given(HOURS, st.floats(0.1, 20), st.lists(st.floats(0.05, 1.0), max_size=6))
def test_no_group_waits_past_the_deadline_of_a_member(
    spot: list[float], hours: float, looks: list[float]
) -> None:
    where = a_situation("board", fleet=a_fleet({"spot": steps(*spot)}, board="tariff: spot"))
    deadline = NOW + hours * HOUR
    held = members(where, *(patient(id=str(n), deadline=deadline) for n in range(8)))
    windows = Placer(where)
    now = NOW
    kept = windows_of(where.policy)
    for member in held:
        kept.add(member)
    for _ in range(200):
        ends = list(kept.due(now, lambda some, at=now: windows.target(some, at)))
        if ends:
            break
        assert kept.next_due_at() > now
        now = kept.next_due_at()
    assert ends
    assert all(isinstance(end, Release) for end in ends)
    assert now <= deadline - ends[0].target.estimate.latest_s  # type: ignore[union-attr]


def test_requests_of_unlike_patience_wait_in_groups_of_their_own() -> None:
    where = a_situation(fleet=CHEAP_LATER)
    groups = {group_there(patient(deadline=NOW + n * HOUR), where) for n in (1, 3, 4, 20)}
    assert len(groups) == 3
    plain = a_situation(fleet=POWER)
    assert len({group_there(patient(deadline=NOW + n * HOUR), plain) for n in (1, 20)}) == 1
    assert group_there(patient(max_gco2=1.0), plain) != group_there(patient(), plain)


def test_the_footprint_stands_in_the_evidence_and_is_read_back() -> None:
    where = a_situation("board", fleet=carbon(CHEAP_LATER, "spot"))
    request = patient(max_gco2=3.0)
    decision = decide_in(request, where, NOW)
    assert decision.footprint is not None
    written = Evidence(
        *("r1", "held", NOW, "router-0", Source("inference.requests", 0, 7)),
        tenant=request.tenant,
        task=request.task,
        model=request.model,
        candidates=decision.candidates,
        profile=request,
        promised=decision.promised,
        footprint=decision.footprint,
    )
    read = decode(Evidence, evidence_bytes(written))
    assert read.footprint == decision.footprint
    assert read.profile == request


def test_a_spot_pool_is_charged_for_what_may_be_taken_away() -> None:
    taken = a_fleet({}, board="interruptions_per_hour: 60\n    notice_s: 0")
    noticed = taken.replace("notice_s: 0", "notice_s: 100000")
    chances, costs = {}, {}
    for name, fleet in (("safe", POWER), ("taken", taken), ("noticed", noticed)):
        decision = decide_in(bulk(), a_situation("board", fleet=fleet), NOW)
        found = next(c for c in decision.candidates if c.path == "hold")
        chances[name], costs[name] = found.chance or 0.0, found.cost_usd
    assert chances["taken"] < chances["noticed"] == chances["safe"]
    both = decide_in(bulk(), a_situation("board", "premium", fleet=taken), NOW)
    assert chosen(both).pool == "premium"
    assert chosen(decide_in(bulk(), a_situation("board", "premium", fleet=noticed), NOW)).pool == (
        chosen(decide_in(bulk(), a_situation("board", "premium", fleet=POWER), NOW)).pool
    )


def test_a_try_fails_by_itself_or_by_a_replica_that_is_taken_away_without_notice() -> None:
    fleet = a_fleet({}, board="interruptions_per_hour: 60\n    notice_s: 30\n    failure_rate: 0.1")
    where = a_situation("board", fleet=fleet)
    standing = where.view.standing(where.options.of("board", "llama-int8"))

    def rate(finish_s: float, wait_s: float) -> float:
        visit, figures = (standing, "hold", 1, wait_s, 0), (0.0, 0.0, 0.0, finish_s, 0.0, 0.0, 0.0)
        return failure_rate(visit, figures)  # type: ignore[arg-type]

    # A minute past the notice at one in a minute; what waits runs nowhere yet.
    assert rate(100.0, 10.0) == pytest.approx(1 - 0.9 * exp(-1))
    assert rate(40.0, 10.0) == rate(20.0, 10.0) == pytest.approx(0.1)


def test_a_batch_counts_what_may_be_taken_away_and_its_emissions() -> None:
    taken = a_fleet({}, board="interruptions_per_hour: 60\n    notice_s: 0")
    chances = []
    for fleet in (POWER, taken):
        where = a_situation("board", fleet=fleet)
        target = target_in(members(where, bulk()), where, NOW)
        assert target is not None
        chances.append(target.chance)
    lost = exp(-target.estimate.finish_s / 60)
    assert lost < 0.99
    assert chances[1] == pytest.approx(chances[0] * lost)
    where = a_situation("board", fleet=carbon(a_fleet({"grid": steps(500)}), "grid"))
    target = target_in(members(where, bulk()), where, NOW)
    assert target is not None
    assert target.footprint is not None
    assert target.footprint.gco2 is not None
    for part, is_able in ((1.01, True), (0.99, False)):
        held = members(where, bulk(max_gco2=part * target.footprint.gco2))
        assert (target_in(held, where, NOW) is not None) is is_able


def test_what_may_be_taken_away_at_the_cheap_hour_counts_too() -> None:
    spot, chances = CHEAP_LATER, []
    taken = spot.replace(
        "tariff: spot", "tariff: spot\n    interruptions_per_hour: 60\n    notice_s: 0"
    )
    for fleet in (spot, taken):
        decision = decide_in(patient(), a_situation("board", fleet=fleet), NOW)
        later = next(c for c in decision.candidates if (c.finish_s or 0) > 2 * HOUR)
        chances.append(later.chance or 0)
    lost = exp(-((later.finish_s or 0) - 2 * HOUR) / 60)
    assert chances[1] == pytest.approx(chances[0] * lost)


def test_no_group_waits_for_an_hour_in_which_a_member_would_pass_its_limit() -> None:
    fleet = a_fleet({"spot": steps(4.0, 0.4)}, board="tariff: spot")
    where = a_situation("board", fleet=fleet)
    (free,) = members(where, patient(output_tokens=1))
    first = target_in([free], where, NOW)
    assert first is not None
    assert first.wait_until == NOW + HOUR
    usd = first.estimate.cost_usd
    within, beyond = (members(where, patient(max_cost_usd=usd * part)) for part in (1000, 0.5))
    assert target_in(within, where, NOW) is not None
    assert target_in(beyond, where, NOW) is None


def test_a_budget_keeps_what_the_dearest_hour_until_the_deadline_would_cost() -> None:
    kept = {}
    for name, fleet in (("moves", a_fleet({"spot": steps(0.4, 0.4, 4.0)}, board="tariff: spot")),
                        ("plain", POWER)):  # fmt: skip
        where = a_situation("board", fleet=fleet)
        decision = decide_in(patient(), where, NOW)
        inputs = inputs_of(patient(), where, NOW)
        kept[name] = amounts_of(patient(), decision, inputs, where.options, where.policy, 200)
    assert kept["moves"].nano_usd == pytest.approx(10 * kept["plain"].nano_usd, rel=1e-6)
