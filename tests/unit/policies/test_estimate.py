"""The fast forms of estimates are, to the last bit, the formulas that they stand for."""

from dataclasses import replace
from math import erf, exp, inf, log, sqrt

import pytest
from accelerator_cases import rooflines
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import NOW, a_situation, bulk, some_options, status, tagged, views

from policies.config.options import Option
from policies.fleet_state.candidate_load import (
    BUSY_ANYWAY,
    FULLNESS_MIN,
    SUSTAINED,
    PoolLoad,
    mixed_step_s,
    running_step_s,
    standing_of,
)
from policies.fleet_state.view import FleetView
from policies.hardware.pool_fill import FULL
from policies.hardware.replica import OWN_REPLICA_SHARE
from policies.hardware.roofline import Roofline
from policies.placement.placer import Placer
from policies.scoring.estimate import Estimate, chance, estimate
from topics import Profile, VariantStatus

FLEET = some_options()
PLAIN = [option for of_pool in FLEET.by_pool.values() for option in of_pool]
# The same with attention, experts, and devices that exchange what they compute.
FULLER = [
    replace(
        option,
        roofline=replace(
            option.roofline,
            attention_width=65_536,
            kv_bytes_per_token=1.0,
            active_weights_bytes=option.roofline.weights_bytes / 8,
            traffic_token_s=2e-6,
            sequence_overhead_s=3e-5,
            prompt_overhead_s=4e-4,
        ),
    )
    for option in PLAIN
]
every_option = st.sampled_from(PLAIN)
profiles = st.builds(
    lambda **fields: replace(bulk(), **fields),
    input_tokens=st.integers(1, 30_000),
    output_tokens=st.integers(0, 5000),
    ttft_s=st.none() | st.floats(1e-3, 100),
    tpot_s=st.none() | st.floats(1e-4, 1),
    deadline=st.floats(NOW, NOW + 10_000),
)


