"""Continuous batching in virtual time: what it does, by example."""

import random
from dataclasses import replace

import pytest
from accelerator_cases import LLAMA_8B, VARIANTS, completions, drain

from policies.hardware.accelerator import (
    Accelerator,
    Cancelled,
    Completion,
    FirstToken,
    Job,
    Refused,
    VariantLimits,
)
from policies.hardware.chunks import PREFILL_CHUNK_TOKENS
from policies.hardware.roofline import Roofline


def one(roofline: Roofline = LLAMA_8B, max_batch: int = 8, **options: int) -> Accelerator:
    return Accelerator({"llama": VariantLimits(roofline, max_batch)}, **options)


def llama(job_id: str, input_tokens: int, output_tokens: int, **fields: int) -> Job:
    return Job(job_id, "llama", input_tokens, output_tokens, **fields)


def test_a_job_alone_takes_its_prefill_and_its_decode() -> None:
    accelerator = one()
    accelerator.submit(llama("a", 1500, 200), 10.0)
    first_token, done = drain(accelerator)
    assert isinstance(first_token, FirstToken)
    assert isinstance(done, Completion)
    assert done.started_at == 10.0
    assert first_token.at == done.first_token_at == 10.0 + LLAMA_8B.prefill_s(1500)
    decode_s = LLAMA_8B.decode_s(200, 1, 1500)
    assert done.finished_at == pytest.approx(done.first_token_at + decode_s, rel=1e-12)
    assert done.device_s == pytest.approx(accelerator.busy_s, rel=1e-12)


def test_a_long_prompt_is_computed_in_chunks() -> None:
    accelerator = one(prefill_chunk_tokens=1000)
    accelerator.submit(llama("a", 2500, 1), 0.0)
    chunks_s = (
        LLAMA_8B.prefill_s(1000) + LLAMA_8B.prefill_s(2000, 1000) + LLAMA_8B.prefill_s(2500, 2000)
    )
    assert completions(drain(accelerator))["a"].finished_at == pytest.approx(chunks_s)


@pytest.mark.parametrize("by_due", [True, False])
def test_what_is_due_first_overtakes_the_rest_of_a_long_prompt(by_due: bool) -> None:
    accelerator = Accelerator({"llama": VariantLimits(LLAMA_8B, 8)}, keeps_tpot=by_due)
    accelerator.submit(llama("long", 20_000, 1, due_at=20.0), 0.0)
    accelerator.submit(llama("soon", 1_000, 1, due_at=1.5), 0.01)
    accelerator.submit(llama("late", 1_000, 1, due_at=30.0), 0.01)
    done = completions(drain(accelerator))
    order = sorted(done, key=lambda name: done[name].first_token_at)
    assert order == (["soon", "long", "late"] if by_due else ["long", "soon", "late"])
    first_chunk_s = LLAMA_8B.prefill_s(PREFILL_CHUNK_TOKENS)
    assert (done["soon"].started_at == first_chunk_s) is by_due


def test_what_is_due_at_no_time_comes_after_what_is_due_and_before_a_lower_priority() -> None:
    accelerator = Accelerator({"llama": VariantLimits(LLAMA_8B, 1)}, keeps_tpot=True)
    accelerator.submit(llama("first", 100, 2), 0.0)
    accelerator.submit(llama("low", 100, 1, priority=1, due_at=0.1), 0.0)
    accelerator.submit(llama("never", 100, 1), 0.0)
    accelerator.submit(llama("due", 100, 1, due_at=9.0), 0.0)
    done = completions(drain(accelerator))
    order = sorted(done, key=lambda name: done[name].first_token_at)
    assert order == ["due", "first", "never", "low"]


def two_prompts_beside_a_reply(tpot_s: float, steps: int) -> tuple[Accelerator, float]:
    """Return an accelerator to which two prompts of 900 tokens come after steps of a reply."""
    accelerator = Accelerator({"llama": VariantLimits(LLAMA_8B, 8)}, keeps_tpot=True)
    accelerator.submit(Job("reply", "llama", 100, 2_000, tpot_s=tpot_s), 0.0)
    at = LLAMA_8B.prefill_s(100) + LLAMA_8B.decode_s(1 + steps, 1, 100)
    accelerator.submit(llama("a", 900, 1), at)
    accelerator.submit(llama("b", 900, 1), at)
    return accelerator, at


