"""The decision: the cheapest that is in time, and waiting where that is the cheapest."""

from collections import Counter
from dataclasses import replace
from math import prod
from typing import Any

import pytest
from decisions import decide_in
from policy_cases import (
    FLEET,
    NOW,
    POLICY,
    TWINS,
    a_policy,
    a_situation,
    bulk,
    nobody_lives,
    profile,
    some_options,
    status,
)

from policies import Decision, FleetView, Situation, idle_view, situation
from policies.fleet_state.view import AHEAD_S_MAX, MISSED_BEATS_MAX
from policies.placement.decide import codes_by_pool
from policies.quality.sampling import second_run
from policies.scoring.candidates import Candidates
from policies.scoring.estimate import chance, estimate
from topics import Candidate, Fallback, Profile, QualityCheck, VariantStatus


def chosen(decision: Decision) -> Candidate:
    assert decision.candidates
    return decision.candidates[0]


def eligible(decision: Decision) -> list[Candidate]:
    return [each for each in decision.candidates if each.refused is None]


def observed(where: Situation, request: Profile, rate_per_s: float) -> Situation:
    """The situation after half an hour of arrivals in the request's group."""
    group = decide_in(replace(request, target_chance=0.01), nobody_lives(), NOW).group
    assert group is not None
    for second in range(1800):
        for _ in range(round(rate_per_s)):
            where.arrivals.observe(group, NOW - 1800 + second)
    return where


def test_the_cheapest_that_is_in_time_wins() -> None:
    decision = decide_in(profile(), a_situation(), NOW)
    assert (decision.action, decision.reason) == ("place", "cheapest_in_time")
    in_time = [c for c in eligible(decision) if (c.chance or 0) >= 0.9]
    assert len(in_time) == 3
    assert chosen(decision) == min(in_time, key=lambda c: c.cost_usd or 0)
    assert decision.option is not None
    assert (decision.option.pool, decision.option.variant) == ("premium", "llama-fp8")


def test_a_dearer_pool_wins_where_the_cheapest_is_too_slow() -> None:
    where = a_situation()
    tight = profile(tpot_s=0.004)
    decision = decide_in(tight, where, NOW)
    assert (decision.action, decision.reason) == ("place", "cheapest_in_time")
    assert chosen(decision).pool == "silicon"
    cheapest = min(eligible(decision), key=lambda c: c.cost_usd or 0)
    assert cheapest.pool == "premium"
    assert (cheapest.chance or 0) < tight.target_chance <= (chosen(decision).chance or 0)


def test_the_best_chance_wins_where_nothing_is_in_time() -> None:
    hopeless = profile(deadline=NOW + 0.4)
    decision = decide_in(hopeless, a_situation(), NOW)
    assert (decision.action, decision.reason) == ("place", "best_chance")
    chances = [c.chance or 0 for c in eligible(decision)]
    assert chosen(decision).chance == max(chances)
    assert 0 < max(chances) < hopeless.target_chance


def test_a_lower_target_takes_the_cheaper_risk() -> None:
    def pool(target_chance: float) -> str:
        request = profile(tpot_s=0.0048, target_chance=target_chance)
        return chosen(decide_in(request, a_situation(), NOW)).pool

    assert (pool(0.5), pool(0.95)) == ("premium", "silicon")


def test_the_only_candidate_is_told_as_such() -> None:
    decision = decide_in(profile(pools=("silicon",)), a_situation(), NOW)
    assert (decision.action, decision.reason) == ("place", "only_candidate")
    assert [c.refused for c in decision.candidates].count(None) == 1


@pytest.mark.parametrize("request_", [profile(), bulk()])
def test_the_promise_is_the_chosen_candidates(request_: Profile) -> None:
    decision = decide_in(replace(request_, created_at=NOW - 2), a_situation(), NOW)
    first, promised = chosen(decision), decision.promised
    assert promised is not None
    assert first.refused is None
    assert (promised.cost_usd, promised.ttft_s, promised.finish_s, promised.chance) == (
        first.cost_usd, first.ttft_s, first.finish_s, first.chance
    )  # fmt: skip
    # Latencies count from created_at, the estimate from now.
    if decision.estimate is not None:
        assert promised.finish_s == pytest.approx(2 + decision.estimate.finish_s)


