"""Arrival rates: what is learned of a group, what is forgotten, and what bounds the memory."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import NOW, PROPERTY

from policies import Arrivals
from policies.fleet_state.arrivals import FORGET_S, GROUPS_MAX, MEMORY_S

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
    later = now + FORGET_S + 1
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