def plain_others(load: PoolLoad, option: Option, running: int) -> tuple[int, float, float]:
    """Own sequences on the fullest replica, and the turns of others there and if all is spread."""
    others_s = max(0.0, load.round_s - running_step_s(option, load, running))
    if load.gathered is None:
        return 0, 0.0, others_s
    each = -(-running // max(1, load.workers))
    has_own = each >= OWN_REPLICA_SHARE * option.max_batch
    mixed_s = load.gathered[0] - mixed_step_s(option, load, running)
    others = load.gathered[1] - (running > 0)
    beside = max(0.0, (others + 1) / option.replicas - 1.0)
    share = beside / others if others else 0.0
    return each, 0.0 if has_own else max(0.0, mixed_s), others_s * share


def plain_estimate(
    profile: Profile,
    option: Option,
    load: PoolLoad,
    transport_s: float,
    members: int,
    wait_s: float,
) -> Estimate:
    """The estimate with every term where it is used, as the documents tell it."""
    roofline = option.roofline
    speed = load.speed_by_variant.get(option.variant, 1.0)
    replicas = max(1, load.workers) * option.replicas
    running = load.running_by_variant.get(option.variant, 0)
    slots = option.max_batch * replicas
    context = profile.input_tokens + profile.output_tokens // 2
    steps = max(0, profile.output_tokens - 1)
    tokens = profile.input_tokens
    prefill_s = roofline.iteration_s(tokens, 0, tokens * (0.5 * tokens), prompts=1)

    def step_s(sequences: int) -> float:
        contexts = sequences * context
        return roofline.iteration_s(sequences, contexts, contexts, sequences)

    together = min(option.max_batch, running + members)
    alone_s = roofline.iteration_s(1, 0, 0, 1)
    if running == 0:
        idle = not any(load.running_by_variant.values())
        added_s = (1.0 if idle else BUSY_ANYWAY) * step_s(together) / min(members, together)
    else:
        added_s = (step_s(together) - alone_s) / together
        if wait_s == 0:
            full = max(FULLNESS_MIN, min(1.0, running / slots))
            alike = running + 1 if load.gathered is None else together
            added_s += alone_s * max(full / option.max_batch, SUSTAINED / alike)
    device_s = prefill_s / speed
    step = 0.0
    if steps:
        device_s += steps * added_s / speed
        step = step_s(min(option.max_batch, running // replicas + members))
    pace = speed * option.time_scale
    each, mixed_s, others_s = plain_others(load, option, running)
    tpot_s = least_tpot_s = step / pace + others_s
    if load.gathered is not None:
        crowd = step_s(min(option.max_batch, each + members)) if steps else 0.0
        limit_s = inf if profile.tpot_s is None else FULL.tpot_share * profile.tpot_s
        tpot_s = max(tpot_s, min(mixed_s + crowd / pace, limit_s))
        others_s = max(others_s, min(mixed_s, tpot_s))
    ahead = max(0, running + members - slots)
    queue_s = ahead * max(1, profile.output_tokens) * tpot_s / slots
    capacity_tokens = option.kv_capacity_tokens * replicas
    needed = members / capacity_tokens * (profile.input_tokens + profile.output_tokens)
    missing = max(0.0, load.kv_usage - 1.0 + needed)
    queue_s = max(queue_s, missing * max(1, profile.output_tokens) * tpot_s)
    usual_s, known = load.transport or (0.0, 0.0)
    comes_s = wait_s + transport_s + known * (usual_s - transport_s)
    starts_s = comes_s + load.backlog_s + queue_s + others_s
    ttft_s = starts_s + members * prefill_s / pace
    finish_s = ttft_s + steps * tpot_s
    high = max(profile.output_tokens, profile.output_tokens_high or 0)
    latest_s = ttft_s + max(0, high - 1) * tpot_s
    return Estimate(
        device_s * option.usd_per_s,
        ttft_s,
        tpot_s,
        finish_s,
        prefill_s / pace,
        latest_s,
        least_tpot_s,
    )


@settings(deadline=None)
@given(profiles, every_option, views(FLEET), st.integers(1, 100), st.sampled_from([0.0, 30.0]))
def test_an_estimate_is_that_of_the_plain_formula(
    profile: Profile, option: Option, view: FleetView, members: int, wait_s: float
) -> None:
    load = view.load(option.pool)
    plain = plain_estimate(profile, option, load, 0.05, members, wait_s)
    assert estimate(profile, standing_of(option, load), 0.05, members, wait_s) == plain


@settings(deadline=None)
@given(profiles, st.sampled_from(FULLER), views(FLEET), st.integers(1, 100))
def test_an_estimate_has_all_terms_of_the_plain_formula(
    profile: Profile, option: Option, view: FleetView, members: int
) -> None:
    load = view.load(option.pool)
    plain = plain_estimate(profile, option, load, 0.05, members, 0.0)
    found = estimate(profile, standing_of(option, load), 0.05, members)
    assert found == pytest.approx(plain, rel=1e-9)


few = st.sampled_from([0, 0, 1, 2, 3, 5, 20, 40])


@settings(deadline=None)
@given(profiles, st.tuples(few, few), st.integers(1, 2), st.integers(1, 3))
def test_an_estimate_beside_another_variant_is_that_of_the_plain_formula(
    profile: Profile, running: tuple[int, int], workers: int, members: int
) -> None:
    variants = [option.variant for option in FLEET.by_pool["premium"]]
    told = {v: VariantStatus(running=n) for v, n in zip(variants, running, strict=True)}
    view = FleetView(FLEET)
    view.report(status("premium", variants=told))
    if workers == 2:
        view.report(status("premium", instance="1"))
    load = view.load("premium")
    for option in FLEET.by_pool["premium"]:
        plain = plain_estimate(profile, option, load, 0.05, members, 0.0)
        assert estimate(profile, standing_of(option, load), 0.05, members, 0.0) == plain


@settings(deadline=None)
@given(profiles, st.floats(1e-5, 1e3), st.floats(1e-5, 10), st.floats(0, 100), st.floats(0.05, 2))
def test_a_chance_is_the_least_of_those_of_each_limit(
    profile: Profile, finish_s: float, tpot_s: float, elapsed_s: float, spread: float
) -> None:
    found = Estimate(1e-5, finish_s / 2, 2.0 * tpot_s, finish_s / 1.5, 0.0, finish_s, tpot_s)

    def below(predicted_s: float, limit_s: float) -> float:
        if limit_s <= 0:
            return 0.0
        return 0.5 * (1.0 + erf(log(limit_s / predicted_s) / (spread * sqrt(2.0))))

    chances = [below(finish_s, profile.deadline - profile.created_at - elapsed_s)]
    if profile.ttft_s is not None:
        chances.append(below(finish_s / 2, profile.ttft_s - elapsed_s))
    if profile.tpot_s is not None and profile.output_tokens > 1:
        chances.append(below(tpot_s, profile.tpot_s))
    assert chance(profile, found, elapsed_s, spread) == min(chances)


@settings(deadline=None)
@given(rooflines, st.integers(1, 500), st.integers(0, 10**6))
def test_short_forms_of_an_iteration_are_the_iteration(
    roofline: Roofline, sequences: int, tokens: int
) -> None:
    step = roofline.iteration_s(sequences, tokens, tokens)
    assert roofline.step_s(sequences, tokens) == step
    prompt = sequences
    assert roofline.prefill_s(prompt) == roofline.iteration_s(prompt, 0, prompt * (0.5 * prompt))


def test_what_kv_memory_has_no_room_for_waits() -> None:
    """A pool with free places and full memory starts nothing before something has ended."""
    option = FLEET.of("premium", "llama-fp8")

    def waits_s(kv_usage: float, tokens: int = 600, running: int = 8) -> float:
        load = PoolLoad(workers=1, running_by_variant={option.variant: running})
        asked = replace(bulk(), input_tokens=tokens - 200, output_tokens=200)
        busy = estimate(asked, standing_of(option, replace(load, kv_usage=kv_usage)), 0.05)
        return busy.ttft_s - estimate(asked, standing_of(option, load), 0.05).ttft_s

    assert waits_s(0.9) == 0.0
    # Half of the memory has to come free, and all of it does in the time of a reply.
    load = PoolLoad(workers=1, running_by_variant={option.variant: 8})
    reply_s = 200 * estimate(bulk(), standing_of(option, load), 0.05).tpot_s
    assert waits_s(1.5) == pytest.approx(0.5 * reply_s, rel=0.01)
    assert waits_s(1.0) == pytest.approx(
        reply_s * 600 / (option.kv_capacity_tokens * option.replicas)
    )
    assert waits_s(1.0, tokens=30_000) > 10 * waits_s(1.0)
    # Where places are missing more than memory, they are what is waited for.
    assert waits_s(1.01, running=3 * option.max_batch) == 0.0


def test_a_standing_is_found_anew_when_something_is_sent_or_reported() -> None:
    view = FleetView(FLEET)
    option = FLEET.of("premium", "llama-fp8")
    assert view.standing(option).obstacle == "pool_unavailable"
    view.report(status("premium"))
    first = view.standing(option)
    assert (first.obstacle, first.running) == (None, 0)
    assert view.standing(option) is first
    view.add_sent(option, 0.5)
    sent = view.standing(option)
    assert (sent.running, sent.backlog_s) == (1, 0.5 / sent.replicas)
    view.report(status("premium", variants={"llama-fp8": VariantStatus(7, 0, 1.0)}))
    assert view.standing(option).running == 7
    view.prune(NOW + 10_000)
    assert view.standing(option).obstacle == "pool_unavailable"


@settings(deadline=None)
@given(views(FLEET), st.lists(st.tuples(every_option, st.integers(1, 3)), max_size=8))
def test_a_standing_is_that_of_a_load_of_which_nothing_is_kept(
    view: FleetView, sent: list[tuple[Option, int]]
) -> None:
    for option, count in sent:
        view.add_sent(option, 0.1, count, tokens=300)
        for each in FLEET.by_pool[option.pool]:
            load = view.load(option.pool)
            assert view.standing(each) == standing_of(each, load.copied())
            running = load.running_by_variant.get(each.variant, 0)
            plain = running_step_s(each, load, running), mixed_step_s(each, load, running)
            assert load.steps_s(each) == plain


def test_a_decision_counts_only_the_backlog_that_is_left() -> None:
    """A pool works between two requests, also where nothing has been sent to it meanwhile."""
    situation = a_situation()
    view, placer = situation.view, Placer(situation)
    pools = {option.pool for option in FLEET.by_model["llama"]}
    for pool in pools:
        view.report(status(pool, backlog_s=2.0))

    def backlogs_s(now: float) -> set[float]:
        loads = placer.decide(tagged(situation.policy).profile, now).inputs.loads
        return {round(loads[pool].backlog_s, 6) for pool in pools}

    # Since when, the router's own clock does not know.
    assert backlogs_s(NOW) == {2.0}
    assert backlogs_s(NOW + 0.4) == {1.6}
    assert backlogs_s(NOW + 0.4) == {1.6}
    option = FLEET.of("premium", "llama-fp8")
    view.add_sent(option, 0.5 * option.replicas, now=NOW + 0.4)
    assert backlogs_s(NOW + 1.0) == {1.0, 1.5}
    assert backlogs_s(NOW + 9.0) == {0.0}
    view.report(status("premium", backlog_s=3.0))
    assert backlogs_s(NOW + 9.5) == {0.0, 3.0}


def test_the_latest_finish_is_that_of_a_reply_as_long_as_such_replies_seldom_are() -> None:
    where = a_situation("premium")
    standing = where.view.standing(where.options.of("premium", "llama-fp8"))
    found = estimate(bulk(output_tokens_high=900), standing, 0.05)
    assert found.latest_s == found.ttft_s + 899 * found.tpot_s
    for high in (None, 100):
        found = estimate(bulk(output_tokens_high=high), standing, 0.05)
        assert found.latest_s == found.finish_s


@pytest.mark.parametrize(
    ("margin", "likely"), [(0.1, 0.5), (0.3, 0.739), (0.5, 0.9), (1.0, 0.952), (1.5, 0.98)]
)
def test_a_chance_by_learned_errors_is_that_of_their_quantiles(
    margin: float, likely: float
) -> None:
    where = a_situation("premium")
    standing = where.view.standing(where.options.of("premium", "llama-fp8"))
    asked = bulk()
    found = estimate(asked, standing, 0.05)
    asked = bulk(ttft_s=found.ttft_s * exp(margin))
    assert chance(asked, found, 0.0, 0.03, (0.1, 0.5, 1.5)) == pytest.approx(likely, abs=0.001)