def test_time_already_lost_counts() -> None:
    fresh = decide_in(profile(), a_situation(), NOW)
    stale = decide_in(profile(created_at=NOW - 0.9, deadline=NOW + 59), a_situation(), NOW)
    late = decide_in(profile(created_at=NOW - 1.5, deadline=NOW + 58), a_situation(), NOW)
    assert (chosen(fresh).chance or 0) > (chosen(stale).chance or 0) > 0
    assert chosen(late).chance == 0.0
    assert late.action == "place"


def test_waiting_wins_for_work_that_can_wait_where_company_comes() -> None:
    where = observed(a_situation("premium", "silicon"), bulk(), 1.0)
    decision = decide_in(bulk(), where, NOW)
    assert (decision.action, decision.reason) == ("hold", "waiting_is_cheapest")
    assert chosen(decision).path == "hold"
    direct = [c for c in eligible(decision) if c.path == "direct"]
    assert len(direct) == 3
    # A decode step is paid by all who share it.
    assert all((chosen(decision).cost_usd or 0) < (c.cost_usd or 0) / 5 for c in direct)
    assert 0 < (chosen(decision).ttft_s or 0) <= bulk().window_s + 2
    assert decision.group is not None
    assert decision.option is None


def test_more_company_makes_waiting_cheaper_and_shorter() -> None:
    def hold(rate_per_s: float) -> Candidate:
        where = observed(a_situation("silicon"), bulk(), rate_per_s)
        return next(c for c in eligible(decide_in(bulk(), where, NOW)) if c.path == "hold")

    few, many = hold(1.0), hold(20.0)
    assert (few.cost_usd or 0) > (many.cost_usd or 0)
    # 31 others (members_max is 32) come in 31 s or in 1.5 s.
    assert few.ttft_s == pytest.approx(30, abs=3)
    assert many.ttft_s == pytest.approx(1.6, abs=0.6)


def test_waiting_without_company_buys_nothing() -> None:
    where = situation(
        some_options(), a_policy(POLICY.replace("rate_per_s: 1.0", "rate_per_s: 0.01"))
    )
    where.view.report(status("premium"))
    decision = decide_in(bulk(), where, NOW)
    assert (decision.action, chosen(decision).path) == ("place", "direct")
    hold = next(
        c
        for c in eligible(decision)
        if (c.path, c.model_variant) == ("hold", chosen(decision).model_variant)
    )
    assert hold.cost_usd == chosen(decision).cost_usd
    assert (hold.finish_s or 0) == pytest.approx((chosen(decision).finish_s or 0) + 30)


def test_waiting_loses_where_the_deadline_comes_first() -> None:
    where = observed(a_situation("premium", "silicon"), bulk(), 1.0)
    decision = decide_in(bulk(deadline=NOW + 10), where, NOW)
    assert (decision.action, chosen(decision).path) == ("place", "direct")
    holds = [c for c in eligible(decision) if c.path == "hold"]
    assert holds
    assert all((c.chance or 0) < 0.9 for c in holds)


def test_whoever_cannot_wait_is_not_made_to() -> None:
    where = observed(a_situation(), bulk(), 20.0)
    for request in (profile(), bulk(batchable=False)):
        decision = decide_in(request, where, NOW)
        assert decision.action == "place"
        assert {c.path for c in decision.candidates} == {"direct"}


