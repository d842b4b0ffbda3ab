"""A pool that gathers its work is promised as it gathers, and as likely as it can spread."""

from dataclasses import replace

import pytest
from backtest_cases import FLEET, replay
from evidence_cases import inputs_as_recorded
from policy_cases import NOW, a_policy, profile, status

from policies import FleetView, Inputs, Option, compile_options, decide
from policies.backtest.scores import calibration_of
from policies.config.fleet import OpenAIBackendConfig
from policies.fleet_state.candidate_load import OptionState
from policies.hardware.pool_fill import FULL
from policies.hardware.replica import OWN_REPLICA_SHARE
from policies.scoring.estimate import chance, estimate
from topics import VariantStatus

POOL, SMALL, LARGE, WIDE = "silicon-us", "llama-3.1-8b-fp8", "llama-3.1-70b-fp8", 20


def options(**changes: object) -> tuple[Option, ...]:
    """The variants of a pool of 20 replicas."""
    pool = FLEET.pools[POOL].model_copy(update={"count": WIDE, **changes})
    fleet = FLEET.model_copy(update={"pools": {POOL: pool}})
    return compile_options(fleet).by_pool[POOL]


def standing(found: tuple[Option, ...], variant: str, running: dict[str, int]) -> OptionState:
    view = FleetView(compile_options(FLEET.model_copy(update={"pools": {}})))
    view = view.under(replace(compile_options(FLEET), by_pool={POOL: found}))
    told = {name: VariantStatus(running=count) for name, count in running.items()}
    view.report(status(POOL, device=found[0].device, region=found[0].region, variants=told))
    return view.standing(next(option for option in found if option.variant == variant))


def step_s(found: tuple[Option, ...], variant: str, sequences: int, context: int = 1700) -> float:
    option = next(option for option in found if option.variant == variant)
    return option.roofline.step_s(sequences, sequences * context)


ASKED = replace(profile(), input_tokens=1600, output_tokens=200, ttft_s=2.0, tpot_s=1.0)


def test_at_low_traffic_all_variants_are_expected_on_one_replica_and_can_be_kept_apart() -> None:
    found = options()
    here = standing(found, SMALL, {SMALL: 3, LARGE: 5})
    promised = estimate(ASKED, here, 0.0)
    mixed_s = step_s(found, SMALL, 4) + step_s(found, LARGE, 5)
    assert promised.tpot_s == pytest.approx(mixed_s)
    assert promised.least_tpot_s == pytest.approx(step_s(found, SMALL, 1))
    # What its pool would break an SLO by goes to another replica.
    strict = replace(ASKED, tpot_s=mixed_s)
    assert estimate(strict, here, 0.0).tpot_s == pytest.approx(FULL.tpot_share * mixed_s)
    kept = chance(strict, estimate(strict, here, 0.0), 0.0, 0.35)
    assert kept > 0.999 > chance(strict, promised._replace(least_tpot_s=mixed_s), 0.0, 0.35)


def test_what_fills_replicas_of_its_own_waits_for_no_other_variant() -> None:
    found = options()
    much = round(OWN_REPLICA_SHARE * found[0].max_batch)
    here = standing(found, SMALL, {SMALL: much, LARGE: 5})
    assert estimate(ASKED, here, 0.0).tpot_s == pytest.approx(step_s(found, SMALL, much + 1))
    other = standing(found, LARGE, {SMALL: much, LARGE: 5})
    assert estimate(ASKED, other, 0.0).tpot_s == pytest.approx(step_s(found, LARGE, 6))


def test_more_variants_than_replicas_take_turns_however_they_are_spread() -> None:
    found = options(count=2)
    running = {option.variant: 8 for option in found}
    assert len(running) == 4
    here = standing(found, SMALL, running)
    others_s = sum(step_s(found, variant, 4) for variant in running if variant != SMALL)
    least_s = step_s(found, SMALL, 5) + others_s / 3
    assert estimate(ASKED, here, 0.0).least_tpot_s == pytest.approx(least_s)


def test_a_server_spreads_what_it_gets() -> None:
    found = options(backend=OpenAIBackendConfig(type="openai", base_url="http://a/v1"))
    here = standing(found, SMALL, {SMALL: 3, LARGE: 5})
    promised = estimate(ASKED, here, 0.0)
    spread_s = step_s(found, SMALL, 1) + step_s(found, LARGE, 1)
    assert promised.tpot_s == promised.least_tpot_s == pytest.approx(spread_s)


def test_a_decision_on_a_pool_that_gathers_is_the_same_from_its_record() -> None:
    made = compile_options(FLEET)
    view, policy = FleetView(made), a_policy()
    for pool, choices in made.by_pool.items():
        told = {option.variant: VariantStatus(running=7) for option in choices}
        here = {"device": choices[0].device, "region": choices[0].region}
        view.report(status(pool, variants=told, **here))
    model = made.of(POOL, LARGE).model
    asked = replace(ASKED, model=model)
    inputs = Inputs({o.pool: view.load(o.pool) for o in made.by_model[model]}, 0.0)
    assert inputs.loads[POOL].gathered is not None
    decision = decide(asked, inputs, made, policy, NOW)
    again = inputs_as_recorded(asked, inputs, decision, NOW)
    assert again.loads[POOL].gathered == inputs.loads[POOL].gathered
    assert decide(asked, again, made, policy, NOW) == decision


def test_promises_of_the_sample_are_as_likely_as_they_are_kept() -> None:
    found = calibration_of(replay()[0].outcomes)
    assert abs(found["promised"] - found["met"]) < 0.004
    assert found["brier"] < 0.0025
