"""Requests of several answers in a backtest: each is written, charged for, and held to limits."""

from dataclasses import replace
from random import Random
from typing import Any

import pytest
from backtest_cases import asked
from policy_cases import FLEET, a_policy
from stream_cases import MODEL, START, make_fleet, make_options, make_policy, make_profile

from policies import compile_options
from policies import parse_fleet as a_fleet
from policies.backtest.baselines import BASELINES
from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replay import Replay
from policies.backtest.replica_pool import ModelPool, Try
from policies.backtest.route import Send
from policies.backtest.workload import Arrival, profiles_of
from policies.fleet_state.view import idle_reports
from shunter.backtest.bound_work import volume_bound
from shunter.backtest.demand import Demand, able, latest_end_s
from shunter.backtest.suite import Setting, run_one, shunter
from topics import InferenceRequest

CHAT: dict[str, Any] = {"model": MODEL, "messages": [{"role": "user", "content": "hi"}]}
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


def test_a_pool_tells_of_a_request_once_and_of_each_of_its_answers() -> None:
    pool = ModelPool([OPTION], Reality(), Random(0).random)
    profile = replace(make_profile(make_policy(), hints={"input_tokens": 300}), replies=8)
    pool.submit(Try(ReplayOutcome(0, profile, 300, 8 * 5_000), OPTION, "direct", None), 0.0)
    list(pool.start(0.0))
    # The first has its prompt computed, and the others begin.
    for at in (1.0, 1.1):
        assert not list(pool.advance(0, at))
    told = pool.status(1.1)
    of_variant = told.variants[OPTION.variant]
    assert of_variant.running == OPTION.max_batch
    assert of_variant.queued > 0
    assert (told.running, told.queued) == (1, 0)


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
        (many.finished_s - (many.first_token_s or 0.0)) / 299, rel=1e-9
    )
    # As they are written in three rounds, it is about that of one.
    assert one.tpot_s < many.tpot_s < 1.5 * one.tpot_s
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


def test_places_of_several_answers_are_free_again_when_they_have_ended() -> None:
    arrivals = [asked(n, 0.01 * n, output_tokens=300, body={"n": 3}) for n in range(4)]
    setting = Setting(arrivals, make_fleet(), make_policy(), Reality())
    options = compile_options(setting.fleet)
    replay = Replay(shunter(setting, options), options, setting.policy, Reality(), Random(1).random)
    profiles = profiles_of(arrivals, setting.fleet, setting.policy)
    found = replay.run(profiles, [each.output_tokens for each in arrivals])
    assert {outcome.status for outcome in found.outcomes} == {"completed"}
    pools = replay._pools.values()
    shares = [share for pool in pools for of_one in pool._shares for share in of_one.values()]
    assert {share.running for share in shares} == {0}
    assert all(pool.is_idle for pool in pools)


def test_lengths_of_a_trace_are_what_they_are_whatever_its_texts_look_like() -> None:
    text = {"messages": [{"role": "user", "content": "word " * 5000}]}
    arrivals = [asked(0, 0.0, body=text, constraints={"max_cost_usd": 1.0})]
    (profile,) = profiles_of(arrivals, make_fleet(), make_policy())
    assert profile.input_tokens == arrivals[0].input_tokens == 300


def test_each_text_of_a_list_is_cut_to_the_context() -> None:
    fleet = a_fleet(FLEET, "fleet.yaml")
    body = {"model": "vector", "input": ["w" * 4000] * 3}
    request = InferenceRequest.model_validate(
        {"id": "any", "model": "vector", "url": "/v1/embeddings", "body": body}
    )
    for tokens, left in ((3000, 3 * 512), (700, 700)):
        arrival = Arrival(0, 0.0, "embedding", "vector", tokens, 0, None, request=request)
        (profile,) = profiles_of([arrival], fleet, a_policy())
        assert (profile.prompts, profile.input_tokens) == (3, left)


def test_a_list_longer_than_the_context_breaks_no_constraint() -> None:
    body = {"prompt": ["a", "b", "c"]}
    made = asked(0, 0.0, output_tokens=30, body=body, url="/v1/completions", constraints=ONLY)
    tokens = 3 * OPTION.context_tokens - 300
    setting = Setting([replace(made, input_tokens=tokens)], make_fleet(), make_policy(), Reality())
    options = compile_options(setting.fleet)
    for name in ("shunter", "least_loaded"):
        own, rule = shunter(setting, options), BASELINES["least_loaded"](options, setting.policy)
        found = run_one(name, setting, options, own if name == "shunter" else rule)
        assert [each.status for each in found.run.outcomes] == ["completed"]
        assert found.scores["constraint_violations"] == 0


def test_the_pace_of_all_answers_is_no_limit_of_one_of_them_in_the_bound() -> None:
    one = replace(make_profile(make_policy()), ttft_s=1.0, tpot_s=0.02)
    alone, several = (Demand.of(each, 300, 0.0) for each in (one, replace(one, replies=3)))
    assert latest_end_s(alone) == pytest.approx(one.created_at + 1.0 + 299 * 0.02)
    assert (latest_end_s(several), several.pace_s) == (one.deadline, None)
    # What no device could keep to alone, it could not keep to on average.
    options = make_options()
    fast = replace(one, replies=3, tpot_s=1e-9)
    assert list(able(several, options))
    assert not list(able(Demand.of(fast, 300, 0.0), options))


def test_rules_count_each_answer_as_one_that_runs() -> None:
    options, policy = compile_options(make_fleet()), make_policy()
    route = BASELINES["least_loaded"](options, policy)
    for status in idle_reports(options, START):
        route.hear(status, START)
    many, one, other = (make_profile(policy, id=f"r{n}", body=CHAT | {"n": n}) for n in (9, 1, 2))
    sends = [route.arrive(each, START) for each in (many, one, other)]
    first, *later = (each.option.pool for each in sends if isinstance(each, Send))
    assert len(later) == 2
    assert first not in later