def test_a_second_run_waits_wherever_it_can_and_may_go_to_what_has_drifted() -> None:
    where = a_situation()
    where.view.judged({"silicon": frozenset({"llama-fp8"})})
    check = QualityCheck(
        *("bulk", "llama-bf16", "exact", 0.1, 30.0, 3600.0), pool="silicon", variant="llama-fp8"
    )
    second = decide_in(second_run(bulk(), check, "judged", NOW), where, NOW)
    assert [(c.pool, c.path) for c in eligible(second)] == [("silicon", "hold")]
    own = decide_in(bulk(), where, NOW)
    assert {c.path for c in eligible(own)} == {"hold", "direct"}
    assert {c.refused for c in own.candidates if c.pool == "silicon"} == {"drifted"}
    only = decide_in(bulk(pools=("silicon",)), where, NOW)
    assert (only.action, only.reason) == ("hold", "drifted")


def test_a_pool_for_batches_only_is_waited_for() -> None:
    decision = decide_in(bulk(), a_situation("board"), NOW)
    assert decision.action == "hold"
    assert [c.path for c in eligible(decision)] == ["hold"]


@pytest.mark.parametrize("request_", [profile(), bulk()])
def test_a_fleet_without_workers_is_waited_for(request_: Profile) -> None:
    decision = decide_in(request_, nobody_lives(), NOW)
    assert (decision.action, decision.reason) == ("hold", "pool_unavailable")
    assert {c.refused for c in decision.candidates} <= {"pool_unavailable", "lane"}
    assert decision.group
    assert decision.promised is None


def test_whatever_lives_is_taken_before_what_may_come() -> None:
    decision = decide_in(profile(), a_situation("silicon"), NOW)
    assert decision.action == "place"
    assert chosen(decision).pool == "silicon"
    assert {c.pool: c.refused for c in decision.candidates}["premium"] == "pool_unavailable"


def test_a_request_that_only_dead_pools_may_serve_waits_for_them() -> None:
    decision = decide_in(profile(regions=("eu-west",)), a_situation("silicon"), NOW)
    assert (decision.action, decision.reason) == ("hold", "pool_unavailable")


def test_a_pool_is_told_by_its_variant_that_time_may_help() -> None:
    options = a_situation().options
    first, second, *others = options.by_pool
    refused = [(first, "circuit_open"), (first, "precision"), (second, "region")]
    rest = dict.fromkeys(others, "model_not_served")
    assert codes_by_pool(options, refused) == {first: "circuit_open", second: "region", **rest}


def test_a_pool_is_told_by_its_variant_that_came_furthest() -> None:
    options = a_situation().options
    pool, *others = options.by_pool
    rest = dict.fromkeys(others, "model_not_served")
    for codes in (("context_too_long", "quality"), ("quality", "context_too_long")):
        refused = [(pool, code) for code in codes]
        assert codes_by_pool(options, refused) == {pool: "context_too_long", **rest}


def test_a_pool_is_as_soon_free_as_its_first_worker_and_fails_only_with_all_of_them() -> None:
    def heard(**changes: Any) -> tuple[float, str | None]:
        where = a_situation("silicon")
        where.view.report(status("silicon", **{"instance": "1"} | changes))
        load = where.view.load("silicon")
        return load.backlog_s, load.obstacle("llama-fp8")

    failing = {"llama-fp8": VariantStatus(circuit="open")}
    assert heard(backlog_s=9.0, variants=failing) == (0.0, None)
    assert heard(instance="0", backlog_s=9.0, variants=failing) == (9.0, "circuit_open")
    assert heard(instance="0", variants={"other": VariantStatus(circuit="open")}) == (0.0, None)


@pytest.mark.parametrize("state", ["draining", "down"])
def test_a_worker_that_does_not_take_work_is_no_worker(state: Any) -> None:
    where = a_situation("silicon")
    where.view.report(status("silicon", state=state))
    assert decide_in(profile(), where, NOW).reason == "pool_unavailable"


def test_a_worker_that_falls_silent_is_dead_after_some_beats() -> None:
    where = a_situation("silicon")
    last = NOW + MISSED_BEATS_MAX * 5.0
    where.view.prune(last)
    assert decide_in(profile(), where, NOW).action == "place"
    seen = where.view.version
    where.view.prune(last + 0.1)
    assert decide_in(profile(), where, NOW).reason == "pool_unavailable"
    assert where.view.version > seen


