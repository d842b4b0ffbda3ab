"""A replica runs each answer of a request for itself, and tells of them as of one job."""

from heapq import heapify

import pytest
from accelerator_cases import LLAMA_8B
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import PROPERTY, bulk, some_options

from policies.fleet_state.candidate_load import PoolLoad, standing_of
from policies.hardware import iteration
from policies.hardware.answering import AnsweringReplica
from policies.hardware.iteration import (
    Cancelled,
    Completion,
    Event,
    FirstToken,
    Job,
    Refused,
    VariantLimits,
)
from policies.scoring.estimate import estimate


def a_replica(max_batch: int = 64) -> AnsweringReplica:
    return AnsweringReplica({"llama": VariantLimits(LLAMA_8B, max_batch)})


def drained(replica: AnsweringReplica, until: float = float("inf")) -> list[Event]:
    events: list[Event] = []
    while (at := replica.accelerator.next_event_at()) is not None and at <= until:
        events += replica.advance(at)
    return events


def ran(prompts: int, replies: int, tokens: tuple[int, int], max_batch: int = 64) -> Completion:
    replica = a_replica(max_batch)
    job = Job("a", "llama", prompts * tokens[0], tokens[1])
    replica.submit_answers(job, prompts, replies, 0.0)
    first, done = drained(replica)
    assert isinstance(first, FirstToken)
    assert isinstance(done, Completion)
    assert first.id == done.id == "a"
    assert done.first_token_at == first.at
    assert done.device_s == pytest.approx(replica.accelerator.busy_s)
    assert replica.accelerator.is_idle
    return done


def test_replies_share_the_prompt_and_its_memory() -> None:
    one, many = ran(1, 1, (4000, 50)), ran(1, 10, (4000, 50))
    prefill_s = LLAMA_8B.prefill_s(4000)
    assert one.first_token_at == many.first_token_at >= prefill_s
    assert many.device_s < one.device_s + 0.5 * prefill_s + 9 * one.device_s * 0.1
    replica = a_replica()
    replica.submit_answers(Job("a", "llama", 4000, 50), 1, 10, 0.0)
    drained(replica, one.first_token_at + 0.1)
    replica.advance(one.first_token_at + 0.1)
    assert replica.accelerator.running == 10
    capacity = LLAMA_8B.kv_capacity_tokens(LLAMA_8B.weights_bytes)
    assert replica.accelerator.kv_usage == pytest.approx((4000 + 10 * 50) / capacity, rel=1e-3)
    told = replica.written_of("a", one.first_token_at + 0.1)
    assert len(told) == 10
    assert 0 < min(told) <= max(told) < 50


def test_each_prompt_of_a_list_is_computed() -> None:
    one, many = ran(1, 1, (4000, 50)), ran(5, 1, (4000, 50))
    assert many.finished_at > 4.9 * LLAMA_8B.prefill_s(4000)
    assert many.device_s > one.device_s + 3.9 * LLAMA_8B.prefill_s(4000)
    # Of both: each reply of each prompt.
    both = ran(5, 3, (400, 50))
    assert both.device_s > ran(5, 1, (400, 50)).device_s
    replica = a_replica()
    replica.submit_answers(Job("e", "llama", 10, 0), 3, 4, 0.0)
    (done,) = drained(replica)
    assert isinstance(done, Completion)
    assert replica.accelerator.decoded[1] == 0


def test_a_request_that_can_never_fit_is_refused_once() -> None:
    replica = a_replica()
    capacity = LLAMA_8B.kv_capacity_tokens(LLAMA_8B.weights_bytes)
    replica.submit_answers(Job("a", "llama", 3 * capacity, 50), 2, 2, 0.0)
    told = drained(replica)
    assert [type(each) for each in told] == [Refused]
    assert told[0].id == "a"
    assert replica.written_of("a", 1.0) == [0]


