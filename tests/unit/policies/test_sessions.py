"""Sessions: what of a prompt may be cached where, what that is worth, and who is told."""

from dataclasses import replace

import pytest
from backtest_cases import replay
from decisions import decide_in
from policy_cases import FLEET, NOW, a_policy, a_situation, profile, some_options, status

from policies import Decision, decide, inputs_of
from policies.backtest.fault_model import Reality
from policies.fleet_state.sessions import HALF_LIFE_S, SESSIONS_MAX, Sessions
from policies.fleet_state.view import FleetView
from policies.hardware.accelerator import VariantLimits
from policies.hardware.iteration import Job
from policies.hardware.prefix_cache import PrefixCache
from policies.hardware.replica import Ask, Replica
from policies.hardware.replica_choice import choose_replica
from policies.learning.feedback import Experience
from policies.learning.output_lengths import LengthLog
from policies.placement.inputs import Inputs
from policies.scoring.estimate import estimate
from topics import Candidate, Profile, Usage, VariantStatus, decode
from topics.wire.canonical_json import canonical

OPTIONS = some_options()
OPTION = OPTIONS.by_pool["premium"][0]
TURN = profile(session="s1", input_tokens=8000, output_tokens=100)


def test_credit_is_of_the_tenant_and_decays() -> None:
    sessions = Sessions()
    sessions.remember(TURN, OPTION, NOW)
    credit = sessions.credit(TURN, NOW)
    assert credit is not None
    assert (credit.pool, credit.variant, credit.tokens) == ("premium", OPTION.variant, 8000)
    later = sessions.credit(TURN, NOW + HALF_LIFE_S)
    assert later is not None
    assert later.tokens == 4000
    assert sessions.credit(replace(TURN, tenant="another"), NOW) is None
    assert sessions.credit(replace(TURN, model="another"), NOW) is None
    assert sessions.credit(replace(TURN, session=None), NOW) is None
    assert sessions.credit(TURN, NOW + 100 * HALF_LIFE_S) is None


def test_what_is_remembered_is_bounded_by_the_last_seen() -> None:
    sessions = Sessions()
    for n in range(SESSIONS_MAX + 1):
        sessions.remember(replace(TURN, session=f"s{n}"), OPTION, NOW)
    assert sessions.credit(replace(TURN, session="s0"), NOW) is None
    assert sessions.credit(replace(TURN, session="s1"), NOW) is not None


def heard(reuse: float) -> FleetView:
    """Return a view in which the premium pool's variants find this share in their caches."""
    view = FleetView(OPTIONS)
    for pool, choices in OPTIONS.by_pool.items():
        share = reuse if pool == "premium" else 0.0
        view.report(status(pool, variants={o.variant: VariantStatus(reuse=share) for o in choices}))
    return view


def test_a_cached_prompt_makes_its_pool_cheaper_and_the_decision_can_be_made_again() -> None:
    plain = replace(a_situation(), view=heard(0.9))
    before = decide_in(TURN, plain, NOW)
    plain.view.sessions.remember(TURN, OPTION, NOW - 1)
    inputs = inputs_of(TURN, plain, NOW)
    after = decide_in(TURN, plain, NOW)

    def cost(decision: Decision) -> float:
        where = (OPTION.pool, OPTION.variant, "direct")
        found = [c for c in decision.candidates if (c.pool, c.model_variant, c.path) == where]
        return found[0].cost_usd or 0.0

    assert cost(after) < 0.85 * cost(before)
    # As the evidence has it: without the session's name.
    told = decode(Inputs, canonical(inputs))
    again = decide(replace(TURN, session=None), told, OPTIONS, a_policy(), NOW)
    assert again.candidates == after.candidates


def offer(turn: Profile, reuse: float, *, is_known: bool) -> Candidate:
    """Return the premium pool's candidate, where its session was there a second ago, or not."""
    here = replace(a_situation(), view=heard(reuse))
    if is_known:
        here.view.sessions.remember(turn, OPTION, NOW)
    decision = decide_in(turn, here, NOW)
    where = (OPTION.pool, OPTION.variant, "direct")
    (found,) = [c for c in decision.candidates if (c.pool, c.model_variant, c.path) == where]
    return found


def test_a_prompt_that_may_be_cached_is_promised_sooner_as_far_as_that_is_likely() -> None:
    plain = offer(TURN, 0.0, is_known=True)
    saved_s = {}
    for reuse in (0.25, 0.5, 1.0):
        found = offer(TURN, reuse, is_known=True)
        saved_s[reuse] = (plain.ttft_s or 0.0) - (found.ttft_s or 0.0)
        assert plain.finish_s == pytest.approx((found.finish_s or 0.0) + saved_s[reuse])
    prefill_s = OPTION.roofline.prefill_s(TURN.input_tokens)
    assert 0.9 * prefill_s < saved_s[1.0] < prefill_s
    assert saved_s[0.5] == pytest.approx(0.5 * saved_s[1.0])
    assert saved_s[0.25] == pytest.approx(0.25 * saved_s[1.0])
    assert offer(TURN, 1.0, is_known=False) == plain


