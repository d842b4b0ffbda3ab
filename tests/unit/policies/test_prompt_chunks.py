"""Prompts beside what decodes: which pools compute no more of them than its TPOT allows."""

import random
from dataclasses import replace

import pytest
from stream_cases import FLEET, make_fleet, make_options, make_policy, make_profile

from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replica_pool import ModelPool, Try
from policies.config.fleet import SimulatedBackendConfig
from policies.hardware.chunks import SHORT_CHUNK_TOKENS

OPTION = replace(make_options().of("premium-eu", "yard-8b-fp8"), replicas=1)
PROMPT_TOKENS = 2_000
STEPS = 4


def tpot_beside_prompts(keeps_tpot: bool, time_scale: float, tpot_s: float) -> float:
    """Return the TPOT of a short reply beside prompts that come right after its first token."""
    option = replace(OPTION, keeps_tpot=keeps_tpot, time_scale=time_scale)
    pool = ModelPool([option], Reality(), random.Random(0).random)
    profile = replace(make_profile(make_policy()), ttft_s=None, tpot_s=tpot_s)
    reply = ReplayOutcome(0, profile, 300, 1 + STEPS)
    pool.submit(Try(reply, option, "direct", None), 0.0)
    at = 1.001 * option.roofline.prefill_s(300) / time_scale
    assert not list(pool.advance(0, at))
    for row in range(1, 6):
        batch = ReplayOutcome(row, replace(profile, tpot_s=None), PROMPT_TOKENS, 1)
        pool.submit(Try(batch, option, "batch", None), at)
    while (due_at := pool.due_at(0)) is not None:
        list(pool.advance(0, due_at))
    assert reply.tpot_s is not None
    return reply.tpot_s


@pytest.mark.parametrize("time_scale", [1.0, 4.0])
@pytest.mark.parametrize("by_due", [True, False])
def test_what_is_due_first_is_computed_first_where_chunks_are_within_the_tpot(
    by_due: bool, time_scale: float
) -> None:
    option = replace(OPTION, keeps_tpot=by_due, time_scale=time_scale)
    pool = ModelPool([option], Reality(), random.Random(0).random)
    profile = replace(make_profile(make_policy()), tpot_s=None, deadline=900.0)
    tries = []
    # The second comes later, by more than its first token is due sooner in seconds of the model.
    for row, (at, tokens, ttft_s) in enumerate([(0.0, 20_000, 1.0), (0.02, 300, 0.97)]):
        mine = replace(profile, created_at=at, ttft_s=ttft_s)
        tries.append(Try(ReplayOutcome(row, mine, tokens, 1), option, "direct", None))
        list(pool.advance(0, at))
        pool.submit(tries[row], at)
        list(pool.start(at))
    while (due_at := pool.due_at(0)) is not None:
        list(pool.advance(0, due_at))
    long, soon = (attempt.outcome.first_token_s for attempt in tries)
    assert long is not None
    assert soon is not None
    assert (soon < long) is by_due
    ahead_s = 0.0 if by_due else option.roofline.prefill_s(20_000)
    assert tries[1].ahead_s == pytest.approx(ahead_s)


@pytest.mark.parametrize("time_scale", [1.0, 20.0])
def test_a_short_reply_keeps_its_tpot_where_chunks_are_within_it(time_scale: float) -> None:
    step = (1, 400)
    limit_s = 1.1 * OPTION.roofline.step_s(*step, prefill_tokens=SHORT_CHUNK_TOKENS)
    whole_s = OPTION.roofline.step_s(*step, prefill_tokens=PROMPT_TOKENS)
    assert limit_s < 0.5 * whole_s
    tpot_s = limit_s / time_scale
    assert tpot_beside_prompts(True, time_scale, tpot_s) <= tpot_s
    whole_tpot_s = tpot_beside_prompts(False, time_scale, tpot_s)
    assert whole_tpot_s > 1.5 * tpot_s
    # One that has time leaves them whole.
    assert tpot_beside_prompts(True, time_scale, 2 * whole_s / time_scale) == whole_tpot_s


def test_simulated_pools_keep_a_tpot_unless_they_are_declared_otherwise() -> None:
    usual = "type: simulated, time_scale: 20.0"
    full = FLEET.replace(usual, "type: simulated, prompt_chunks: full")
    server = FLEET.replace(usual, "type: openai, base_url: 'http://server'")
    for text, keeps in ((FLEET, True), (full, False), (server, False)):
        assert {each.keeps_tpot for each in make_options(text).by_pool["premium-eu"]} == {keeps}
    assert "prompt_chunks" not in make_fleet().model_dump_json()
    assert SimulatedBackendConfig(prompt_chunks="full").model_dump()["prompt_chunks"] == "full"
