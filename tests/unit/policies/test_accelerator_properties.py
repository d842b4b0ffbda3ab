"""Continuous batching in virtual time: what holds for every trace."""

import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import inf

import pytest
from accelerator_cases import VARIANTS, completions, drain
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.hardware.accelerator import (
    Accelerator,
    Cancelled,
    Completion,
    Event,
    FirstToken,
    Job,
    VariantLimits,
)

unhurried = settings(deadline=None)  # a busy machine is not a failure


# Longer than any round of both variants in which each computes a short chunk.
ROUND_S = 0.022
# What such a chunk takes longer for its context, which nobody knows before it has come.
CONTEXT_S = 0.002


class KeepingAccelerator(Accelerator):
    """Computes no more of prompts than the TPOT of what decodes allows, where there is one."""

    def __init__(self, variants: Mapping[str, VariantLimits] = VARIANTS) -> None:
        super().__init__(variants, keeps_tpot=True)


class SteppingAccelerator(KeepingAccelerator):
    """Takes each iteration by itself: what the jumps over many must agree with."""

    def _iterations_to_finish(self, lanes: list) -> int:
        return min(1, super()._iterations_to_finish(lanes))


@dataclass(frozen=True)
class Arrival:
    at: float
    job: Job
    cancel_at: float | None = None


