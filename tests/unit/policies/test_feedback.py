"""Feedback of executed work: what is learned, by whom, and what it changes in decisions."""

from dataclasses import replace
from math import exp
from typing import Any

import pytest
from memory_log import MemoryLog
from policy_cases import NOW, a_policy, profile, request, some_options, status
from stream_cases import Yard, step_until
from worker_cases import ScriptedBackend, make_worker, place

from policies import FleetView, tag
from policies.fleet_state.candidate_load import PoolLoad, standing_of
from policies.fleet_state.pool_stats import pooled_share
from policies.hardware.iteration import Job
from policies.learning.device_constants import Measured
from policies.learning.device_speed import Pace
from policies.learning.feedback import SEEN_MIN, TRIES, Experience
from policies.learning.output_lengths import LengthLog, Lengths
from policies.scoring.estimate import chance, estimate
from topics import Envelope, PoolStatus, Profile, Tag, Usage, VariantStatus, decode, encode
from workers.backends.base import CallError
from workers.backends.simulated.responses import output_tokens
from workers.feedback import Learning

OPTION = some_options().by_pool["premium"][0]


def kept(experience: Experience, factor: float, count: int, promised_s: float = 1.0) -> None:
    """Let requests with a TTFT of 2 s that were promised this get ``factor`` times that."""
    asked = profile(ttft_s=2.0, tpot_s=None)
    for _ in range(count):
        got = Envelope(1e-6, 0.5 + factor * promised_s, 5.0)
        promised = Envelope(1e-6, 0.5 + promised_s, 5.0)
        experience.kept(asked, "v", promised, got, 0.5)


def test_errors_are_told_once_enough_was_seen_and_follow_what_came() -> None:
    experience = Experience(0.0)
    kept(experience, 1.5, int(SEEN_MIN) - 1)
    assert experience.ttft_error("v") is None
    kept(experience, 1.5, 400)
    error = experience.ttft_error("v")
    assert error is not None
    assert 1.3 < exp(error[0]) < 1.7
    assert experience.tpot_error("v") is None
    kept(experience, 0.7, 3000)
    later = experience.ttft_error("v")
    assert later is not None
    assert exp(later[0]) < 0.8


def test_promises_far_from_the_slo_teach_nothing() -> None:
    experience = Experience(0.0)
    kept(experience, 3.0, 500, promised_s=0.1)
    assert experience.ttft_error("v") is None


def paced(experience: Experience, tpot_s: float, count: int) -> None:
    """Let requests with a TPOT of 80 ms that were promised 50 take ``tpot_s``."""
    asked = profile(ttft_s=None, tpot_s=0.08)
    promised, got = (Envelope(1e-6, 0.5, 5.0, each) for each in (0.05, tpot_s))
    for _ in range(count):
        experience.kept(asked, "v", promised, got, 0.0)


def test_a_tpot_that_is_kept_was_promised_well() -> None:
    experience = Experience(0.0)
    paced(experience, 0.079, 500)
    error = experience.tpot_error("v")
    assert error is not None
    assert exp(error[2]) < 1.1
    paced(experience, 0.03, 3000)
    quicker = experience.tpot_error("v")
    assert quicker is not None
    assert exp(quicker[2]) < 0.8
    paced(experience, 0.1, 500)
    missed = experience.tpot_error("v")
    assert missed is not None
    assert 1.8 < exp(missed[1]) < 2.2


def test_errors_fade_where_promises_stay_far_from_the_slo() -> None:
    experience = Experience(0.0)
    kept(experience, 3.0, 100)
    bad = experience.ttft_error("v")
    assert bad is not None
    kept(experience, 1.0, 100, promised_s=0.1)
    assert experience.ttft_error("v") == bad, "they say nothing of it"
    kept(experience, 1.0, 500, promised_s=0.1)
    assert experience.ttft_error("v") is None
    kept(experience, 1.0, 100)
    mended = experience.ttft_error("v")
    assert mended is not None
    assert mended[0] < bad[0]


def test_failures_move_the_declared_rate_and_answers_move_it_back() -> None:
    experience = Experience(0.02)
    for _ in range(TRIES):
        experience.failed()
    assert experience.failure_rate > 0.6
    for _ in range(10 * TRIES):
        experience.completed(profile(), "v", Usage(10, 10))
    assert experience.failure_rate < 0.001