def test_a_heartbeat_from_far_ahead_is_no_sign_of_life() -> None:
    where = a_situation("silicon")
    where.view.report(status("silicon", at=NOW + AHEAD_S_MAX))
    where.view.prune(NOW)
    assert decide_in(profile(), where, NOW).action == "place"
    where.view.report(status("silicon", at=NOW + 3 * 86_400.0))
    where.view.prune(NOW)
    assert decide_in(profile(), where, NOW).reason == "pool_unavailable"
    where.view.report(status("silicon", at=NOW + 1.0))
    where.view.prune(NOW + 1.0)
    assert decide_in(profile(), where, NOW + 1.0).action == "place"


def test_a_pool_that_the_fleet_does_not_have_changes_nothing() -> None:
    where = nobody_lives()
    where.view.report(status("stranger"))
    assert where.view.version == 0
    assert decide_in(profile(), where, NOW).reason == "pool_unavailable"


@pytest.mark.parametrize("late_s", [0.0, 12.3])
def test_a_deadline_that_has_passed_ends_the_request(late_s: float) -> None:
    decision = decide_in(profile(deadline=NOW - late_s), a_situation(), NOW)
    assert (decision.action, decision.reason) == ("expire", "deadline_passed")
    assert decision.message == f"the deadline passed {late_s} s before the request was routed"
    assert decision.candidates == ()
    assert decide_in(profile(deadline=NOW + 0.01), a_situation(), NOW).action == "place"


def test_a_pool_that_failed_is_not_tried_again() -> None:
    where = a_situation()
    first = chosen(decide_in(profile(), where, NOW)).pool
    again = profile(exclude_pools=(first,), attempt=2, fallbacks=(Fallback(first, "timeout"),))
    decision = decide_in(again, where, NOW)
    assert decision.action == "place"
    assert chosen(decision).pool == "silicon" != first
    refused = {c.refused for c in decision.candidates if c.pool == first}
    assert refused == {"pool_excluded"}
    last = decide_in(replace(again, exclude_pools=(first, "silicon"), attempt=3), where, NOW)
    assert (last.action, last.reason) == ("reject", "no_pool")
    assert last.refusals is not None
    assert last.refusals[first] == last.refusals["silicon"] == "pool_excluded"


def test_a_limit_of_cost_takes_candidates_out() -> None:
    where = a_situation()
    limit_usd = chosen(decide_in(profile(tpot_s=0.004), where, NOW)).cost_usd
    assert limit_usd is not None
    within = decide_in(profile(tpot_s=0.004, max_cost_usd=limit_usd), where, NOW)
    below = decide_in(profile(tpot_s=0.004, max_cost_usd=limit_usd * 0.99), where, NOW)
    assert chosen(within).pool == "silicon"
    assert chosen(below).pool == "premium"
    assert {c.refused for c in below.candidates if c.pool == "silicon"} == {"max_cost"}


def test_waiting_may_be_all_that_is_within_the_cost() -> None:
    where = observed(a_situation("premium", "silicon"), bulk(), 1.0)
    limit_usd = 2 * min(c.cost_usd or 0 for c in eligible(decide_in(bulk(), where, NOW)))
    decision = decide_in(bulk(max_cost_usd=limit_usd), where, NOW)
    assert decision.action == "hold"
    assert {c.path for c in eligible(decision)} == {"hold"}


def test_a_pool_that_often_fails_is_dearer_than_it_says() -> None:
    def pool(failure_rate: float, weight: float = 1.0) -> str:
        text = TWINS.replace("  right:", f"    failure_rate: {failure_rate}\n  right:")
        policy = a_policy(POLICY + f"retry_cost_weight: {weight}\n")
        where = situation(some_options(text), policy)
        for name in ("left", "right"):
            where.view.report(status(name))
        return chosen(decide_in(profile(), where, NOW)).pool

    assert pool(0.0) == "left"
    assert pool(0.01) == "right"
    assert pool(0.5, weight=0.0) == "left"