@pytest.mark.parametrize("output", [0, 1, 30])
@pytest.mark.parametrize("replies", [1, 3])
def test_a_request_that_was_taken_out_before_its_end_has_not_completed(
    output: int, replies: int
) -> None:
    whole = a_replica(4)
    whole.submit_answers(Job("a", "llama", 40_000, output), 40, replies, 0.0)
    *_, done = drained(whole)
    assert isinstance(done, Completion)
    for share in (0.0, 0.001, 0.5, 0.8):
        replica = a_replica(4)
        replica.submit_answers(Job("a", "llama", 40_000, output), 40, replies, 0.0)
        drained(replica, share * done.finished_at)
        assert replica.cancel("a", share * done.finished_at)
        *_, end = drained(replica)
        assert isinstance(end, Cancelled), (share, end)
        assert end.output_tokens <= 40 * replies * output
        assert end.device_s <= done.device_s


def test_thousands_that_are_taken_out_do_not_look_at_all_each(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looks: list[int] = []

    def counted(queue: list[object]) -> None:
        looks.append(len(queue))
        heapify(queue)

    monkeypatch.setattr(iteration, "heapify", counted)
    replica = a_replica()
    replica.submit_answers(Job("a", "llama", 400 * 2048, 20), 2048, 1, 0.0)
    assert len(drained(replica, 0.2)) == 1
    assert replica.cancel("a", 0.2)
    *_, end = drained(replica)
    assert isinstance(end, Cancelled)
    assert len(looks) < 512


@PROPERTY
@given(
    st.lists(
        st.tuples(
            st.integers(1, 4), st.integers(1, 6), st.integers(1, 5000), st.integers(0, 40),
            st.floats(0, 2), st.none() | st.floats(0, 3),
        ),
        min_size=1, max_size=5,
    ),
    st.integers(1, 12),
)  # fmt: skip
def test_whatever_comes_and_goes_each_request_ends_once_and_all_time_is_charged(
    asked: list[tuple[int, int, int, int, float, float | None]], max_batch: int
) -> None:
    replica = a_replica(max_batch)
    todo = [(at, number, "come") for number, (*_, at, _) in enumerate(asked)]
    todo += [(at, n, "go") for n, (*_, at) in enumerate(asked) if at is not None]
    told: list[Event] = []
    come: set[str] = set()
    for at, number, what in sorted(todo):
        told += drained(replica, at)
        ended = {each.id for each in told if not isinstance(each, FirstToken)}
        assert replica.requests == len(come - ended)
        name, (prompts, replies, tokens, output, came_at, _) = str(number), asked[number]
        if what == "come":
            job = Job(name, "llama", prompts * tokens, output)
            replica.submit_answers(job, prompts, replies, at)
            come.add(name)
        elif at >= came_at:
            replica.cancel(name, at)
    told += drained(replica)
    ends = [each for each in told if not isinstance(each, FirstToken)]
    assert sorted(each.id for each in ends) == [str(n) for n in range(len(asked))]
    firsts = [each.id for each in told if isinstance(each, FirstToken)]
    assert len(set(firsts)) == len(firsts)
    charged_s = sum(e.device_s for e in ends if isinstance(e, Completion | Cancelled))
    assert charged_s == pytest.approx(replica.accelerator.busy_s)
    assert replica.accelerator.is_idle
    assert replica.accelerator.kv_usage == 0
    assert replica.backlog_s == 0
    assert replica.requests == 0


@pytest.mark.parametrize(
    ("prompts", "replies"), [(1, 1), (1, 8), (1, 100), (8, 1), (100, 1), (6, 5)]
)
@pytest.mark.parametrize("tokens", [(30, 200), (1500, 300), (6000, 20)])
def test_an_estimate_of_several_answers_is_what_the_device_takes(
    prompts: int, replies: int, tokens: tuple[int, int]
) -> None:
    option = some_options().of("premium", "llama-fp8")
    limits = {option.variant: VariantLimits(option.roofline, option.max_batch)}
    replica = AnsweringReplica(limits)
    job = Job("a", option.variant, prompts * tokens[0], tokens[1])
    replica.submit_answers(job, prompts, replies, 0.0)
    *_, done = drained(replica)
    assert isinstance(done, Completion)
    asked = bulk(
        input_tokens=job.input_tokens, output_tokens=tokens[1], prompts=prompts, replies=replies
    )
    found = estimate(asked, standing_of(option, PoolLoad(workers=1)), 0.0)
    assert found.cost_usd / option.usd_per_s == pytest.approx(done.device_s, rel=0.25)
    assert found.finish_s == pytest.approx(done.finished_at, rel=0.25)
