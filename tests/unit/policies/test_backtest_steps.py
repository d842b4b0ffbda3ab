"""The backtest takes a request through the steps that the router takes it through."""

import pytest
from backtest_cases import asked
from stream_cases import make_fleet, make_policy

from policies import Policy, compile_options
from policies.backtest.fault_model import Outage, Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.workload import Arrival
from shunter.backtest.suite import Setting, run_one, runs, shunter
from shunter.console import UserError


def outcomes(
    arrivals: list[Arrival], reality: Reality | None = None, policy: Policy | None = None
) -> list[ReplayOutcome]:
    setting = Setting(arrivals, make_fleet(), policy or make_policy(), reality or Reality())
    options = compile_options(setting.fleet)
    return run_one("shunter", setting, options, shunter(setting, options)).run.outcomes


def test_what_the_client_says_of_its_reply_counts_for_more_than_what_was_learned() -> None:
    before = [asked(row, row * 5.0) for row in range(30)]
    last = (
        asked(30, 200.0),
        asked(31, 210.0, hints={"output_tokens": 30}),
        asked(32, 220.0, body={"max_tokens": 12}),
        asked(33, 230.0, body={"max_tokens": 5000}),
    )
    first, *_, plain, hinted, limited, loose = outcomes([*before, *last])
    assert (first.profile.output_tokens, first.profile.output_tokens_high) == (100, None)
    assert plain.profile.output_tokens == 200
    assert plain.profile.output_tokens_high is not None
    assert (hinted.profile.output_tokens, hinted.profile.output_tokens_high) == (30, None)
    assert (limited.profile.output_tokens, limited.profile.output_tokens_high) == (12, 12)
    assert loose.profile.output_tokens == 200


def test_a_pool_that_failed_is_tried_again_where_there_is_no_other() -> None:
    only = {"pools": ["premium-eu"]}
    arrivals = [asked(row, row * 5.0, constraints=only) for row in range(60)]
    found = outcomes(arrivals, Reality(failure_rate=0.3, seed=1))
    again = [outcome for outcome in found if outcome.tries > 1]
    assert len(again) > 10
    assert {outcome.pool for outcome in found} == {"premium-eu"}
    # Three in a row fail now and then; no pool is ever missing.
    assert {o.reason for o in found if o.status == "failed"} <= {"server_error"}
    assert sum(outcome.status == "completed" for outcome in again) > 10


@pytest.mark.parametrize("notice_s", [0.0, 60.0])
def test_a_pool_that_is_taken_away_with_notice_finishes_what_it_has(notice_s: float) -> None:
    usual = outcomes([asked(0, 0.0)])[0].pool
    gone = Outage(pool=usual, from_s=100.0, to_s=1000.0, notice_s=notice_s)
    found = outcomes([asked(row, row * 0.5) for row in range(300)], Reality(outages=(gone,)))
    assert {outcome.status for outcome in found} == {"completed"}
    lost = [outcome for outcome in found if outcome.tries > 1]
    assert bool(lost) == (not notice_s)
    told = [o for o in found if 100.0 - notice_s < o.profile.created_at < 100.0]
    assert usual not in {o.pool for o in told}


def test_a_tenant_that_crowds_the_pools_is_turned_away_before_others() -> None:
    chat = make_policy().classes["chat"].model_copy(update={"ttft_ms": 300.0})
    strict = make_policy().model_copy(update={"classes": {"chat": chat}})
    flood = [asked(row, row * 0.002, tenant="many") for row in range(1500)]
    few = [asked(1500 + n, 0.5 + n * 0.2, tenant="few") for n in range(10)]
    arrivals = sorted([*flood, *few], key=lambda a: a.arrival_s)
    found = outcomes(arrivals, policy=strict)
    refused = [o for o in found if o.reason == "over_share"]
    assert {o.profile.tenant for o in refused} == {"many"}


def test_what_a_second_policy_does_not_know_is_an_error_for_people() -> None:
    one = asked(0, 0.0, constraints={"data_class": "regulated"})
    other = make_policy().model_copy(update={"data_classes": {}})
    setting = Setting([one], make_fleet(), make_policy(), Reality())
    with pytest.raises(UserError, match=r"row 0: constraints\.data_class 'regulated'"):
        list(runs(setting, with_baselines=False, compared=other))