def test_an_slo_that_the_cache_alone_keeps_is_kept_with_the_chance_that_it_is_there() -> None:
    cold, warm = (offer(TURN, reuse, is_known=True).ttft_s or 0.0 for reuse in (0.0, 1.0))
    # Between the two, and so far from both that either is certain but for what is learned.
    turn = replace(TURN, ttft_s=(cold * warm) ** 0.5, input_tokens=TURN.input_tokens)
    none, half, all_of_it = (
        offer(turn, reuse, is_known=True).chance or 0.0 for reuse in (0.0, 0.5, 1.0)
    )
    assert none < 0.5 < all_of_it
    assert half == pytest.approx((none + all_of_it) / 2)


def test_a_view_under_another_fleet_goes_on_with_what_was_learned() -> None:
    view = heard(0.9)
    log = LengthLog()
    for _ in range(50):
        log.learn("chat", "llama", "acme", 100)
    view.report(status("premium", output_lengths=log.told()))
    view.sessions.remember(TURN, OPTION, NOW)
    other = view.under(some_options(FLEET.replace("count: 2", "count: 3")))
    assert other is not view
    assert other.lengths.find("chat", "llama", "acme") is not None
    assert other.sessions.credit(TURN, NOW) is not None


def test_a_pool_that_was_never_seen_to_reuse_anything_gets_no_credit() -> None:
    here = replace(a_situation(), view=heard(0.0))
    before = decide_in(TURN, here, NOW)
    here.view.sessions.remember(TURN, OPTION, NOW)
    assert decide_in(TURN, here, NOW).candidates == before.candidates


def test_a_worker_learns_what_share_of_earlier_turns_is_cached() -> None:
    experience = Experience(0.0)
    for turn in range(1, 400):
        before = 110 * (turn - 1)
        usage = Usage(before + 100, 10, before // 2)
        experience.completed(TURN, "v", usage)
    assert experience.reuse("v") == pytest.approx(0.5, abs=0.03)
    assert experience.reuse("other") == 0.0


def test_cached_tokens_need_no_prefill_and_no_more_than_that() -> None:
    standing = heard(0.0).standing(OPTION)
    whole, half = (estimate(TURN, standing, 0.05, cached_tokens=n) for n in (0, 4000))
    saved_usd = whole.cost_usd - half.cost_usd
    prefill_usd = OPTION.roofline.prefill_s(TURN.input_tokens) * OPTION.usd_per_s
    assert 0 < saved_usd <= 0.5 * prefill_usd
    # Latencies are credited with a chance, by the decision.
    assert (half.ttft_s, half.finish_s) == (whole.ttft_s, whole.finish_s)


def test_a_modelled_cache_has_the_memory_that_jobs_leave() -> None:
    cache = PrefixCache()
    cache.keep(("a", "v"), 100, 100.0, free_bytes=250.0)
    cache.keep(("b", "v"), 100, 100.0, free_bytes=250.0)
    cache.keep(("a", "v"), 120, 120.0, free_bytes=250.0)
    assert (cache.tokens(("a", "v")), cache.tokens(("b", "v"))) == (120, 100)
    cache.shrink(150.0)
    # 30 bytes are left beside the newest: a block of 16 tokens.
    assert (cache.tokens(("a", "v")), cache.tokens(("b", "v"))) == (120, 16)


def test_a_session_goes_to_the_busy_replica_that_has_it() -> None:
    limits = {OPTION.variant: VariantLimits(OPTION.roofline, OPTION.max_batch)}
    replicas = [Replica(limits, PrefixCache()) for _ in range(3)]
    for index in (0, 1, 1):
        name = f"{index}-{replicas[index].jobs}"
        replicas[index].submit(Job(name, OPTION.variant, 100, 1000), 0.0)
    replicas[0].keep(OPTION.variant, "s1", 2000)
    replicas[2].keep(OPTION.variant, "s2", 2000)
    chosen = [
        choose_replica(replicas, Ask(OPTION.variant, 2000, 100, session=s), 0.0)
        for s in ("s1", "s2", None)
    ]
    # Nobody wakes an idle replica for a short prefix.
    assert chosen == [0, 1, 1]


def test_with_caches_a_backtest_computes_less_of_the_prompts() -> None:
    plain, _ = replay(rows=600)
    cached, _ = replay(rows=600, reality=Reality(prefix_cache=True))
    hits = [o for o in cached.outcomes if o.cached_tokens]
    assert hits
    assert all(o.cached_tokens <= min(o.prefix_tokens, o.input_tokens) for o in hits)
    assert all(o.profile.session is not None for o in hits)
    assert not any(o.cached_tokens for o in plain.outcomes)
    assert sum(cached.busy_s.values()) < sum(plain.busy_s.values())
