"""The measured speed of a pool: what was predicted over what it took, whatever the load does."""

import pytest
from policy_cases import some_options

from policies.hardware.accelerator import Accelerator, VariantLimits
from policies.hardware.device_time import DeviceShare
from policies.hardware.iteration import Completion, Job
from policies.learning.device_constants import Measured
from policies.learning.device_speed import NEWEST, RATIO_MAX, Pace, shared_by

OPTION = some_options().of("premium", "llama-fp8")
REPLY_TOKENS = 300


def measured(gap_s: float, *, at_start_alone: bool = False) -> float:
    """Return the speed measured of a replica as predicted, on which a job begins each ``gap_s``."""
    variant = OPTION.variant
    accelerator = Accelerator({variant: VariantLimits(OPTION.roofline, OPTION.max_batch)})
    pace, share = Pace(), DeviceShare(1)
    under_way: dict[str, tuple[Job, int, float, float]] = {}
    arrivals = [number * gap_s for number in range(OPTION.max_batch)]
    while arrivals or under_way:
        due_at = accelerator.next_event_at()
        if arrivals and (due_at is None or arrivals[0] <= due_at):
            job = Job(str(len(arrivals)), variant, 400, REPLY_TOKENS)
            now = arrivals.pop(0)
            at_start = 1 + accelerator.jobs_of(variant)
            under_way[job.id] = (job, at_start, now, share.begin(now))
            accelerator.submit(job, now)
            continue
        assert due_at is not None
        for event in accelerator.advance(due_at):
            if isinstance(event, Completion):
                job, at_start, began_at, mark = under_way.pop(event.id)
                shared = shared_by(due_at - began_at, share.end(mark, due_at))
                sequences = at_start if at_start_alone else shared
                took = Measured(event.first_token_at - began_at, due_at - began_at, sequences)
                pace.learn(OPTION, job, took, event.device_s)
    return pace.charged(OPTION.variant)


@pytest.mark.parametrize("gap_s", [0.0, 0.02, 5.0])
def test_a_replica_as_predicted_is_measured_so_while_it_fills(gap_s: float) -> None:
    assert measured(gap_s) == pytest.approx(1.0, rel=0.05)


def test_those_at_the_start_alone_would_make_it_faster_than_it_is() -> None:
    assert measured(0.0, at_start_alone=True) > 1.25 * measured(0.0)


def test_what_took_no_time_was_shared_by_nobody() -> None:
    assert [shared_by(4.0, 1.0), shared_by(4.0, 4.0), shared_by(0.0, 0.0)] == [4, 1, 1]


@pytest.mark.parametrize("times", [100.0, 0.01])
def test_one_execution_that_is_far_off_counts_for_no_more_than_a_factor_of_four(
    times: float,
) -> None:
    variant, job = OPTION.variant, Job("", OPTION.variant, 400, REPLY_TOKENS)
    usual_s = OPTION.roofline.prefill_s(400) + OPTION.roofline.decode_s(REPLY_TOKENS, 1, 400)
    pace, as_promised = Pace(), Measured(None, usual_s)
    for _ in range(200):
        pace.learn(OPTION, job, as_promised, 2.0 * usual_s)
    assert pace.speed(variant) == pytest.approx(0.5, rel=0.01)
    before = pace.speed(variant)
    pace.learn(OPTION, job, as_promised, times * usual_s)
    counts_as = RATIO_MAX if times < 1 else 1 / RATIO_MAX
    assert pace.speed(variant) == pytest.approx((counts_as / before) ** NEWEST * before)


def test_a_speed_is_known_the_better_the_more_was_measured() -> None:
    pace, job = Pace(), Job("", OPTION.variant, 400, REPLY_TOKENS)
    known = [pace.known(OPTION.variant)]
    for _ in range(200):
        pace.learn(OPTION, job, Measured(None, 1.0), 1.0)
        known.append(pace.known(OPTION.variant))
    assert known[:2] == [0.0, NEWEST]
    assert known == sorted(known)
    assert 0.99 < known[-1] <= 1.0
