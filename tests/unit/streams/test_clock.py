"""The clock of a process, and how it is set by the broker's."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import PROPERTY
from stream_cases import START, FakeClock

from streams.engine.clock import TOLERANCE_S, BrokerClock


def clock_at(machine_s: float) -> tuple[FakeClock, BrokerClock]:
    machine = FakeClock()
    machine.at = machine_s
    return machine, BrokerClock(machine)


@PROPERTY
@given(
    ahead_s=st.floats(-100.0, 100.0),
    there_s=st.floats(0.0, 5.0),
    back_s=st.floats(0.0, 5.0),
    later_s=st.floats(0.0, 0.01),
)
def test_what_the_broker_says_sets_a_clock_as_well_as_can_be_known(
    ahead_s: float, there_s: float, back_s: float, later_s: float
) -> None:
    """Whatever the way there and back takes; a quick answer later leaves no doubt."""
    machine, clock = clock_at(START + ahead_s)
    clock.told(START + there_s, START + ahead_s, START + ahead_s + there_s + back_s)
    error_s = abs(clock.now() - START)
    assert error_s <= max(there_s, back_s) + TOLERANCE_S + 1e-6
    assert error_s <= abs(ahead_s) + 1e-6, "it is never further from the broker's than before"
    clock.told(START, START + ahead_s - later_s, START + ahead_s + later_s)
    assert abs(clock.now() - START) <= TOLERANCE_S + later_s + 1e-6
    machine.at += 5
    assert abs(clock.now() - START - 5) <= TOLERANCE_S + later_s + 1e-6


@pytest.mark.parametrize("ahead_s", [0.0, 0.08, -0.08])
def test_a_clock_that_is_kept_is_left_alone(ahead_s: float) -> None:
    _, clock = clock_at(START + ahead_s)
    assert not clock.told(START, START + ahead_s - 0.01, START + ahead_s + 0.01)
    assert clock.now() == START + ahead_s


@pytest.mark.parametrize(("ahead_s", "told"), [(60.0, "60.0 s ahead of"), (-60.0, "60.0 s behind")])
def test_a_clock_that_is_moved_is_told_of_once(
    ahead_s: float, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    _, clock = clock_at(START + ahead_s)
    with caplog.at_level(logging.WARNING):
        assert [clock.told(START, START + ahead_s, START + ahead_s) for _ in range(3)] == [
            *(True, False, False)
        ]
    (line,) = caplog.messages
    assert told in line


def test_a_clock_that_is_put_right_again_is_followed() -> None:
    machine, clock = clock_at(START + 60)
    assert clock.told(START, START + 60, START + 60)
    machine.at = START
    assert clock.told(START, START, START)
    assert clock.now() == START


def test_an_answer_while_the_machine_was_set_back_tells_nothing() -> None:
    _, clock = clock_at(START)
    assert not clock.told(START, START + 50, START - 50)
    assert clock.now() == START
