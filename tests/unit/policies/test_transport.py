"""What requests take to a pool is measured by its workers, and part of its promises."""

from dataclasses import replace

import pytest
from evidence_cases import inputs_as_recorded
from policy_cases import NOW, a_policy, profile, some_options, status

from policies import FleetView, Inputs, decide
from policies.fleet_state.candidate_load import PoolLoad, standing_of
from policies.learning.transport import LONGEST_S, Transport
from policies.scoring.estimate import estimate
from topics import PoolStatus, decode, encode

OPTION = some_options().by_pool["premium"][0]


def test_it_is_what_most_requests_take() -> None:
    transport = Transport()
    assert (transport.usual_s, transport.known) == (None, 0.0)
    for number in range(200):
        transport.learn(0.3 if number % 20 == 10 else 0.02)
    assert transport.usual_s == pytest.approx(0.02, rel=0.25)
    assert transport.known > 0.99


def test_a_lane_that_nobody_read_for_long_keeps_nothing_away() -> None:
    transport = Transport()
    for took_s in (-0.1, *[600.0] * 500):
        transport.learn(took_s)
    assert transport.usual_s == pytest.approx(LONGEST_S, rel=0.01)


@pytest.mark.parametrize("known", [0.0, 0.5, 1.0])
def test_as_far_as_it_was_measured_it_stands_for_the_policys(known: float) -> None:
    here = standing_of(OPTION, PoolLoad(workers=1, transport=(0.02, known)))
    plain = standing_of(OPTION, PoolLoad(workers=1))
    found, before = (estimate(profile(), each, 0.05) for each in (here, plain))
    assert before.ttft_s - found.ttft_s == pytest.approx(known * 0.03)
    assert found.tpot_s == before.tpot_s


def test_a_view_has_what_its_workers_told_by_how_much_each_measured() -> None:
    view = FleetView(some_options())
    assert view.load("premium").transport is None
    for name, usual_s, known in (("0", 0.02, 0.9), ("1", None, 0.0), ("2", float("inf"), 1.0)):
        told = status("premium", instance=name, transport_s=usual_s, transport_known=known)
        view.report(told if name == "2" else decode(PoolStatus, encode(told)))
    assert view.load("premium").transport == (0.02, 0.9)
    view.report(status("premium", instance="1", transport_s=0.08, transport_known=0.9))
    assert view.load("premium").transport == (pytest.approx(0.04), 1.0)


def test_a_decision_is_the_same_from_its_record() -> None:
    options, policy = some_options(), a_policy()
    load = PoolLoad(workers=1, transport=(0.3, 0.8))
    inputs = Inputs({"premium": load, "silicon": PoolLoad(workers=1)}, 0.0)
    asked = replace(profile(), ttft_s=0.35)
    found = decide(asked, inputs, options, policy, NOW)
    again = inputs_as_recorded(asked, inputs, found, NOW)
    assert again == inputs
    assert decide(asked, again, options, policy, NOW) == found
