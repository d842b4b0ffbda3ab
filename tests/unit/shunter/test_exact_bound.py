"""The lower bound on instances small enough to be solved: never above the optimum, nor a run."""

import pytest
from backtest_cases import cost_usd
from exact_instances import instance
from exact_schedule import SOLVED, cost_when_dispatched, exact_schedule

from policies import compile_options
from policies.backtest.workload import Arrival, profiles_of
from shunter.backtest.bound import lower_bound
from shunter.backtest.bound_work import volume_bound
from shunter.backtest.demand import Demand
from shunter.backtest.programme import Programme
from shunter.backtest.suite import runs


@pytest.mark.parametrize("seed", [1, 2, 3, 7, 8, 9])
def test_the_bound_is_below_the_optimum_and_the_optimum_below_every_run(seed: int) -> None:
    case = instance(seed)
    exact = exact_schedule(case)
    # The optimum is one: the accelerators of the backtest charge as much for that schedule.
    assert cost_when_dispatched(case, exact.dispatches) == pytest.approx(exact.cost_usd, rel=1e-4)
    assert 0.5 * exact.cost_usd < lower_bound(case) <= exact.cost_usd
    in_time = [
        each
        for each in runs(case, with_baselines=True)
        if all(outcome.attained for outcome in each.run.outcomes)
    ]
    assert in_time
    for each in in_time:
        assert exact.cost_usd <= cost_usd(each.run) * (1 + SOLVED), each.name


def test_a_decode_step_hides_behind_no_more_prompts_than_there_are() -> None:
    case = instance(1)
    near = case.fleet.model_copy(update={"pools": {"near": case.fleet.pools["near"]}})
    (option,) = compile_options(near).by_pool["near"]
    arrivals = [Arrival(row, 1.0, "chat", "yard-8b", 600, 200, None) for row in range(4)]
    profiles = profiles_of(arrivals, near, case.policy)
    bound_usd = volume_bound([Demand(each, 600, 200) for each in profiles], compile_options(near))
    # Each prompt is computed in two iterations at most; all other steps stream the weights.
    roofline = option.roofline
    prompts_s = 4 * (roofline.prefill_s(600) - roofline.step_overhead_s)
    steps = 4 * 199 / option.max_batch - 4 * 2
    streamed_s = steps * (roofline.weights_s + roofline.step_overhead_s)
    assert streamed_s > prompts_s > 0
    assert bound_usd >= option.usd_per_s * (prompts_s + streamed_s)


def test_a_solver_that_stops_early_gives_no_more_than_its_dual() -> None:
    programme = Programme()
    cheap, dear = programme.variable(1.0, 3.0), programme.variable(2.0)
    programme.equal.append(({cheap: 1.0, dear: 1.0}, 5.0))
    programme.at_most.append(({dear: -1.0}, -1.0))
    for method in ("highs-ds", "highs-ipm"):
        assert programme.solve(method) == pytest.approx(7.0)
