"""The price of a failed try: a second one, at the pool where that would go."""

from dataclasses import replace
from typing import Any

import pytest
from decisions import decide_in
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import NOW, POLICY, PROPERTY, TWINS, a_policy, profile, some_options, status
from release_cases import batch, target_of

from policies import (
    Decision,
    Extension,
    Option,
    ReleaseInputs,
    Situation,
    decide,
    inputs_of,
    release_again,
    release_inputs_of,
    situation,
    windows_of,
)
from policies.batching.windows import Release
from policies.fleet_state.candidate_load import PoolLoad, standing_of
from policies.placement.inputs import Inputs
from policies.scoring.candidates import Offers, SecondTries, choose
from policies.scoring.estimate import Estimate, Visit
from topics import Profile, decode
from topics.wire.canonical_json import canonical

RATE = 0.2


def twins(
    dearer: float, *, rate: float = RATE, policy: str = POLICY, right_rate: float = 0.0
) -> Situation:
    """Two pools, of which the left one fails; the right one costs so many times as much."""
    price = f"    usd_per_hour: {4.0 * dearer}\n    failure_rate: {right_rate}\n"
    text = TWINS.replace("  right:\n", "  right:\n" + price)
    where = situation(some_options(text), a_policy(policy))
    where.view.report(status("left", failure_rate=rate))
    where.view.report(status("right"))
    return where


def went_to(decision: Decision) -> tuple[str, str]:
    return decision.candidates[0].pool, decision.reason


@pytest.mark.parametrize(
    ("dearer", "weight", "expected"),
    [
        # 1 + 0.2 * 1.22 is more than 1.22, which 1 + 0.2 * 1 is not.
        (1.22, 1.0, ("right", "cheapest_with_failures")),
        (1.3, 1.0, ("left", "cheapest_in_time")),
        (1.3, 1.5, ("right", "cheapest_with_failures")),
        (1.01, 0.0, ("left", "cheapest_in_time")),
        (0.99, 1.0, ("right", "cheapest_in_time")),
    ],
)
def test_a_second_try_costs_what_it_does_at_the_pool_where_it_would_go(
    dearer: float, weight: float, expected: tuple[str, str]
) -> None:
    where = twins(dearer, policy=POLICY + f"retry_cost_weight: {weight}\n")
    assert went_to(decide_in(profile(), where, NOW)) == expected


def test_where_no_other_pool_would_be_in_time_the_first_trys_cost_stands_for_it() -> None:
    where = twins(1.22)
    finish_s = max(c.finish_s or 0.0 for c in decide_in(profile(), where, NOW).candidates)
    for times, pool in ((2.1, "right"), (1.9, "left")):
        asked = profile(ttft_s=None, tpot_s=None, deadline=NOW + times * finish_s)
        assert went_to(decide_in(asked, where, NOW))[0] == pool


def test_the_release_counts_a_second_try_alike() -> None:
    assert target_of(batch(3), twins(1.22)).option.pool == "right"
    assert target_of(batch(3), twins(1.3)).option.pool == "left"
    held = batch(3)
    finish_s = target_of(held, twins(1.22)).estimate.finish_s
    near = batch(3, deadline=NOW + 1.9 * finish_s)
    assert target_of(near, twins(1.22)).option.pool == "left"


def test_a_scorer_is_given_the_price_with_the_second_try() -> None:
    seen = {}

    def price(_: Profile, option: Option, price_usd: float) -> float:
        seen[option.pool] = price_usd
        return price_usd

    where = twins(1.22)
    ruled = replace(where, policy=where.policy.model_copy(update={"extensions": ("s",)}))
    ruled = replace(ruled, policy=ruled.policy.bind([Extension("s", "s 1", price=price)]))
    decision = decide_in(profile(), ruled, NOW)
    assert went_to(decision) == ("right", "cheapest_with_failures")
    cost_usd = {c.pool: c.cost_usd or 0.0 for c in decision.candidates}
    left_usd = cost_usd["left"] + RATE * cost_usd["right"]
    assert seen == pytest.approx({"left": left_usd, "right": cost_usd["right"]})
    assert target_of(batch(3), ruled).option.pool == "right"