def test_a_pool_that_is_slow_has_less_chance() -> None:
    asked = profile(ttft_s=1.5, tpot_s=None)
    found = estimate(asked, standing_of(OPTION, PoolLoad(workers=1)), 0.05)
    slow, quick = (0.7, 1.1, 1.4), (-0.7, -0.3, 0.0)
    near = replace(asked, ttft_s=1.2 * found.ttft_s)
    usual = chance(near, found, 0.0, 0.35)
    assert chance(near, found, 0.0, 0.35, slow) < usual
    # A pool that keeps its promises early is trusted no further: docs/placement.md.
    assert chance(near, found, 0.0, 0.35, quick) == usual
    assert chance(near, found, 0.0, 0.35, (0.0, 0.4486, 0.7188)) == pytest.approx(usual, abs=1e-4)


def test_a_view_has_the_mean_of_what_the_workers_of_a_pool_learned() -> None:
    view = FleetView(some_options())
    for name, median, rate in (("0", 0.2, 0.1), ("1", 0.4, 0.3)):
        variants = {OPTION.variant: VariantStatus(ttft_error=(median, 0.9, 1.5))}
        told = status("premium", instance=name, variants=variants, failure_rate=rate)
        view.report(decode(PoolStatus, encode(told)))
    standing = view.standing(OPTION)
    assert standing.learned.ttft_error == (0.3, 0.9, 1.5)
    assert standing.failure_rate == pytest.approx(0.2)


def told_by(instance: str, pace: Pace, experience: Experience) -> PoolStatus:
    """A heartbeat of a worker that has measured so much."""
    variant = VariantStatus(
        speed=pace.speed(OPTION.variant),
        speed_known=pace.known(OPTION.variant),
        reuse=experience.reuse(OPTION.variant),
        reuse_known=experience.reuse_known(OPTION.variant),
    )
    return status(
        "premium",
        instance=instance,
        variants={OPTION.variant: variant},
        failure_rate=experience.failure_rate,
        failure_known=experience.failure_known,
    )


def work(pace: Pace, experience: Experience, count: int) -> None:
    """Serve so many turns: charged at half the speed, one of five failing, half of it cached."""
    job = Job("", OPTION.variant, 400, 100)
    device_s = OPTION.roofline.prefill_s(400) + OPTION.roofline.decode_s(100, 1, 400)
    for n in range(count):
        pace.learn(OPTION, job, Measured(None, device_s), 2.0 * device_s)
        asked = profile(session=f"s{n // 5}")
        experience.completed(asked, OPTION.variant, Usage(100, 100, 100 if n % 5 else 0))
        if n % 4 == 0:
            experience.failed()


def test_a_pool_that_is_scaled_up_knows_what_it_knew() -> None:
    view = FleetView(some_options())
    pace, experience = Pace(), Experience(0.0)
    work(pace, experience, 2000)
    view.report(told_by("0", pace, experience))
    alone = view.standing(OPTION)
    assert alone.speed == pytest.approx(0.5, rel=0.01)
    assert alone.failure_rate == pytest.approx(0.2, abs=0.01)
    assert alone.learned.reuse > 0.9
    # After a few executions each a new worker has measured a part of what could be known.
    for executions in (0, 1, 10, 100):
        for name in "123":
            pace, experience = Pace(), Experience(0.0)
            work(pace, experience, executions)
            view.report(told_by(name, pace, experience))
        grown = view.standing(OPTION)
        assert grown.speed == pytest.approx(alone.speed, rel=0.01), executions
        assert grown.failure_rate == pytest.approx(alone.failure_rate, abs=0.03), executions
        assert grown.learned.reuse == pytest.approx(alone.learned.reuse, abs=0.05), executions


def test_new_workers_together_know_more_than_each() -> None:
    pace, experience = Pace(), Experience(0.0)
    work(pace, experience, 20)
    view = FleetView(some_options())
    view.report(told_by("0", pace, experience))
    alone = view.standing(OPTION).speed
    assert alone == pytest.approx(pace.speed(OPTION.variant))
    view.report(told_by("1", pace, experience))
    assert 0.5 < view.standing(OPTION).speed < alone


def test_a_share_stays_one_however_heartbeats_round() -> None:
    assert pooled_share([(0.0, 1.0), (0.2, 0.59)], 0.5) == 0.0
    assert pooled_share([(1.0, 1.0), (0.6, 0.59)], 0.0) == 1.0


