"""The cost of work on premium GPUs, held against the model of both devices."""

from collections.abc import Sequence

import pytest

from policies import Option, compile_options
from policies.config.series import Series
from policies.hardware.accelerator import Accelerator, Completion, Job, VariantLimits
from policies.scoring.premium import PREMIUM, Work, premium_usd
from streams.config.declarations import load_fleet

FLEET = load_fleet(None)
OPTIONS = compile_options(FLEET)
PREMIUM_US = OPTIONS.of("premium-us", "llama-3.1-8b-fp8")


def device_s(option: Option, work: Work, together: int) -> float:
    """Return what one of so many like requests takes of a replica that serves them together."""
    limits = VariantLimits(option.roofline, option.max_batch)
    replica = Accelerator({option.variant: limits})
    for number in range(together):
        job = Job(str(number), option.variant, work.input_tokens, work.output_tokens)
        replica.submit(job, 0.0)
    ends: list[float] = []
    while (at := replica.next_event_at()) is not None:
        ends += [e.device_s for e in replica.advance(at) if isinstance(e, Completion)]
    assert len(ends) == together
    return sum(ends) / together


@pytest.mark.parametrize("together", [1, 4, 16, 60])
@pytest.mark.parametrize(
    "place", [("silicon-us", "llama-3.1-8b-fp8"), ("lpddr-eu", "llama-3.1-8b-int8")]
)
def test_it_is_what_as_many_together_take_of_a_premium_gpu(place, together):
    ran, work = OPTIONS.of(*place), Work(300, 400)
    cost_usd = device_s(ran, work, together) * ran.usd_per_s
    there_usd = device_s(PREMIUM_US, work, together) * PREMIUM_US.usd_per_s
    assert premium_usd(work, ran, cost_usd, [PREMIUM_US]) == pytest.approx(there_usd, rel=0.1)


@pytest.mark.parametrize(("prompts", "replies"), [(1, 40), (20, 1), (5, 8)])
def test_several_answers_cost_there_what_as_many_requests_do(prompts: int, replies: int) -> None:
    ran, count = OPTIONS.of("silicon-us", "llama-3.1-8b-fp8"), prompts * replies
    work = Work(prompts * 2000, count * 1000, 0, prompts, replies)
    for sharers in (1, 16):
        prefill_s = prompts * ran.roofline.prefill_s(2000)
        one = Work(2000, 1000).device_s(ran, sharers) - ran.roofline.prefill_s(2000)
        assert work.device_s(ran, sharers) == pytest.approx(prefill_s + count * one)
        assert work.sharers(ran, work.device_s(ran, sharers)) == pytest.approx(sharers, rel=1e-4)
    # A list of texts without a reply is no long text.
    vector = OPTIONS.of("premium-us", "minilm-embedding-bf16")
    listed_s, long_s = (Work(200_000, 0, 0, n).device_s(vector, 1.0) for n in (1000, 1))
    begins_s = 1000 * vector.roofline.prefill_overhead_s
    assert listed_s - begins_s < 0.5 * long_s


def test_a_prompt_alone_is_shared_by_nobody():
    ran, work = OPTIONS.of("cpu-eu", "minilm-embedding-int8"), Work(200, 0)
    there = OPTIONS.of("premium-us", "minilm-embedding-bf16")
    cost_usd = 5 * work.device_s(ran, 1) * ran.usd_per_s
    expected = there.roofline.prefill_s(200) * there.usd_per_s
    assert premium_usd(work, ran, cost_usd, [there]) == pytest.approx(expected)


def test_a_part_of_a_prompt_that_is_cached_costs_nothing_there_either():
    ran = OPTIONS.of("silicon-us", "llama-3.1-8b-fp8")
    whole, cached = (premium_usd(Work(8000, 1, n), ran, 0.001, [PREMIUM_US]) for n in (0, 6000))
    assert whole is not None
    assert cached is not None
    assert cached < 0.5 * whole


def test_the_cheapest_of_those_that_might_have_served_it_counts():
    ran, work = OPTIONS.of("silicon-us", "llama-3.1-8b-fp8"), Work(300, 400)
    able = [o for choices in OPTIONS.by_pool.values() for o in choices if o.kind == PREMIUM]
    able = [o for o in able if o.model == ran.model]
    costs = [premium_usd(work, ran, 0.0001, [option]) for option in able]
    assert len(able) > 1
    assert premium_usd(work, ran, 0.0001, able) == min(c for c in costs if c is not None)
    assert premium_usd(work, ran, 0.0001, []) is None


def test_what_ran_on_a_premium_gpu_cost_what_it_cost():
    assert premium_usd(Work(300, 400), PREMIUM_US, 0.123, []) == 0.123


@pytest.mark.parametrize("cost_usd", [0.0, 1e-12, 1.0])
def test_costs_beyond_the_model_stay_within_what_a_device_can_share(cost_usd):
    ran, work = OPTIONS.of("lpddr-us", "llama-3.1-8b-int8"), Work(300, 400)
    found = premium_usd(work, ran, cost_usd, [PREMIUM_US])
    ends: Sequence[float] = [
        work.device_s(PREMIUM_US, n) * PREMIUM_US.usd_per_s for n in (PREMIUM_US.max_batch, 1)
    ]
    assert found == pytest.approx(ends[0] if cost_usd < 0.1 else ends[1])


def test_where_prices_move_each_is_that_of_the_hour_in_which_it_ran():
    """The silicon doubles its price after an hour, the premium GPUs after two."""
    after = {"silicon-us": 3600.0, "premium-us": 7200.0}
    series, pools = {}, dict(FLEET.pools)
    for pool, at in after.items():
        devices = FLEET.pools[pool].serves[0].tensor_parallel
        usd = OPTIONS.by_pool[pool][0].usd_per_s * 3600 / devices
        series[pool] = Series(steps=((0.0, usd), (at, 2 * usd)))
        pools[pool] = FLEET.pools[pool].model_copy(update={"tariff": pool})
    options = compile_options(FLEET.model_copy(update={"pools": pools, "series": series}))
    work, ran = Work(300, 400), options.of("silicon-us", "llama-3.1-8b-fp8")
    there = options.of("premium-us", "llama-3.1-8b-fp8")
    usd = work.device_s(ran, 16) * ran.usd_per_s
    costs = [
        premium_usd(work, ran, factor * usd, [there], (at, at + 2))
        for at, factor in ((100.0, 1), (4000.0, 2), (8000.0, 2))
    ]
    assert costs[1] == pytest.approx(costs[0])
    assert costs[2] == pytest.approx(2 * costs[0])
