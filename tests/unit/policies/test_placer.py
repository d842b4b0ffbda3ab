"""The placer counts each decision: arrivals, load, sessions and shares."""

from dataclasses import replace

import pytest
from decisions import decide_in, group_there
from policy_cases import NOW, POLICY, a_situation, bulk, nobody_lives, profile

from policies import Decision, Member, Placer, Release, find_target
from policies.placement.admission import Shares

ALONE = "prior_rate_per_s: 0.0001"


def test_it_decides_by_the_inputs_that_it_returns() -> None:
    where, request = a_situation(), profile(session="s")
    expected = decide_in(request, where, NOW)
    decision, inputs = Placer(where).decide(request, NOW)
    assert decision == expected
    assert set(inputs.loads) == {o.pool for o in where.options.by_model[request.model]}


def test_a_held_request_counts_as_an_arrival_of_its_group() -> None:
    where = nobody_lives()
    before = where.arrivals.rate_per_s(group_there(bulk(), where), NOW)
    decision, _ = Placer(where).decide(bulk(), NOW)
    assert decision.group is not None
    assert where.arrivals.rate_per_s(decision.group, NOW) > before


def test_one_that_goes_at_once_is_company_too_if_it_may_wait() -> None:
    where = a_situation("premium", policy=POLICY.replace("prior_rate_per_s: 1.0", ALONE))
    waits, goes = bulk(), profile()
    for each in (waits, goes):
        decision, _ = Placer(where).decide(each, NOW)
        assert decision.action == "place"
    rates = [where.arrivals.rate_per_s(group_there(each, where), NOW) for each in (waits, goes)]
    assert rates[0] > 10 * rates[1]


def test_a_placed_request_counts_for_its_pool_its_session_and_its_tenant() -> None:
    where, request = a_situation(), profile(session="s", tenant="t")
    shares = Shares(where.policy)
    placer = Placer(where, shares)
    decision, _ = placer.decide(request, NOW)
    assert decision.option is not None
    before = where.view.standing(decision.option).running
    placer.count_placed(request, decision, NOW)
    assert where.view.standing(decision.option).running == before + 1
    assert where.view.sessions.credit(replace(request, id="next"), NOW) is not None
    assert shares._spent.keys() == {"t"}


def test_a_release_counts_for_its_pool_member_by_member() -> None:
    where = a_situation("board")
    group = group_there(bulk(), where)
    members = tuple(Member(bulk(id=f"b{n}"), group, NOW, n) for n in range(3))
    placer = Placer(where)
    target = placer.target(members, NOW)
    assert target is not None
    release = Release(members, target, "window", 1.0, members, 3)
    placer.count_released(release, NOW)
    load, option = where.view.load("board"), target.option
    assert where.view.standing(option).running == 3
    assert load.backlog_s == pytest.approx(3 * target.estimate.device_s / option.replicas)
    places = option.kv_capacity_tokens * option.replicas
    assert load.kv_usage == pytest.approx(release.tokens / places)


def test_nothing_is_counted_of_a_decision_that_places_nothing() -> None:
    with pytest.raises(ValueError, match="places nothing"):
        Placer(a_situation()).count_placed(profile(), Decision("hold", (), "r"), NOW)


def test_it_goes_on_in_another_situation_with_its_policy() -> None:
    first, second = a_situation(), a_situation()
    shares = Shares(first.policy)
    placer = Placer(first, shares)
    placer.take(second)
    assert placer.situation is second
    assert shares.policy is second.policy


def test_a_target_is_that_of_the_situation() -> None:
    where = a_situation()
    group = group_there(bulk(), where)
    members = [Member(bulk(id=f"b{n}"), group, NOW - 90 * n, n) for n in range(3)]
    found = Placer(where).target(members, NOW)
    # The first that came made the window; the others are company.
    rate_per_s = where.arrivals.rate_besides(group, NOW - 180, NOW)
    assert rate_per_s != where.arrivals.rate_besides(group, NOW, NOW)
    loads, options, policy = where.view.loads(), where.options, where.policy
    assert found is not None
    assert found == find_target(members, loads, rate_per_s, options, policy, NOW)