def test_a_reply_that_has_time_leaves_prompts_whole_and_together() -> None:
    accelerator, _ = two_prompts_beside_a_reply(0.03, steps=40)
    done = completions(drain(accelerator))
    first, second = done["a"], done["b"]
    assert (first.started_at, first.finished_at) == (second.started_at, second.finished_at)


def test_a_prompt_for_which_a_reply_has_no_time_waits_for_the_next_iteration() -> None:
    accelerator, _ = two_prompts_beside_a_reply(0.03, steps=0)
    done = completions(drain(accelerator))
    first, second = done["a"], done["b"]
    assert second.started_at == first.finished_at
    took_s = LLAMA_8B.step_s(1, 101, prefill_tokens=900)
    assert first.finished_at - first.started_at == pytest.approx(took_s)


def test_a_prompt_longer_than_what_a_reply_has_time_for_is_cut_to_that() -> None:
    tpot_s = 0.012
    accelerator, at = two_prompts_beside_a_reply(tpot_s, steps=0)
    assert LLAMA_8B.step_s(1, 101, prefill_tokens=900) > tpot_s
    assert accelerator.output_tokens_of("reply", at + 0.99 * tpot_s) == 1
    assert accelerator.output_tokens_of("reply", at + tpot_s) == 2
    assert accelerator.running_of("llama") == 2


def test_a_cached_prefix_is_read_and_not_computed() -> None:
    accelerator = one()
    accelerator.submit(llama("a", 8000, 1, cached_tokens=7900), 0.0)
    assert completions(drain(accelerator))["a"].finished_at == LLAMA_8B.prefill_s(8000, 7900)
    assert LLAMA_8B.prefill_s(100) < LLAMA_8B.prefill_s(8000, 7900) < LLAMA_8B.prefill_s(8000)


def test_an_embedding_is_done_with_its_prefill() -> None:
    accelerator = one()
    accelerator.submit(llama("a", 700, 0), 0.0)
    (done,) = drain(accelerator)
    assert isinstance(done, Completion)
    assert done.first_token_at == done.finished_at == LLAMA_8B.prefill_s(700)


def test_sequences_decode_together_beside_the_chunks_of_others() -> None:
    accelerator = one()
    accelerator.submit(llama("a", 1000, 3), 0.0)
    accelerator.submit(llama("b", 500, 1), 0.001)  # during the prefill of a
    done = completions(drain(accelerator))
    prefill_s = LLAMA_8B.prefill_s(1000)
    mixed_s = LLAMA_8B.step_s(1, 1001, 500)
    last_s = LLAMA_8B.step_s(1, 1002)
    assert done["b"].started_at == prefill_s
    assert done["b"].finished_at == pytest.approx(prefill_s + mixed_s)
    assert done["a"].finished_at == pytest.approx(prefill_s + mixed_s + last_s)
    assert done["b"].device_s == pytest.approx(mixed_s * 500 / 501)
    assert done["a"].device_s == pytest.approx(prefill_s + mixed_s / 501 + last_s)


def test_a_submission_waits_for_the_iteration_under_way() -> None:
    accelerator = one()
    accelerator.submit(llama("a", 100, 1000), 0.0)
    steps_s = LLAMA_8B.prefill_s(100) + LLAMA_8B.decode_s(41, 1, 100)
    accelerator.submit(llama("b", 100, 1), steps_s - 0.001)
    assert completions(drain(accelerator))["b"].started_at == pytest.approx(steps_s, rel=1e-12)


def test_variants_take_turns() -> None:
    variants = {name: VariantLimits(replace(LLAMA_8B), 4) for name in ("x", "y")}
    accelerator = Accelerator(variants)
    accelerator.submit(Job("a", "x", 100, 50), 0.0)
    accelerator.submit(Job("b", "y", 100, 50), 0.0)
    done = completions(drain(accelerator))
    alone_s = LLAMA_8B.prefill_s(100) + LLAMA_8B.decode_s(50, 1, 100)
    assert done["b"].finished_at == pytest.approx(2 * alone_s)
    last_step_s = LLAMA_8B.step_s(1, 149)
    assert done["a"].finished_at == pytest.approx(2 * alone_s - last_step_s)
    assert done["a"].device_s == pytest.approx(alone_s)


