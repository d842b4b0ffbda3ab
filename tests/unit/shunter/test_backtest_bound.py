"""The lower bound: exact where that can be worked out by hand, and beaten by no run."""

from collections.abc import Container, Iterable
from dataclasses import replace
from typing import Any

import pytest
from backtest_cases import FLEET, POLICY, cost_usd, replay, sample, setting

from policies import Option, Options, compile_options, parse_fleet
from policies.backtest.baselines import BASELINES
from policies.backtest.fault_model import Reality
from policies.backtest.workload import Arrival, compress, profiles_of
from policies.config.prices import TokenPrice, UsdPerMillion
from policies.config.series import Series
from shunter.backtest.bound import lower_bound
from shunter.backtest.bound_bursts import bursts_bound
from shunter.backtest.bound_streaming import WINDOW_S, streaming_bound
from shunter.backtest.bound_work import volume_bound
from shunter.backtest.demand import Demand, able
from shunter.backtest.programme import NoBoundError
from shunter.backtest.suite import Setting, runs
from shunter.demo.scaling import fleet_text

OPTIONS = compile_options(FLEET)
BATCH_WORK = {"summarization", "synthetic_data", "embedding"}
MIXTURE_OF_EXPERTS = "gpt-oss-120b"


def demands(*arrivals: Arrival) -> list[Demand]:
    profiles = profiles_of(arrivals, FLEET, POLICY)
    return [
        Demand(profile, profile.input_tokens, arrival.output_tokens)
        for profile, arrival in zip(profiles, arrivals, strict=True)
    ]


def chat(at_s: float = 1.0, output_tokens: int = 400, model: str = "llama-3.1-70b") -> Arrival:
    return Arrival(0, at_s, "chat", model, 1000, output_tokens, None)


def by_cells(case: Setting, rows: Container[int]) -> float:
    """The bound by cells of time, whether or not it is worth its while."""
    served = [arrival for arrival in case.arrivals if arrival.row in rows]
    return bursts_bound(demands(*served), compile_options(case.fleet))


def anew(arrivals: Iterable[Arrival], rate: float) -> list[Arrival]:
    """Some of the sample's requests as a trace of their own."""
    return [replace(a, row=row) for row, a in enumerate(compress(arrivals, rate))]


def every_class_for_minutes() -> Setting:
    return Setting(anew(sample()[::6], 0.17), FLEET, POLICY, Reality())


def batch_work_and_experts_at_once() -> Setting:
    picked = [a for a in sample() if a.task in BATCH_WORK or a.model == MIXTURE_OF_EXPERTS]
    return Setting(anew(picked[::3], 100.0), FLEET, POLICY, Reality())


def one_pool_paid_by_tokens() -> Setting:
    rates = UsdPerMillion(input=0.02, cached_input=0.002, output=0.08)
    vendor = FLEET.pools["silicon-us"].model_copy(
        update={"token_price": TokenPrice(usd_per_million=rates)}
    )
    fleet = FLEET.model_copy(update={"pools": FLEET.pools | {"silicon-us": vendor}})
    return Setting(sample(100), fleet, POLICY, Reality())


def prices_that_move() -> Setting:
    """Batch work of some hours, while two pools are cheap in turn."""
    steps = tuple((450.0 * n, price) for n, price in enumerate((6.0, 2.0, 8.0, 1.0, 9.0, 3.0)))
    series = {"chip": Series(steps=steps), "board": Series(value=0.5)}
    tariffs = (("silicon-us", "chip"), ("lpddr-us", "board"))
    pools = {n: FLEET.pools[n].model_copy(update={"tariff": tariff}) for n, tariff in tariffs}
    fleet = FLEET.model_copy(update={"pools": FLEET.pools | pools, "series": series})
    picked = [a for a in sample() if a.task in {"summarization", "synthetic_data", "chat"}][::9]
    return Setting(anew(picked, 0.05), fleet, POLICY, Reality())


