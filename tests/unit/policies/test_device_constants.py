"""Constants of a device are learned from measured latencies, each by what only it explains."""

import random
from dataclasses import replace
from statistics import median

import pytest
from backtest_cases import FLEET, replay
from evidence_cases import inputs_as_recorded
from policy_cases import NOW, a_policy, profile, some_options, status

from policies import FleetView, Inputs, decide
from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.config.options import Option, compile_options
from policies.config.serving import Times
from policies.fleet_state.candidate_load import PoolLoad, standing_of
from policies.hardware.constants import AS_DECLARED, FACTOR_MAX, Factors, believable, corrected
from policies.hardware.iteration import Job
from policies.learning.device_constants import DeviceConstants, Measured
from policies.learning.device_speed import Pace
from policies.scoring.estimate import estimate, spread_of
from topics import PoolStatus, decode, encode

OPTIONS = compile_options(FLEET)
PLACES = [("premium-eu", 0), ("silicon-us", 1), ("lpddr-eu", 0)]
PREFILL, DECODE = 3.0, 1.5


def took(option: Option, tokens: int, reply: int, sequences: int) -> tuple[float, float]:
    """Return the latencies of a server that is slow by two factors, whatever its constants."""
    first_s = option.latency_s + PREFILL * option.roofline.prefill_s(tokens)
    return first_s, DECODE * option.roofline.decode_s(reply, sequences, tokens)


def learned(option: Option, requests: int, noise: float = 0.05) -> DeviceConstants:
    drawn, constants = random.Random(4), DeviceConstants()
    for _ in range(requests):
        asked = drawn.randint(50, 4000), drawn.randint(2, 600), drawn.randint(1, 24)
        first_s, rest_s = took(option, *asked)
        first_s *= drawn.lognormvariate(0, noise)
        whole_s = first_s + rest_s * drawn.lognormvariate(0, noise)
        constants.learn(option, asked[0], 0, asked[1], Measured(first_s, whole_s, asked[2]))
    return constants


@pytest.mark.parametrize("place", PLACES)
def test_after_500_requests_of_a_slow_pool_promises_are_near(place: tuple[str, int]) -> None:
    option = OPTIONS.by_pool[place[0]][place[1]]
    constants = learned(option, 500)
    load = PoolLoad(workers=1, constants=(*constants.factors, constants.known))
    standing = standing_of(option, load)
    for tokens, reply in ((200, 20), (500, 200), (1700, 300), (4000, 500)):
        asked = profile(input_tokens=tokens, output_tokens=reply)
        promised = estimate(asked, standing, 0.0)
        first_s, rest_s = took(option, tokens, reply, 1)
        assert promised.ttft_s == pytest.approx(first_s, rel=0.15)
        assert promised.tpot_s == pytest.approx(rest_s / (reply - 1), rel=0.15)
    before = estimate(asked, standing_of(option, PoolLoad(workers=1)), 0.0)
    assert before.ttft_s < 0.6 * first_s


def test_what_no_measurement_tells_apart_stays_near_the_declaration() -> None:
    option = OPTIONS.by_pool["premium-eu"][0]
    constants = DeviceConstants()
    for _ in range(300):
        _, rest_s = took(option, 100, 200, 1)
        # Of decoding alone: a first token as declared.
        first_s = option.latency_s + option.roofline.prefill_s(100)
        constants.learn(option, 100, 0, 200, Measured(first_s, first_s + rest_s))
    assert constants.factors.compute == pytest.approx(1.0, abs=0.1)
    assert 1.1 < constants.factors.memory < constants.factors.step < 1.8
    assert constants.known == pytest.approx(1.0, abs=0.01)


def test_a_request_behind_others_teaches_little() -> None:
    option = OPTIONS.by_pool["premium-eu"][0]
    alone, behind = DeviceConstants(), DeviceConstants()
    alone.learn(option, 100, 0, 0, Measured(None, 1.0))
    behind.learn(option, 100, 0, 0, Measured(None, 1.0, ahead_s=0.9))
    assert behind.known < 0.2 * alone.known
    assert behind.factors == pytest.approx(AS_DECLARED, abs=0.05)
    assert max(alone.factors) > 1.5


def test_a_pool_that_changes_is_followed() -> None:
    option = OPTIONS.by_pool["premium-eu"][0]
    constants = learned(option, 500)
    for _ in range(1000):
        first_s = option.latency_s + option.roofline.prefill_s(1000)
        rest_s = option.roofline.decode_s(200, 1, 1000)
        constants.learn(option, 1000, 0, 200, Measured(first_s, first_s + rest_s))
    again_s = constants.roofline(option).decode_s(200, 1, 1000)
    assert again_s == pytest.approx(rest_s, rel=0.05)


def errors(rows: list[ReplayOutcome]) -> list[float]:
    kinds = (
        [(o.promised.ttft_s, o.ttft_s) for o in rows if o.promised],
        [(o.promised.tpot_s, o.tpot_s) for o in rows if o.promised],
    )
    return [median(abs(p / got - 1.0) for p, got in kind if p and got) for kind in kinds]


def test_in_virtual_time_a_slow_pool_keeps_promises_after_500_requests() -> None:
    """One pool, one model, at a rate that leaves room; what it is told is what it was declared."""
    name = "premium-eu"
    pool = FLEET.pools[name]
    pool = pool.model_copy(update={"serves": pool.serves[:1], "lanes": ("direct",)})
    fleet = FLEET.model_copy(update={"pools": {name: pool}})
    slow = Times(compute=3.0, prompt=3.0, first_token=3.0, memory=1.5, step=1.5)
    run, _ = replay(fleet=fleet, reality=Reality(times={name: slow}), rows=2000, rate=0.05)
    rows = [o for o in run.outcomes if o.status == "completed" and o.path == "direct"]
    rows.sort(key=lambda o: o.finished_s or 0.0)
    assert len(rows) > 600
    assert max(errors(rows[:1])) > 0.3
    assert max(errors(rows[500:])) < 0.15