def test_the_urgent_go_first_even_when_submitted_last() -> None:
    accelerator = one(max_batch=1)
    accelerator.submit(llama("running", 10, 20), 0.0)
    accelerator.submit(llama("batch", 10, 5, priority=1), 0.001)
    accelerator.submit(llama("direct", 10, 5, priority=0), 0.002)
    done = completions(drain(accelerator))
    assert done["running"].finished_at == done["direct"].started_at
    assert done["direct"].finished_at == done["batch"].started_at


def test_priority_has_its_first_token_in_a_third_of_the_time_in_a_full_pool() -> None:
    """Of eight places, to which more comes than they serve; each tenth is urgent."""
    accelerator, asked = one(), {}
    for n in range(300):
        name, at = f"{'priority' if n % 10 == 0 else 'default'}-{n}", n * 0.1
        asked[name] = at
        accelerator.submit(llama(name, 500, 100, priority=-(n % 10 == 0)), at)
    waits: dict[str, list[float]] = {"priority": [], "default": []}
    for name, done in completions(drain(accelerator)).items():
        waits[name.partition("-")[0]].append(done.first_token_at - asked[name])
    mean_s = {tier: sum(each) / len(each) for tier, each in waits.items()}
    assert mean_s["default"] > 1.0
    assert mean_s["priority"] < mean_s["default"] / 3


def test_asking_for_the_next_event_does_not_fix_who_begins() -> None:
    accelerator = one(max_batch=1)
    accelerator.submit(llama("batch", 10, 5, priority=1), 1.0)
    assert accelerator.next_event_at() == 1.0 + LLAMA_8B.prefill_s(10)
    accelerator.submit(llama("direct", 10, 5, priority=0), 1.0)
    done = completions(drain(accelerator))
    assert done["direct"].started_at == 1.0
    assert done["direct"].finished_at == done["batch"].started_at


def test_the_urgent_interrupt_the_prefill_of_a_long_prompt() -> None:
    accelerator = one(prefill_chunk_tokens=500)
    accelerator.submit(llama("long", 20_000, 1, priority=1), 0.0)
    accelerator.submit(llama("direct", 400, 1, priority=0), 0.001)
    done = completions(drain(accelerator))
    assert done["direct"].started_at == LLAMA_8B.prefill_s(500)
    assert done["direct"].finished_at < done["long"].finished_at


def test_what_came_first_gets_the_memory_first_across_variants() -> None:
    accelerator = Accelerator(VARIANTS)
    accelerator.submit(Job("filler", "llama", 7000, 200), 0.0)
    accelerator.submit(Job("large", "llama", 8000, 1), 0.001)
    for index in range(30):  # each would fit now, and together they would keep "large" out
        accelerator.submit(Job(f"small-{index}", "small", 9000, 100), 0.002)
    done = completions(drain(accelerator))
    assert done["large"].started_at == done["filler"].finished_at
    assert min(done[f"small-{index}"].started_at for index in range(30)) >= done["large"].started_at


def test_a_job_that_can_never_fit_is_refused_with_the_reason() -> None:
    accelerator = Accelerator(VARIANTS)
    accelerator.submit(Job("a", "llama", 9000, 100), 5.0)
    assert accelerator.next_event_at() == 5.0
    (refused,) = accelerator.advance(5.0)
    assert isinstance(refused, Refused)
    assert (refused.id, refused.at) == ("a", 5.0)
    assert "9100 tokens" in refused.reason
    assert accelerator.next_event_at() is None


def test_cancelling_frees_memory_and_the_place() -> None:
    accelerator = Accelerator(VARIANTS)
    accelerator.submit(Job("running", "llama", 5000, 1000), 0.0)
    accelerator.submit(Job("waiting", "llama", 5000, 1000), 0.0)
    accelerator.submit(Job("next", "llama", 5000, 10), 0.0)
    accelerator.advance(2.0)
    assert (accelerator.running_of("llama"), accelerator.queued_of("llama")) == (1, 2)
    assert accelerator.kv_usage == pytest.approx(6000 / 9000)
    # Of 9,000 tokens; what waits for memory counts as well.
    assert accelerator.kv_wanted == pytest.approx(17_010 / 9000)
    assert accelerator.cancel("waiting", 2.0)
    assert accelerator.cancel("running", 2.0)
    events = drain(accelerator)
    cancelled = {event.id: event for event in events if isinstance(event, Cancelled)}
    assert (cancelled["waiting"].at, cancelled["waiting"].device_s) == (2.0, 0.0)
    step_s = LLAMA_8B.step_s(1, 6000)
    assert 2.0 <= cancelled["running"].at <= 2.0 + step_s
    assert completions(events)["next"].started_at == cancelled["running"].at
    assert accelerator.kv_usage == accelerator.running == accelerator.queued == 0
    assert not accelerator.cancel("running", 9.0)