def test_equal_pools_are_told_apart_by_name_wherever_they_stand() -> None:
    swapped = TWINS.replace("left:", "tmp:").replace("right:", "left:").replace("tmp:", "right:")
    for fleet in (TWINS, swapped):
        for request in (profile(), bulk()):
            assert chosen(decide_in(request, a_situation(fleet=fleet), NOW)).pool == "left"


def test_a_burst_spreads_over_the_pools() -> None:
    where = a_situation(fleet=TWINS)
    pools: Counter[str] = Counter()
    for number in range(64):
        decision = decide_in(profile(id=f"r{number}", tpot_s=None), where, NOW)
        assert decision.option is not None
        assert decision.estimate is not None
        pools[decision.option.pool] += 1
        where.view.add_sent(decision.option, decision.estimate.device_s)
    assert set(pools) == {"left", "right"}
    # 16 sequences at a time each: neither takes the whole burst while the other stands idle.
    assert min(pools.values()) >= 16


def test_a_heartbeat_takes_the_place_of_what_was_sent() -> None:
    where = a_situation("silicon")
    option = where.options.of("silicon", "llama-fp8")
    idle = decide_in(profile(), where, NOW)
    where.view.add_sent(option, 5.0, 10)
    busy = decide_in(profile(), where, NOW)
    assert (chosen(busy).ttft_s or 0) >= (chosen(idle).ttft_s or 0) + 5
    where.view.report(status("silicon", at=NOW + 1))
    assert decide_in(profile(), where, NOW) == idle


def test_sent_work_is_shared_by_the_workers_and_replicas_of_a_pool() -> None:
    where = a_situation("premium")
    where.view.report(status("premium", instance="1"))
    where.view.add_sent(where.options.of("premium", "llama-fp8"), 8.0)
    assert where.view.load("premium").backlog_s == pytest.approx(8.0 / (2 * 2))
    before = where.view.load("board").backlog_s
    where.view.add_sent(where.options.of("board", "llama-int8"), 8.0)
    assert where.view.load("board").backlog_s == before == 0.0


@pytest.mark.parametrize(
    "load",
    [
        {"backlog_s": 3.0},
        {"variants": {"llama-fp8": VariantStatus(running=32)}},
        {"variants": {"llama-fp8": VariantStatus(queued=400)}},
        {"variants": {"vector-bf16": VariantStatus(running=64)}},
        {"variants": {"llama-fp8": VariantStatus(speed=0.5)}},
    ],
)
def test_load_makes_a_pool_slower(load: dict[str, Any]) -> None:
    where = a_situation("silicon")
    idle = chosen(decide_in(profile(), where, NOW))
    where.view.report(status("silicon", **load))
    busy = chosen(decide_in(profile(), where, NOW))
    assert (busy.finish_s or 0) > (idle.finish_s or 0)


def test_measured_speed_scales_cost_and_time() -> None:
    where = a_situation("silicon")
    option = where.options.of("silicon", "llama-fp8")
    slow = estimate(profile(), where.view.standing(option), transport_s=0)
    where.view.report(status("silicon", variants={"llama-fp8": VariantStatus(speed=2.0)}))
    fast = estimate(profile(), where.view.standing(option), transport_s=0)
    assert fast.cost_usd == pytest.approx(slow.cost_usd / 2)
    assert fast.finish_s == pytest.approx(slow.finish_s / 2)


@pytest.mark.parametrize("speed", [0.0, -1.0])
def test_a_speed_that_cannot_be_is_not_believed(speed: float) -> None:
    where = a_situation("silicon")
    idle = decide_in(profile(), where, NOW)
    where.view.report(status("silicon", variants={"llama-fp8": VariantStatus(speed=speed)}))
    assert decide_in(profile(), where, NOW) == idle


