"""Admission: rates over any order of arrival, shares under load, and turns in the hold."""

from collections import Counter
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import FLEET, NOW, PROPERTY

from policies import (
    Placer,
    Policy,
    Rates,
    Shares,
    Situation,
    compile_options,
    idle_view,
    parse_fleet,
    situation,
    tag,
)
from policies.config.policy import TenantLimits
from policies.placement.admission import TENANTS_MAX
from streams.config.declarations import load_policy
from topics import InferenceRequest, Profile

LIMITED = TenantLimits(rate_per_s=5)


def a_policy(**tenants: TenantLimits) -> Policy:
    return load_policy(None).model_copy(update={"tenants": tenants})


def admitted(rates: Rates, times: list[float], tenant: str = "acme", part: float = 1.0) -> int:
    return sum(rates.wait_s(tenant, NOW + at, part) == 0 for at in times)


def test_a_tenant_without_a_rate_has_no_limit() -> None:
    assert admitted(Rates(a_policy()), [0.0] * 10_000) == 10_000


@PROPERTY
@given(order=st.permutations(range(60)))
def test_a_backlog_read_in_any_order_is_admitted_as_it_came(order: list[int]) -> None:
    """A minute at the rate, read at once after an outage, partition by partition."""
    rates = Rates(a_policy(acme=LIMITED))
    times = [second + fifth / 5 for second in order for fifth in range(5)]
    assert admitted(rates, times) == len(times)


def test_what_exceeds_the_rate_is_told_when_to_come_again() -> None:
    rates = Rates(a_policy(acme=LIMITED))
    assert admitted(rates, [0.0] * 500) == 50
    wait_s = rates.wait_s("acme", NOW, 1.0)
    assert 0 < wait_s <= 10
    assert rates.wait_s("acme", NOW + wait_s, 1.0) == 0
    assert rates.wait_s("other", NOW, 1.0) == 0


def test_a_router_grants_its_part_of_the_rate() -> None:
    policy = a_policy(acme=LIMITED)
    times = [n / 100 for n in range(2000)]
    assert sum(admitted(Rates(policy), times, part=0.25) for _ in range(4)) in range(96, 105)


def test_a_rate_below_one_in_a_window_admits_one_after_the_other() -> None:
    rates = Rates(a_policy(acme=TenantLimits(rate_per_s=0.01)))
    assert admitted(rates, [float(n) for n in range(1000)]) in {10, 11}


def test_tenants_that_a_client_invents_take_no_memory_for_good() -> None:
    policy = load_policy(None).model_copy(update={"default_tenant": LIMITED})
    rates, shares = Rates(policy), Shares(policy)
    for n in range(TENANTS_MAX + 100):
        rates.wait_s(f"t{n}", NOW, 1.0)
        shares.spend(f"t{n}", 1e-6, NOW)
    assert len(rates._counts) == len(shares._spent) == TENANTS_MAX


def test_a_share_is_exceeded_by_the_one_that_had_more_than_the_others() -> None:
    shares = Shares(a_policy(large=TenantLimits(share=10)))
    shares.spend("alone", 100.0, NOW)
    assert not shares.is_exceeded("alone", NOW)
    shares.spend("large", 100.0, NOW + 2)
    assert shares.is_exceeded("alone", NOW + 2)
    assert not shares.is_exceeded("large", NOW + 2), "it has had as much, with ten times the share"
    assert not shares.is_exceeded("new", NOW + 2)
    shares.spend("large", 0.1, NOW + 100)
    assert not shares.is_exceeded("alone", NOW + 100), "what was long ago counts no more"


@pytest.fixture
def crowded() -> tuple[Situation, Shares]:
    policy = a_policy()
    options = compile_options(parse_fleet(FLEET, "fleet.yaml"))
    bare = situation(options, policy)
    view = idle_view(options, NOW)
    for load in view.loads().values():
        load.backlog_s = 60.0
    return Situation(options, policy, view, bare.arrivals), Shares(policy)


def profile_of(policy: Policy, request_id: str, tenant: str, **more: object) -> Profile:
    request = InferenceRequest(
        id=request_id, tenant=tenant, model="llama", body={"max_tokens": 20}, **more
    )
    return tag(request, policy, received_at=NOW, now=NOW, ingest_partition=0).profile


def test_of_two_tenants_only_the_noisy_one_is_turned_away(
    crowded: tuple[Situation, Shares],
) -> None:
    """A hundred requests of one for each of the other, with a queue that is too long for all."""
    situation, shares = crowded
    actions: Counter[tuple[str, str, str]] = Counter()
    for n in range(3030):
        tenant = "quiet" if n % 101 == 0 else "noisy"
        now = NOW + n / 1000
        profile = profile_of(situation.policy, f"r{n}", tenant, created_at=now)
        decision = Placer(situation, shares).decide(profile, now).decision
        actions[tenant, decision.action, decision.reason] += 1
        if decision.action == "place":
            assert decision.promised is not None
            shares.spend(tenant, decision.promised.cost_usd, now)
    turned_away = actions["noisy", "reject", "over_share"]
    assert actions["quiet", "place", "best_chance"] == 30
    assert turned_away > 0.9 * 3000
    assert sum(n for (tenant, _, _), n in actions.items() if tenant == "noisy") == 3000


def test_nobody_is_turned_away_from_an_idle_fleet_or_at_a_later_attempt(
    crowded: tuple[Situation, Shares],
) -> None:
    situation, shares = crowded
    shares.spend("noisy", 1.0, NOW)
    shares.spend("quiet", 0.01, NOW)
    idle = replace(situation, view=idle_view(situation.options, NOW))

    def action(where: Situation, profile: Profile) -> str:
        return Placer(where, shares).decide(profile, NOW).decision.action

    first = profile_of(situation.policy, "r", "noisy")
    assert action(situation, first) == "reject"
    assert action(situation, replace(first, attempt=2)) == "place"
    assert action(idle, first) == "place"
    # What no fleet could do in time is no matter of shares.
    hopeless = profile_of(situation.policy, "h", "noisy", slo={"ttft_ms": 0.001})
    assert action(situation, hopeless) == "place"
