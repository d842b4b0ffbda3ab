"""A request that may wait waits for company that was seen, by the packaged policy."""

import pytest
from backtest_cases import FLEET, POLICY, cost_usd

from policies import compile_options
from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replay import ReplayRun
from policies.backtest.workload import Arrival
from shunter.backtest.suite import Setting, run_one, shunter

OPTIONS = compile_options(FLEET)
WINDOW_S = POLICY.classes["summarization"].window_s


def summaries(*at_s: float, model: str = "llama-3.1-8b") -> ReplayRun:
    """Return what becomes of summarizations of 1,200 tokens and 300 at these times."""
    arrivals = [
        Arrival(row, at, "summarization", model, 1200, 300, None) for row, at in enumerate(at_s)
    ]
    case = Setting(arrivals, FLEET, POLICY, Reality(), keeps_candidates=True)
    return run_one("shunter", case, OPTIONS, shunter(case, OPTIONS)).run


def first_promise_usd(outcome: ReplayOutcome) -> float:
    """Return what the first decision promised, when it was placed or held."""
    candidates = outcome.sends[0].candidates
    path = "direct" if outcome.path == "direct" else "hold"
    cost_usd = next(each.cost_usd for each in candidates if each.path == path)
    assert cost_usd is not None
    return cost_usd


@pytest.mark.parametrize("model", ["llama-3.1-8b", "llama-3.1-70b"])
def test_one_that_is_alone_goes_at_once_and_costs_what_it_was_promised(model: str) -> None:
    (outcome,) = summaries(100.0, model=model).outcomes
    assert outcome.dispatched_s == pytest.approx(100.0)
    assert 0.5 < outcome.cost_usd / first_promise_usd(outcome) < 2


@pytest.mark.parametrize("gap_s", [100.0, 600.0, 601.0])
def test_one_now_and_then_goes_at_once_each_time(gap_s: float) -> None:
    run = summaries(*(100.0 + gap_s * number for number in range(6)))
    assert all(o.held_s is None for o in run.outcomes)
    assert cost_usd(run) == pytest.approx(6 * run.outcomes[0].cost_usd, rel=0.01)


def test_a_steady_trickle_shares_batches() -> None:
    alone = cost_usd(summaries(100.0))
    run = summaries(*(100.0 + 5 * number for number in range(60)))
    assert cost_usd(run) < 60 * alone / 4
    assert all(o.held_s is None or o.held_s <= WINDOW_S for o in run.outcomes)


def test_many_at_once_fill_batches() -> None:
    run = summaries(*[100.0] * 1000)
    alone = [o for o in run.outcomes if o.path == "direct"]
    assert len(alone) <= 2
    assert run.batched / run.batches > 10
    # As of a policy that expects company from the first one on.
    assert cost_usd(run) < 0.1 * 1000 * cost_usd(summaries(100.0))
    held = [o for o in run.outcomes if o.path == "batch"][10:]
    kept = [o.cost_usd / first_promise_usd(o) for o in held]
    assert 0.5 < sum(kept) / len(kept) < 2