def test_a_cancelled_context_is_no_longer_read() -> None:
    accelerator = one()
    accelerator.submit(llama("a", 9000, 500), 0.0)
    accelerator.submit(llama("b", 9000, 500), 0.0)
    accelerator.cancel("a", 1.0)
    *_, cancelled, done = drain(accelerator)
    assert isinstance(cancelled, Cancelled)
    assert isinstance(done, Completion)
    alone_s = done.finished_at - cancelled.at
    possible_s = [LLAMA_8B.decode_s(left, 1, 9500 - left) for left in range(500)]
    assert min(abs(alone_s - each_s) for each_s in possible_s) < 1e-9
    assert alone_s < LLAMA_8B.decode_s(500, 1, 9000)


def test_busy_time_grows_within_a_long_run() -> None:
    accelerator = one()
    accelerator.submit(llama("a", 100, 10_000), 1.0)
    accelerator.advance(3.5)
    assert accelerator.busy_s == pytest.approx(2.5)


def test_a_clock_that_steps_back_is_not_followed() -> None:
    accelerator = one()
    accelerator.submit(llama("a", 100, 1), 5.0)
    accelerator.submit(llama("b", 100, 1), 4.0)
    done = completions(drain(accelerator))
    assert done["b"].started_at == done["a"].started_at == 5.0


@pytest.mark.parametrize(
    ("job", "message"),
    [
        (Job("a", "other", 1, 1), "serves \\['llama'\\]"),
        (Job("taken", "llama", 1, 1), "already here"),
    ],
)
def test_a_job_that_makes_no_sense_is_an_error(job: Job, message: str) -> None:
    accelerator = one()
    accelerator.submit(llama("taken", 1, 1), 0.0)
    with pytest.raises(ValueError, match=message):
        accelerator.submit(job, 0.0)


@pytest.mark.parametrize("fields", [(0, 1, 0), (1, -1, 0), (5, 1, 6), (5, 1, -1)])
def test_a_job_names_its_impossible_figure(fields: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="job 'a' has"):
        Job("a", "llama", *fields)


def test_an_id_is_free_again_when_its_job_is_done() -> None:
    accelerator = one()
    accelerator.submit(llama("a", 100, 1), 0.0)
    accelerator.submit(llama("a", 100, 1), 9.0)
    assert [event.id for event in drain(accelerator)] == ["a"] * 4


def test_a_replica_that_cannot_hold_its_weights_is_an_error() -> None:
    with pytest.raises(ValueError, match="fewer variants"):
        one(replace(LLAMA_8B, memory_bytes=17e9))
    with pytest.raises(ValueError, match="same memory_bytes"):
        Accelerator({"llama": VARIANTS["llama"], "other": VariantLimits(LLAMA_8B, 1)})
    with pytest.raises(ValueError, match="at least one"):
        Accelerator({})
    with pytest.raises(ValueError, match="max_batch"):
        VariantLimits(LLAMA_8B, 0)
    with pytest.raises(ValueError, match="prefill_chunk_tokens"):
        one(prefill_chunk_tokens=0)


def test_a_long_trace_is_simulated_within_bounds_of_work() -> None:
    """2,000 requests at 20/s: jumps keep the number of planned runs near the number of events."""
    planned = 0

    class Counting(Accelerator):
        def _plan(self):
            nonlocal planned
            planned += 1
            return super()._plan()

    draw = random.Random(20261124)
    accelerator = Counting({"llama": VariantLimits(LLAMA_8B, 64)})
    at = 0.0
    for index in range(2000):
        at += draw.expovariate(20)
        job = llama(str(index), draw.randint(50, 2000), 1 + int(draw.expovariate(1 / 150)))
        accelerator.submit(job, at)
    done = completions(drain(accelerator))
    assert len(done) == 2000
    assert planned < 4 * 2000
