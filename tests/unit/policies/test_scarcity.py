"""A pool that fills counts as dearer than it is, so that work leaves it that has another way."""

from dataclasses import replace

import pytest
from decisions import decide_in
from policy_cases import NOW, POLICY, TWINS, a_policy, a_situation, bulk, profile, status
from release_cases import batch, target_of

from policies import Decision, Situation, decide, inputs_of
from policies.fleet_state.candidate_load import PoolLoad, standing_of
from policies.placement.inputs import Inputs
from policies.scoring.estimate import FULLNESS_MAX, scarcity
from topics import ServerLoad, VariantStatus, decode
from topics.wire.canonical_json import canonical

SCARCE = POLICY + "scarcity: {price_factor: 4, from_share: 0.5}\n"
PLACES = 16  # of each of the twins


def twins(*, running: int = 0, kv_usage: float | None = None, policy: str = SCARCE) -> Situation:
    """Two equal pools; more runs on the left one, which makes it the cheaper one to join."""
    where = a_situation(fleet=TWINS, policy=policy)
    variant = where.options.by_pool["left"][0].variant
    left, right = ({variant: VariantStatus(running=each)} for each in (running, 4))
    where.view.report(status("left", variants=left, server=ServerLoad(kv_usage=kv_usage)))
    where.view.report(status("right", variants=right))
    return where


def went_to(decision: Decision) -> tuple[str, str]:
    return decision.candidates[0].pool, decision.reason


@pytest.mark.parametrize(
    ("taken", "factor"),
    [(0, 1.0), (8, 1.0), (12, 2.0), (16, 4.0), (20, 8.0), (24, 16.0), (90, 16.0)],
)
def test_the_price_grows_exponentially_from_a_share_on(taken: int, factor: float) -> None:
    option = a_situation(fleet=TWINS).options.by_pool["left"][0]
    load = PoolLoad(workers=1, running_by_variant={option.variant: taken})
    assert scarcity(standing_of(option, load), a_policy(SCARCE)) == pytest.approx(factor)
    by_memory = PoolLoad(workers=1, kv_usage=min(taken / PLACES, FULLNESS_MAX))
    assert scarcity(standing_of(option, by_memory), a_policy(SCARCE)) == pytest.approx(factor)
    assert scarcity(standing_of(option, load), a_policy()) == 1.0


def test_work_joins_what_runs_until_places_are_scarce() -> None:
    request = profile(tpot_s=None, ttft_s=None)
    assert went_to(decide_in(request, twins(running=6), NOW)) == ("left", "cheapest_in_time")
    assert went_to(decide_in(request, twins(running=15), NOW)) == ("right", "leaves_scarce_places")
    assert went_to(decide_in(request, twins(running=15, policy=POLICY), NOW))[0] == "left"


def test_kv_memory_is_scarce_too_as_heartbeats_tell_and_as_work_is_sent() -> None:
    request = profile(tpot_s=None, ttft_s=None)
    where = twins(running=6, kv_usage=0.4)
    assert went_to(decide_in(request, where, NOW))[0] == "left"
    option = where.options.by_pool["left"][0]
    where.view.add_sent(option, 0.0, 0, tokens=option.kv_capacity_tokens * option.replicas // 2)
    assert where.view.load("left").kv_usage == pytest.approx(0.9, abs=0.01)
    assert went_to(decide_in(request, where, NOW)) == ("right", "leaves_scarce_places")


def test_a_promise_and_a_limit_on_cost_are_of_the_cost_itself() -> None:
    request = profile(tpot_s=None, ttft_s=None, pools=("left",))
    scarce = decide_in(request, twins(running=15), NOW)
    plain = decide_in(request, twins(running=15, policy=POLICY), NOW)
    assert scarce.promised is not None
    assert scarce.promised == plain.promised
    limited = replace(request, max_cost_usd=1.5 * scarce.promised.cost_usd)
    assert decide_in(limited, twins(running=15), NOW).action == "place"


def test_a_batch_goes_where_places_are_left() -> None:
    plain = target_of(batch(2), twins(running=13, policy=POLICY))
    spared = target_of(batch(2), twins(running=13))
    assert (plain.option.pool, spared.option.pool) == ("left", "right")


def test_the_recorded_load_leads_to_the_same_decision() -> None:
    request, where = profile(tpot_s=None, ttft_s=None), twins(running=6, kv_usage=0.95)
    decision = decide_in(request, where, NOW)
    assert decision.reason == "leaves_scarce_places"
    inputs = decode(Inputs, canonical(inputs_of(request, where, NOW)))
    assert decide(request, inputs, where.options, where.policy, NOW) == decision


def test_a_promise_tells_how_long_memory_is_waited_for_and_is_made_again_from_the_record() -> None:
    request = profile(tpot_s=None, ttft_s=None, pools=("left",))
    free, full = (twins(running=6, kv_usage=share, policy=POLICY) for share in (0.5, 1.5))
    promised = [decide_in(request, where, NOW).promised for where in (free, full)]
    assert promised[0] is not None
    assert promised[1] is not None
    assert (promised[1].ttft_s or 0) > (promised[0].ttft_s or 0) + 50 * (promised[0].tpot_s or 1)
    inputs = decode(Inputs, canonical(inputs_of(request, full, NOW)))
    again = decide(request, inputs, full.options, full.policy, NOW)
    assert again == decide_in(request, full, NOW)


def test_work_that_may_wait_looks_at_scarcity_as_well() -> None:
    decision = decide_in(bulk(), twins(running=15), NOW)
    assert decision.candidates[0].pool == "right"
