"""Arrival rates: what is learned of a group, what is forgotten, and what bounds the memory."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import NOW, POLICY, PROPERTY, a_policy, some_options

from policies import Arrivals, situation
from policies.fleet_state.arrivals import FORGET, GROUPS_MAX, MEMORY_S

PRIOR = 0.5


def arrivals(rate_per_s: float, during_s: float, start: float = NOW) -> tuple[Arrivals, float]:
    """What was learned of a group with a steady rate, and when the last request came."""
    found = Arrivals(PRIOR)
    now = start
    for _ in range(round(rate_per_s * during_s)):
        now += 1 / rate_per_s
        found.observe("g", now)
    return found, now


def test_an_unknown_group_has_the_prior_rate() -> None:
    found = Arrivals(PRIOR)
    assert found.rate_per_s("g", NOW) == PRIOR
    found.observe("other", NOW)
    assert found.rate_per_s("g", NOW) == PRIOR


@pytest.mark.parametrize("rate_per_s", [0.2, 2.0, 50.0])
def test_a_steady_rate_is_learned(rate_per_s: float) -> None:
    found, now = arrivals(rate_per_s, 10 * MEMORY_S)
    assert found.rate_per_s("g", now) == pytest.approx(rate_per_s, rel=0.1, abs=0.02)


def test_a_group_that_falls_silent_fades() -> None:
    found, now = arrivals(10.0, 5 * MEMORY_S)
    full = found.rate_per_s("g", now)
    assert found.rate_per_s("g", now + MEMORY_S) == pytest.approx(full / math.e)
    assert found.rate_per_s("g", now + 5 * MEMORY_S) < full / 100


def test_a_forgotten_group_starts_from_the_prior_again() -> None:
    found, now = arrivals(10.0, MEMORY_S)
    later = now + FORGET * MEMORY_S + 1
    assert found.rate_per_s("g", later) == PRIOR
    found.observe("g", later)
    assert found.rate_per_s("g", later) == pytest.approx(PRIOR + 1 / MEMORY_S)


def test_groups_are_counted_apart() -> None:
    found = Arrivals(PRIOR)
    for second in range(100):
        found.observe("busy", NOW + second)
        if second % 20 == 0:
            found.observe("quiet", NOW + second)
    now = NOW + 100
    assert found.rate_per_s("busy", now) > 5 * found.rate_per_s("quiet", now)


def test_the_least_recently_seen_group_is_dropped_first() -> None:
    found = Arrivals(PRIOR)
    for number in range(GROUPS_MAX):
        found.observe(f"g{number}", NOW)
    found.observe("g0", NOW)
    found.observe("one more", NOW)
    assert found.rate_per_s("g1", NOW) == PRIOR
    assert found.rate_per_s("g0", NOW) > PRIOR
    assert found.rate_per_s("one more", NOW) > PRIOR


def test_one_that_is_alone_is_no_company_to_itself() -> None:
    found = Arrivals(1e-4)
    found.observe("g", NOW)
    assert found.rate_per_s("g", NOW) > 1 / MEMORY_S
    for after_s in (0.0, 1.0, 3 * MEMORY_S):
        assert found.rate_besides("g", NOW, NOW + after_s) <= 1.01e-4
    found.observe("g", NOW + 1)
    assert found.rate_besides("g", NOW, NOW + 1) == pytest.approx(1 / MEMORY_S, rel=0.01)


def test_one_of_several_routers_expects_what_all_of_them_see() -> None:
    alone, one_of_four = Arrivals(1e-4), Arrivals(1e-4)
    one_of_four.see_part(0.25)
    for number in range(400):
        alone.observe("g", NOW + number / 4)
        if number % 4 == 0:
            one_of_four.observe("g", NOW + number / 4)
    now = NOW + 100
    assert one_of_four.rate_per_s("g", now) == pytest.approx(alone.rate_per_s("g", now), rel=0.05)
    assert alone.rate_per_s("g", now) == pytest.approx(4.0, rel=0.1)


def test_one_that_is_alone_is_none_to_itself_at_one_of_several_routers_either() -> None:
    found = Arrivals(1e-4)
    found.see_part(0.25)
    found.observe("g", NOW)
    assert found.rate_besides("g", NOW, NOW + 1) <= 1.01e-4


def test_a_router_that_gives_all_partitions_away_keeps_its_measure() -> None:
    found = Arrivals(1e-4)
    found.see_part(0.5)
    found.see_part(0.0)
    found.observe("g", NOW)
    assert found.rate_per_s("g", NOW) == pytest.approx(2 / MEMORY_S, rel=0.01)


def test_what_is_held_tells_of_arrivals_as_if_they_had_been_seen() -> None:
    times = [NOW, NOW + 5, NOW + 2, NOW + 40]
    recalled, observed = Arrivals(PRIOR), Arrivals(PRIOR)
    recalled.recall("g", times)
    for at in sorted(times):
        observed.observe("g", at)
    assert recalled.rate_per_s("g", NOW + 50) == pytest.approx(observed.rate_per_s("g", NOW + 50))
    before = observed.rate_per_s("g", NOW + 50)
    observed.recall("g", times * 2)
    assert observed.rate_per_s("g", NOW + 50) == before


def test_a_policy_whose_times_are_divided_learns_as_much_sooner() -> None:
    options, policy = some_options(), a_policy()
    rates = []
    for speed in (1.0, 10.0):
        found = situation(options, policy.faster(speed)).arrivals
        for number in range(20):
            found.observe("g", NOW + number / speed)
        rates.append(found.rate_per_s("g", NOW + 20 / speed) / speed)
    assert rates[0] == pytest.approx(rates[1])


def test_rates_under_another_policy_keep_what_was_seen() -> None:
    here = situation(some_options(), a_policy())
    for _ in range(100):
        here.arrivals.observe("g", NOW)
    then = here.under(here.options, a_policy(POLICY.replace("window_s: 30", "window_s: 12")))
    assert then.arrivals.rate_per_s("g", NOW) == here.arrivals.rate_per_s("g", NOW)
    assert then.arrivals.rate_per_s("g", NOW + 9) < here.arrivals.rate_per_s("g", NOW + 9)


@settings(PROPERTY)
@given(gaps=st.lists(st.floats(0, 200), max_size=30), then_s=st.floats(0, 200))
def test_no_more_company_is_expected_than_was_seen(gaps: list[float], then_s: float) -> None:
    found, now = Arrivals(1e-4), NOW
    times = []
    for gap in gaps:
        now += gap
        # Of those before it.
        assert found.rate_per_s("g", now) * MEMORY_S <= len(times) + 0.01
        found.observe("g", now)
        times.append(now)
    now += then_s
    for arrived in times:
        besides = found.rate_besides("g", arrived, now)
        assert 0 <= besides <= found.rate_per_s("g", now)
        assert besides * MEMORY_S <= len(times) - 1 + 0.01


@settings(PROPERTY)
@given(steps=st.lists(st.floats(-1000, 1000), min_size=1, max_size=20))
def test_a_clock_that_steps_makes_no_rate_absurd(steps: list[float]) -> None:
    found = Arrivals(PRIOR)
    now = NOW
    # Sums of floats may end a little above.
    most = PRIOR + len(steps) / MEMORY_S + 1e-9
    for step in steps:
        now += step
        found.observe("g", now)
        rate = found.rate_per_s("g", now)
        assert 0 < rate <= most
    assert found.rate_per_s("g", now - 1e6) <= most
