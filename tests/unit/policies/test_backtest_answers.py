"""Requests of several answers in a backtest: each is written, charged for, and held to limits."""

from typing import Any

import pytest
from backtest_cases import asked
from stream_cases import make_fleet, make_options, make_policy

from policies import compile_options
from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.workload import profiles_of
from shunter.backtest.bound_work import volume_bound
from shunter.backtest.demand import Demand
from shunter.backtest.suite import Setting, run_one, shunter

ONLY = {"pools": ["premium-eu"]}
OPTION = make_options().of("premium-eu", "yard-8b-fp8")


def outcome(
    output_tokens: int, body: dict[str, Any], reality: Reality | None = None, **constraints: Any
) -> tuple[ReplayOutcome, Setting]:
    arrivals = [
        asked(0, 0.0, output_tokens=output_tokens, body=body, constraints=ONLY | constraints),
    ]
    setting = Setting(arrivals, make_fleet(), make_policy(), reality or Reality())
    options = compile_options(setting.fleet)
    found = run_one("shunter", setting, options, shunter(setting, options))
    assert found.scores["constraint_violations"] == 0
    return found.run.outcomes[0], setting


def test_replies_are_written_together_and_charged_each() -> None:
    one, _ = outcome(100, {})
    many, setting = outcome(1000, {"n": 10})
    assert (one.tokens, many.tokens) == (400, 1300)
    assert one.finished_s is not None
    assert one.started_s is not None
    assert many.finished_s is not None
    assert many.started_s is not None
    # OPTION runs four at a time.
    assert OPTION.max_batch == 4
    alone_s, together_s = one.finished_s - one.started_s, many.finished_s - many.started_s
    assert 2.5 < together_s / alone_s < 4
    assert one.tpot_s is not None
    assert many.tpot_s == pytest.approx(
        (many.finished_s - (many.first_token_s or 0.0)) / 99, rel=1e-9
    )
    assert 2 * one.cost_usd < many.cost_usd < 10 * one.cost_usd
    assert many.promised is not None
    # Alone, its last round has places to spare.
    assert many.promised.cost_usd == pytest.approx(many.cost_usd * 2.5 / 3, rel=0.05)
    assert many.promised.finish_s == pytest.approx(many.finished_s, rel=0.1)
    (profile,) = profiles_of(setting.arrivals, setting.fleet, setting.policy)
    demand = Demand.of(profile, 1000, 0.0)
    assert (demand.input_tokens, demand.output_tokens) == (300, 100)
    assert 0 < volume_bound([demand], compile_options(setting.fleet)) <= many.cost_usd


def test_a_limit_of_cost_is_held_against_all_answers() -> None:
    one, _ = outcome(100, {})
    assert outcome(100, {}, max_cost_usd=3 * one.cost_usd)[0].status == "completed"
    refused, _ = outcome(10_000, {"n": 100}, max_cost_usd=3 * one.cost_usd)
    assert (refused.status, refused.sends) == ("rejected", [])


def test_a_try_of_several_answers_that_fails_is_charged_and_made_again() -> None:
    one, _ = outcome(1000, {"n": 10})
    again, _ = outcome(1000, {"n": 10}, Reality(failure_rate=0.7, seed=3))
    assert again.tries > 1
    assert again.cost_usd > one.cost_usd