def test_a_promise_and_a_limit_are_of_the_cost_itself() -> None:
    where = twins(1.3)
    promised = decide_in(profile(), where, NOW).promised
    assert promised is not None
    limited = profile(max_cost_usd=promised.cost_usd)
    assert decide_in(limited, where, NOW).promised == promised
    alone = target_of(batch(3), twins(1.3))
    assert target_of(batch(3, max_cost_usd=alone.estimate.cost_usd), where).option.pool == "left"


def test_what_is_recorded_leads_to_the_same_decision() -> None:
    where = twins(1.22)
    decision = decide_in(profile(), where, NOW)
    assert decision.reason == "cheapest_with_failures"
    inputs = decode(Inputs, canonical(inputs_of(profile(), where, NOW)))
    assert decide(profile(), inputs, where.options, where.policy, NOW) == decision
    waiting, now = batch(3), NOW + 30
    found = windows_of(where.policy).judge(waiting, 3, target_of(waiting, where, now), now)
    assert isinstance(found, Release)
    assert found.target.option.pool == "right"
    held = decode(ReleaseInputs, canonical(release_inputs_of(found, where)))
    again = release_again(waiting[0].profile, held, where.options, where.policy, now)
    assert again is not None
    assert again.target.candidates == found.target.candidates


OPTION = some_options(TWINS).by_pool["left"][0]
SMALL = st.integers(1, 6).map(float)


Offer = tuple[Visit, Estimate, float, float]


def offer(pool: str, variant: str, **of: Any) -> Offer:
    """An offer of this cost, price, finish, failure rate and chance."""
    option = replace(OPTION, pool=pool, variant=variant)
    standing = standing_of(option, PoolLoad(workers=1, failure_rate=of["rate"]))
    found = Estimate(of["cost"], 0.0, 0.0, of["finish_s"], 0.0, of["finish_s"], 0.0)
    return (standing, "direct", 1, 0.0, 0), found, of["chance"], of["cost"] * of["factor"]


OFFERS = st.lists(
    st.builds(
        offer,
        st.sampled_from("abcd"),
        st.sampled_from("vw"),
        cost=SMALL,
        factor=st.sampled_from([1.0, 1.0, 2.0]),
        finish_s=SMALL,
        rate=st.sampled_from([0.0, 0.1, 0.5]),
        chance=st.sampled_from([0.5, 0.95]),
    ),
    min_size=1,
    max_size=12,
)


def by_hand(at: int, offers: Offers, left_s: float) -> float:
    """The same, looked up among all for each."""
    found = [Estimate(*figures) for figures in offers.figures]
    left_s -= found[at].finish_s
    elsewhere = [n for n in range(len(offers)) if offers.option(n).pool != offers.option(at).pool]
    others = [found[n] for n in elsewhere] or found
    cheapest = min(others, key=lambda each: each.cost_usd)
    fastest = min(others, key=lambda each: each.finish_s)
    in_time = [each for each in (cheapest, fastest) if each.finish_s <= left_s]
    return offers.visits[at][0].failure_rate * (*in_time, found[at])[0].cost_usd


@PROPERTY
@given(OFFERS, st.integers(0, 14))
def test_the_short_way_finds_what_a_look_at_all_finds(each: list[Offer], left_s: int) -> None:
    offers = Offers(*map(list, zip(*each, strict=True)))
    second_tries = SecondTries(offers, left_s, 1.0)
    usd = [by_hand(at, offers, left_s) for at in range(len(offers))]
    found = zip(offers.visits, offers.figures, strict=True)
    assert [second_tries.usd(*pair) for pair in found] == usd
    best = choose(offers, 0.9, second_tries)
    able = [at for at, chance in enumerate(offers.chances) if chance >= 0.9]
    if able:
        lowest = min(offers.prices_usd[at] + usd[at] for at in able)
        assert offers.prices_usd[best] + usd[best] == lowest
        assert offers.chances[best] >= 0.9