def test_a_view_has_what_the_workers_learned_by_how_much_each_measured() -> None:
    view = FleetView(some_options())
    for name, factor, known in (("0", 4.0, 1.0), ("1", 1.0, 0.0)):
        told = status("premium", instance=name, factors=(factor,) * 5, factors_known=known)
        view.report(decode(PoolStatus, encode(told)))
    load = view.load("premium")
    assert load.factors == pytest.approx((4.0,) * 5, rel=1e-3)
    option = some_options().by_pool["premium"][0]
    assert view.standing(option).roofline.weights_s == pytest.approx(
        4.0 * option.roofline.weights_s, rel=1e-3
    )


@pytest.mark.parametrize(
    "told", [None, (), (1.0,) * 4, (1.0,) * 6, (0.0,) * 5, (float("nan"),) * 5, ("1",) * 5, 3]
)
def test_what_is_no_factor_is_not_believed(told: object) -> None:
    assert believable(told) is None
    assert believable((1e9, 1e-9, 1, 1, 1)) == (FACTOR_MAX, 1 / FACTOR_MAX, 1, 1, 1)


def test_measured_constants_err_less_and_the_residual_speed_is_of_cost_alone() -> None:
    option = replace(some_options().by_pool["premium"][0], error=0.6)
    speeds = {option.variant: 0.5}
    policy = a_policy()
    plain = standing_of(option, PoolLoad(workers=1, speed_by_variant=speeds))
    known = PoolLoad(workers=1, speed_by_variant=speeds, constants=(1.0,) * 6)
    measured = standing_of(option, known)
    assert spread_of(plain, policy) == 0.6
    assert spread_of(measured, policy) == policy.estimates.spread
    half = replace(known, constants=(*(1.0,) * 5, 0.5))
    assert standing_of(option, half).error == pytest.approx(0.3)
    asked = profile(input_tokens=400, output_tokens=100)
    slow, right = estimate(asked, plain, 0.0), estimate(asked, measured, 0.0)
    assert slow.tpot_s == pytest.approx(2.0 * right.tpot_s)
    assert slow.cost_usd == pytest.approx(right.cost_usd)


def test_a_decision_by_learned_constants_is_the_same_from_its_record() -> None:
    options, policy = some_options(), a_policy()
    factors = Factors(3.0, 1.5, 1.2, 1.0, 1.0)
    load = PoolLoad(workers=1, constants=(*factors, 0.8))
    inputs = Inputs({"premium": load, "silicon": PoolLoad(workers=1)}, 0.0)
    asked = profile()
    again = inputs_as_recorded(asked, inputs, decide(asked, inputs, options, policy, NOW), NOW)
    assert again == inputs
    found = [decide(asked, each, options, policy, NOW) for each in (inputs, again)]
    assert found[0] == found[1]
    unlearned = Inputs({"premium": PoolLoad(workers=1), "silicon": PoolLoad(workers=1)}, 0.0)
    assert decide(asked, unlearned, options, policy, NOW) != found[0]


def test_a_heartbeat_can_be_written_with_what_was_learned() -> None:
    option, pace = OPTIONS.by_pool["premium-eu"][0], Pace()
    job = Job("", option.variant, 400, 100)
    pace.learn(option, job, Measured(0.2, 3.0), 1.0)
    told = status("premium-eu", factors=pace.factors, factors_known=pace.factors_known)
    assert decode(PoolStatus, encode(told)).factors == pace.factors
    assert pace.factors != tuple(AS_DECLARED)


def test_corrected_twice_is_corrected_by_the_product() -> None:
    roofline = OPTIONS.by_pool["premium-eu"][0].roofline
    assert corrected(roofline, AS_DECLARED) is roofline
    twice = corrected(corrected(roofline, Factors(2, 2, 2, 2, 2)), Factors(2, 2, 2, 2, 2))
    assert twice.prefill_s(300) == pytest.approx(4 * roofline.prefill_s(300))
    assert twice.step_s(3, 900) == pytest.approx(4 * roofline.step_s(3, 900))


def test_prompts_that_come_beside_some_replies_are_not_put_down_to_the_device() -> None:
    option, drawn = OPTIONS.by_pool["premium-eu"][0], random.Random(7)
    constants = DeviceConstants()
    for _ in range(500):
        first_s, rest_s = took(option, 1000, 100, 1)
        beside_s = rest_s if drawn.random() < 0.3 else 0.0
        constants.learn(option, 1000, 0, 100, Measured(first_s, first_s + rest_s + beside_s))
    promised_s = constants.roofline(option).decode_s(100, 1, 1000)
    assert promised_s == pytest.approx(rest_s, rel=0.12)


def short_replies(times: float, count: int) -> Factors:
    """Return what a pool learns of replies of three tokens that take so many times the decode."""
    option, constants = OPTIONS.by_pool["silicon-us"][0], DeviceConstants()
    first_s = option.latency_s + option.roofline.prefill_s(500)
    rest_s = times * option.roofline.decode_s(3, 1, 500)
    for _ in range(count):
        constants.learn(option, 500, 0, 3, Measured(first_s, first_s + rest_s))
    return constants.factors


def test_a_burst_of_short_replies_makes_no_device_slow() -> None:
    """As when a trace begins: replies of a few tokens end first, beside everybody's prompts."""
    assert short_replies(4.0, 1).step < 1.15
    assert short_replies(4.0, 5).step < 1.5
    assert short_replies(4.0, 200).step > 3.0