def test_a_worker_that_does_not_tell_how_much_it_knows_counts_in_full() -> None:
    view = FleetView(some_options())
    old = {"speed": 0.5, "running": 0, "queued": 0, "reuse": 0.4}
    for name, speed in (("0", 0.5), ("1", 2.0)):
        beat = decode(dict[str, Any], encode(status("premium", instance=name, failure_rate=0.2)))
        del beat["failure_known"]
        beat["variants"] = {OPTION.variant: old | {"speed": speed}}
        view.report(decode(PoolStatus, encode(beat)))
    standing = view.standing(OPTION)
    assert standing.speed == pytest.approx(1.0)
    assert (standing.failure_rate, standing.learned.reuse) == (0.2, 0.4)


async def test_a_worker_learns_from_what_became_visible() -> None:
    yard, backend, experience = Yard(), ScriptedBackend(), Experience(0.0)
    for n in range(3):
        place(yard, f"c{n}")
    worker = make_worker(yard, backend)
    observers = [Learning(experience)]
    transactor = await yard.run(worker, MemoryLog(yard.cluster, "a"), observers=observers)
    await step_until(transactor, lambda: len(backend.running) == 3, "the calls")
    assert experience.lengths.told() == ()
    backend.finish("c0")
    backend.fail("c1", CallError("timeout", "no answer", retry="elsewhere"))
    backend.fail("c2", CallError("bad_request", "it has no model", retry="never"))
    await step_until(transactor, lambda: {"c0", "c2"} <= yard.results().keys(), "the ends")
    await step_until(transactor, lambda: experience.failure_rate > 0, "the failure")
    (told,) = experience.lengths.told()
    assert (told.task, told.mean_tokens, sum(told.counts[1:])) == ("chat", 10.0, 1.0)
    assert experience.failure_rate == pytest.approx(1 / TRIES, rel=0.02)
    assert worker.running == 0


def seen(tokens: int, count: int = 100) -> Lengths:
    """Return what routers know once so many chat replies of this length were seen."""
    log, lengths = LengthLog(), Lengths()
    for _ in range(count):
        log.learn("chat", "llama", "default", tokens)
    lengths.report("premium/0", log.told())
    return lengths


def test_a_hint_wins_over_what_was_seen_and_that_over_the_policy() -> None:
    def length(lengths: Lengths | None, **fields: Any) -> tuple[Tag, Profile]:
        found = tag(
            request(task="chat", **fields), a_policy(),
            received_at=NOW, now=NOW, ingest_partition=0, lengths=lengths,
        )  # fmt: skip
        return found.tags["output_length"], found.profile

    body = {"model": "llama", "prompt": "x"}
    hinted, profile_hinted = length(seen(50), body=body, hints={"output_tokens": 7})
    assert (hinted.value, hinted.source) == (7, "client")
    assert profile_hinted.output_tokens_high is None
    learned, profile_learned = length(seen(50), body=body)
    assert (learned.value, learned.source) == (50, "estimate")
    assert 0.5 < learned.confidence < 1
    assert (profile_learned.output_tokens_high or 0) >= 50
    limited, profile_limited = length(seen(50), body=body | {"max_tokens": 20})
    assert (limited.value, limited.source) == (20, "client")
    assert profile_limited.output_tokens_high == 20
    for nothing in (None, seen(50, count=5)):
        assumed, _ = length(nothing, body=body)
        assert (assumed.value, assumed.source) == (200, "policy")


def test_a_reply_that_may_get_long_must_fit_before_the_deadline_too() -> None:
    standing = standing_of(OPTION, PoolLoad(workers=1))
    usual = profile(ttft_s=None, tpot_s=None, output_tokens=100)
    found = estimate(usual, standing, 0.05)
    tight = replace(usual, deadline=usual.created_at + 3 * found.finish_s)
    long = replace(tight, output_tokens_high=1000)
    assert chance(tight, found, 0.0, 0.35) > 0.99
    assert chance(long, estimate(long, standing, 0.05), 0.0, 0.35) < 0.5
    assert estimate(long, standing, 0.05).cost_usd == found.cost_usd


def test_simulated_replies_do_not_follow_what_routers_expect() -> None:
    asked = request(task="chat", body={"model": "llama", "prompt": "x"})
    lengths = {
        output_tokens(asked, profile(output_tokens=expected), {"chat": 200}, 8192)
        for expected in (1, 50, 5000)
    }
    assert len(lengths) == 1