def chats_in_bursts() -> Setting:
    """Chats that come many at once, and some of them with a second between."""
    picked = [a for a in sample() if a.task in {"chat", "code"}][:160]
    at_s = [20.0 * (n // 40) + max(0.0, n % 40 - 29) for n in range(len(picked))]
    arrivals = [replace(a, row=n, arrival_s=at_s[n]) for n, a in enumerate(picked)]
    return Setting(arrivals, FLEET, POLICY, Reality())


@pytest.mark.slow
@pytest.mark.parametrize(
    "case",
    [
        pytest.param(setting(100), id="chat and the like, at low traffic"),
        pytest.param(setting(120, 20.0), id="the same at high traffic"),
        pytest.param(every_class_for_minutes(), id="all classes, over several windows"),
        pytest.param(batch_work_and_experts_at_once(), id="batch work and experts"),
        pytest.param(one_pool_paid_by_tokens(), id="a pool paid by tokens"),
        pytest.param(prices_that_move(), id="prices that move"),
        pytest.param(chats_in_bursts(), id="chats in bursts"),
    ],
)
def test_no_run_beats_the_bound_of_what_it_served_in_time(case: Setting) -> None:
    bounds: dict[frozenset[int], float] = {}
    names = set()
    for each in runs(case, with_baselines=True):
        in_time = frozenset(o.row for o in each.run.outcomes if o.attained)
        if in_time not in bounds:
            bounds[in_time] = max(lower_bound(case, in_time), by_cells(case, in_time))
        assert 0 < bounds[in_time] <= cost_usd(each.run), each.name
        names.add(each.name)
    assert names - {"shunter_price_of_now"} == {"shunter", "shunter_premium", *BASELINES}


def test_those_cases_have_every_class_and_more_than_one_window() -> None:
    long, batch = every_class_for_minutes(), batch_work_and_experts_at_once()
    assert {arrival.task for arrival in long.arrivals} == set(POLICY.classes)
    assert long.arrivals[-1].arrival_s > 2 * WINDOW_S
    assert {arrival.task for arrival in batch.arrivals} >= BATCH_WORK
    assert sum(arrival.model == MIXTURE_OF_EXPERTS for arrival in batch.arrivals) > 30


def test_no_run_beats_the_bound_in_a_distorted_reality() -> None:
    reality = Reality(speed={"silicon-us": 2.0, "lpddr-eu": 0.5}, failure_rate=0.02)
    run, _ = replay(rows=200, reality=reality)
    in_time = {outcome.row for outcome in run.outcomes if outcome.attained}
    bound_usd = lower_bound(setting(200, reality=reality), in_time)
    assert 0.2 * cost_usd(run) < bound_usd <= cost_usd(run)


def test_noise_that_nobody_knows_leaves_no_bound() -> None:
    with pytest.raises(NoBoundError, match="nobody knows"):
        lower_bound(setting(20, reality=Reality(noise=0.1)))


def test_a_fleet_that_is_simulated_at_another_speed_has_no_bound() -> None:
    quick = parse_fleet(fleet_text(FLEET, 4.0), "fleet.yaml")
    with pytest.raises(NoBoundError, match="time_scale"):
        lower_bound(replace(setting(50), fleet=quick))
    assert lower_bound(setting(50)) > 0


def test_one_request_alone_costs_its_prefill_and_decode_at_the_cheapest_pool_that_is_in_time() -> (
    None
):
    # Short enough everywhere that it is certainly under way with others.
    (alone,) = demands(chat(model="llama-3.1-8b"))
    prices = {
        option.pool: option.usd_per_s
        * (option.roofline.prefill_s(1000) + option.roofline.decode_s(400, 1, 1000))
        for option in able(alone, OPTIONS)
    }
    assert set(prices) == {"premium-us", "premium-eu", "silicon-us", "lpddr-eu"}
    bound_usd = streaming_bound([alone], OPTIONS)
    # When exactly it starts is known to a cell only.
    assert 0.7 * min(prices.values()) < bound_usd <= min(prices.values())


def test_two_that_can_decode_together_cost_little_more_and_two_apart_cost_twice() -> None:
    first, later = chat(model="llama-3.1-8b"), chat(at_s=60.0, model="llama-3.1-8b")
    alone = streaming_bound(demands(first), OPTIONS)
    together = streaming_bound(demands(first, first), OPTIONS)
    apart = streaming_bound(demands(first, later), OPTIONS)
    assert together < 1.2 * alone
    assert apart == pytest.approx(2 * alone, rel=0.02)


def test_work_grows_with_the_tokens_and_a_full_step_is_shared_by_no_more_than_its_places() -> None:
    many = demands(*(chat(output_tokens=401) for _ in range(200)))
    whole = changed(keeps_tpot=False)
    bound_usd = volume_bound(many, whole)
    assert volume_bound(many[:100], whole) == pytest.approx(bound_usd / 2, rel=1e-6)
    # With so few places the weights are streamed for longer than anything is computed.
    few = changed(max_batch=4, keeps_tpot=False)
    streamed_usd = min(
        option.roofline.step_s(1, 0) * 200 * 400 / option.max_batch * option.usd_per_s
        for option in able(many[0], few)
    )
    assert streamed_usd > 1.5 * bound_usd
    assert streamed_usd <= volume_bound(many, few) < 1.5 * streamed_usd
    assert volume_bound(many, changed(max_batch=2, keeps_tpot=False)) > 1.8 * streamed_usd


def test_short_chunks_of_prompts_may_hide_more_steps_but_no_arithmetic() -> None:
    many = demands(*(chat(output_tokens=401) for _ in range(200)))
    bound_usd = volume_bound(many, OPTIONS)
    assert bound_usd < 0.9 * volume_bound(many, changed(keeps_tpot=False))
    computed_usd = min(
        len(many) * option.roofline.token_s * (1000 + 400) * option.usd_per_s
        for option in able(many[0], OPTIONS)
    )
    assert bound_usd > computed_usd


def changed(**fields: Any) -> Options:
    """Return the packaged fleet's options with other values of some fields."""
    by_pool = {
        pool: tuple(replace(option, **fields) for option in choices)
        for pool, choices in OPTIONS.by_pool.items()
    }
    by_model: dict[str, tuple[Option, ...]] = {}
    for option in (each for choices in by_pool.values() for each in choices):
        by_model[option.model] = (*by_model.get(option.model, ()), option)
    return replace(OPTIONS, by_pool=by_pool, by_model=by_model)


def test_what_nobody_can_serve_in_time_costs_nothing() -> None:
    endless = Arrival(0, 0.0, "chat", "llama-3.1-70b", 60_000, 100, None)
    assert not list(able(demands(endless)[0], OPTIONS))
    only = Setting([endless], FLEET, POLICY, Reality())
    assert lower_bound(only) == 0.0


def test_a_cheaper_trace_has_a_lower_bound() -> None:
    whole = lower_bound(setting(120))
    part = lower_bound(setting(120), {arrival.row for arrival in sample(120)[:80]})
    assert part < whole