def test_the_order_in_which_workers_are_heard_makes_no_difference() -> None:
    options = some_options()
    beats = [
        status("silicon", instance=str(n), variants={"llama-fp8": VariantStatus(n, n, 0.3 + n / 7)})
        for n in range(4)
    ]
    one, two = FleetView(options), FleetView(options)
    for each in beats:
        one.report(each)
    for each in reversed(beats):
        two.report(each)
    assert one.load("silicon") == two.load("silicon")
    # Their mean is in the log, as each worker's own is.
    mean = prod(0.3 + n / 7 for n in range(4)) ** 0.25
    assert one.load("silicon").speed_by_variant["llama-fp8"] == pytest.approx(mean, abs=1e-6)


def test_an_assumed_fleet_is_alive_and_idle() -> None:
    where = situation(some_options(), a_policy())
    view = idle_view(where.options, NOW)
    assert set(view.loads()) == {"premium", "silicon", "board", "small"}
    assert decide_in(profile(), replace(where, view=view), NOW) == decide_in(
        profile(), a_situation(), NOW
    )


def test_a_chance_falls_from_one_to_zero_about_the_limit() -> None:
    where = a_situation("premium")
    found = estimate(
        profile(),
        where.view.standing(where.options.of("premium", "llama-fp8")),
        transport_s=0.05,
    )

    def of(limit_s: float, **changes: Any) -> float:
        request = profile(**{"ttft_s": None, "tpot_s": None, "deadline": NOW + limit_s} | changes)
        return chance(request, found, elapsed_s=0, spread=0.35)

    assert of(found.finish_s) == pytest.approx(0.5)
    assert of(found.finish_s * 2) == pytest.approx(0.976, abs=0.001)
    assert of(found.finish_s / 2) == pytest.approx(0.024, abs=0.001)
    assert of(0) == of(-1) == 0.0
    # The least of the three limits counts.
    assert of(60, ttft_s=found.ttft_s) == pytest.approx(0.5)
    assert of(60, tpot_s=found.tpot_s) == pytest.approx(0.5)
    assert of(60, tpot_s=found.tpot_s, output_tokens=1) > 0.99


def test_a_request_for_embeddings_has_no_decode() -> None:
    text = profile(model="vector", operation="embeddings", input_tokens=300, output_tokens=0)
    decision = decide_in(text, a_situation(), NOW)
    assert decision.action == "place"
    assert decision.estimate is not None
    assert decision.estimate.tpot_s == 0.0
    assert decision.estimate.finish_s == decision.estimate.ttft_s
    assert chosen(decision).pool == "small"


def test_free_hardware_is_taken_first() -> None:
    free = FLEET.replace("usd_per_hour: 9.0", "usd_per_hour: 0")
    decision = decide_in(profile(), a_situation(fleet=free), NOW)
    assert (chosen(decision).pool, chosen(decision).cost_usd) == ("silicon", 0.0)


def test_candidates_are_a_sequence_of_records_that_is_made_once() -> None:
    decision = decide_in(profile(), a_situation(), NOW)
    found = decision.candidates
    assert isinstance(found, Candidates)
    assert list(found) == [found[at] for at in range(len(found))]
    assert found[0] is found[0]
    assert found[0].refused is None
    assert decision.promised is not None
    assert found[0].chance == decision.promised.chance
    assert found == tuple(found)
    assert hash(found) == hash(tuple(found))
    assert found[1:] == tuple(found)[1:]


def test_a_device_that_nobody_measured_promises_less_surely() -> None:
    options = some_options()
    sure = decide_in(profile(), a_situation(options=options), NOW)
    wide = {
        model: tuple(replace(each, error=1.0) for each in served)
        for model, served in options.by_model.items()
    }
    pools = {
        pool: tuple(replace(each, error=1.0) for each in served)
        for pool, served in options.by_pool.items()
    }
    where = a_situation(options=replace(options, by_model=wide, by_pool=pools))
    unsure = decide_in(profile(), where, NOW)
    before = {(c.pool, c.model_variant): c for c in eligible(sure)}
    for each in eligible(unsure):
        assert each.cost_usd == before[each.pool, each.model_variant].cost_usd
        assert 0.5 < (each.chance or 0) < (before[each.pool, each.model_variant].chance or 0)
    assert len(eligible(unsure)) == len(before) > 2