@st.composite
def traces(draw: st.DrawFn, *, cancels: bool = False) -> list[Arrival]:
    # A few distinct gaps, zero among them, so that arrivals coincide with each other.
    gaps = st.sampled_from([0.0, 0.0, 0.001, 0.013, 0.2]) | st.floats(0, 2)
    arrivals, at = [], 0.0
    some_s: list[float | None] = [None, 0.003, ROUND_S, 0.05, 0.2]
    tpots_s = draw(st.sampled_from([some_s[:1], some_s]))
    for index in range(draw(st.integers(1, 14))):
        at += draw(gaps)
        prompt = draw(st.integers(1, 300) | st.integers(300, 9500))
        job = Job(
            id=str(index),
            variant=draw(st.sampled_from(["llama", "small"])),
            input_tokens=prompt,
            output_tokens=draw(st.integers(0, 3) | st.integers(0, 400)),
            cached_tokens=draw(st.sampled_from([0, prompt // 2, prompt])),
            priority=draw(st.integers(0, 1)),
            tpot_s=draw(st.sampled_from(tpots_s)),
            due_at=at + draw(st.sampled_from([inf, 0.05, 0.5, 5.0])),
        )
        cancel = draw(st.none() | st.floats(0, 3)) if cancels else None
        arrivals.append(Arrival(at, job, None if cancel is None else at + cancel))
    return arrivals


def play(
    accelerator: Accelerator, arrivals: list[Arrival], polls: tuple[float, ...] = ()
) -> list[Event]:
    """Submit, cancel and poll in order of time, then run dry."""
    actions = [(arrival.at, 0, arrival) for arrival in arrivals]
    actions += [(arrival.cancel_at, 1, arrival) for arrival in arrivals if arrival.cancel_at]
    actions += [(at, 2, None) for at in polls]
    events: list[Event] = []
    for at, kind, arrival in sorted(actions, key=lambda action: action[:2]):
        if kind == 0:
            accelerator.submit(arrival.job, at)
        elif kind == 1:
            accelerator.cancel(arrival.job.id, at)
        else:
            events += accelerator.advance(at)
        if polls:
            accelerator.next_event_at()
    return events + drain(accelerator)


def at_of(event: Event) -> float:
    return event.finished_at if isinstance(event, Completion) else event.at


@unhurried
@given(traces(cancels=True))
def test_every_job_ends_exactly_once_and_events_come_in_order(arrivals: list[Arrival]) -> None:
    events = play(KeepingAccelerator(), arrivals)
    ended = Counter(event.id for event in events if not isinstance(event, FirstToken))
    assert ended == Counter(arrival.job.id for arrival in arrivals)
    assert [at_of(event) for event in events] == sorted(at_of(event) for event in events)
    for done in completions(events).values():
        output_tokens = next(a.job.output_tokens for a in arrivals if a.job.id == done.id)
        told = [event.at for event in events if event == FirstToken(done.id, done.first_token_at)]
        assert len(told) == (output_tokens > 0)


@unhurried
@given(traces(cancels=True))
def test_the_shares_of_all_jobs_are_the_busy_time(arrivals: list[Arrival]) -> None:
    accelerator = KeepingAccelerator()
    events = play(accelerator, arrivals)
    shares_s = [event.device_s for event in events if isinstance(event, Completion | Cancelled)]
    assert min(shares_s, default=0) >= 0
    assert sum(shares_s) == pytest.approx(accelerator.busy_s, rel=1e-9)


@unhurried
@given(traces())
def test_nothing_is_faster_than_physics(arrivals: list[Arrival]) -> None:
    done = completions(play(KeepingAccelerator(), arrivals))
    for arrival in arrivals:
        job, roofline = arrival.job, VARIANTS[arrival.job.variant].roofline
        if job.id not in done:
            continue
        flop = 2 * roofline.active_parameters * max(1, job.input_tokens - job.cached_tokens)
        times = done[job.id]
        assert arrival.at <= times.started_at
        assert times.first_token_at >= times.started_at + flop / roofline.flops
        stream_s = roofline.weights_bytes / roofline.bandwidth_bytes_per_s
        steps = max(0, job.output_tokens - 1)
        assert times.finished_at >= times.first_token_at + steps * stream_s


@unhurried
@given(traces(cancels=True))
def test_batch_and_memory_limits_hold_after_every_iteration(arrivals: list[Arrival]) -> None:
    accelerator = SteppingAccelerator()
    for arrival in sorted(arrivals, key=lambda arrival: arrival.at):
        accelerator.submit(arrival.job, arrival.at)
        while (at := accelerator.next_event_at()) is not None:
            assert accelerator.running_of("llama") <= 4
            assert accelerator.running_of("small") <= 3
            assert accelerator.kv_usage <= 1
            if at > arrival.at + 0.3:
                break
            accelerator.advance(at)
            if arrival.cancel_at is not None and arrival.cancel_at <= at:
                accelerator.cancel(arrival.job.id, at)
    drain(accelerator)
    assert accelerator.kv_usage == accelerator.running == accelerator.queued == 0


@unhurried
@given(traces())
def test_admission_follows_priority_then_what_is_due_then_arrival(arrivals: list[Arrival]) -> None:
    done = completions(play(KeepingAccelerator(), arrivals))
    admitted = [
        (
            arrival.job.variant,
            (arrival.job.priority, arrival.job.due_at, index),
            arrival.at,
            done[arrival.job.id],
        )
        for index, arrival in enumerate(arrivals)
        if arrival.job.id in done
    ]
    for variant, rank, at, times in admitted:
        for other_variant, other_rank, _, other_times in admitted:
            if variant == other_variant and rank < other_rank:
                # Who ranks first is not overtaken by one that began after it had come.
                assert times.started_at <= other_times.started_at or other_times.started_at < at


@unhurried
@given(traces(cancels=True), st.lists(st.floats(0, 8), min_size=1, max_size=40))
def test_polling_changes_nothing(arrivals: list[Arrival], polls: list[float]) -> None:
    unpolled = play(KeepingAccelerator(), arrivals)
    polled = play(KeepingAccelerator(), arrivals, tuple(polls))
    assert polled == unpolled


@unhurried
@given(traces(cancels=True))
def test_jumping_over_iterations_equals_taking_each(arrivals: list[Arrival]) -> None:
    jumped = play(KeepingAccelerator(), arrivals)
    stepped = play(SteppingAccelerator(), arrivals)
    assert [type(event) for event in jumped] == [type(event) for event in stepped]
    for one_event, other_event in zip(jumped, stepped, strict=True):
        assert one_event.id == other_event.id
        assert at_of(one_event) == pytest.approx(at_of(other_event), rel=1e-9)
        if isinstance(one_event, Completion):
            assert one_event.device_s == pytest.approx(other_event.device_s, rel=1e-9)


@pytest.mark.parametrize("seed", range(40))
def test_a_short_reply_keeps_a_tpot_of_a_round_of_short_chunks(seed: int) -> None:
    draw = random.Random(seed)
    arrivals, at = [], 0.0
    for index in range(200):
        # Each variant is busy for less than half of the time, in bursts.
        at += draw.choice([0.0, 0.005, 0.1])
        tokens = draw.choice([draw.randint(1, 300), draw.randint(300, 4_000)])
        variant, reply = draw.choice(["llama", "small"]), draw.randint(2, 6)
        tpot_s = draw.choice([ROUND_S, 2 * ROUND_S])
        arrivals.append(Arrival(at, Job(str(index), variant, tokens, reply, tpot_s=tpot_s)))
    variants = {
        name: replace(limits, roofline=replace(limits.roofline, prompt_overhead_s=0.005))
        for name, limits in VARIANTS.items()
    }
    done = completions(play(KeepingAccelerator(variants), arrivals))
    for job in (arrival.job for arrival in arrivals):
        took_s = done[job.id].finished_at - done[job.id].first_token_at
        assert took_s <= (job.output_tokens - 1) * job.tpot_s + CONTEXT_S


@unhurried
@given(traces(cancels=True))
def test_without_a_tpot_chunks_are_whole(arrivals: list[Arrival]) -> None:
    free = [replace(each, job=replace(each.job, tpot_s=None, due_at=inf)) for each in arrivals]
    assert play(KeepingAccelerator(), free) == play(Accelerator(VARIANTS), arrivals)
