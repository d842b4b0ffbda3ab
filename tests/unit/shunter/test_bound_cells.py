"""The bound by cells of time: what runs of accelerators do in each keeps its rows."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from math import ceil, floor

import pytest
from backtest_cases import FLEET, POLICY
from iteration_witness import Iteration, RunRequest, RunWitness, one_option, some_runs, witness

from policies import compile_options
from policies.backtest.fault_model import Reality
from policies.backtest.workload import Arrival, profiles_of
from shunter.backtest.bound import lower_bound
from shunter.backtest.bound_bursts import bursts_bound, is_uneven
from shunter.backtest.bound_cells import WIDTHS, CellWork
from shunter.backtest.bound_streaming import streaming_bound
from shunter.backtest.bound_work import volume_bound
from shunter.backtest.demand import Demand
from shunter.backtest.programme import NoBoundError, Programme
from shunter.backtest.suite import Setting

SOLVED = 1e-6
OPTIONS = compile_options(FLEET)


def cells_of(iteration: Iteration, cell_s: float) -> Iterator[tuple[int, float]]:
    """Yield the cells that an iteration is in, each with the share of it that is there."""
    lasts_s = iteration.seconds + iteration.chunks_s
    begins_at = iteration.ends_at - lasts_s
    for at in range(floor(begins_at / cell_s), floor(iteration.ends_at / cell_s) + 1):
        inside_s = min(iteration.ends_at, (at + 1) * cell_s) - max(begins_at, at * cell_s)
        if inside_s > 0:
            yield at, inside_s / lasts_s


def least_usd(run: RunWitness, cell_s: float) -> float:
    """Return the least cost that the rows allow where their variables are what the run was."""
    programme = Programme()
    served = [(programme.variable(), demand) for demand in run.demands.values()]
    programme.equal += [({column: 1.0}, 1.0) for column, _ in served]
    count = 1 + ceil(max(each.ends_at for each in run.iterations) / cell_s)
    amounts = ("count", "seconds", "steps", "read", "prompt_s")
    values: dict[int, list[float]] = defaultdict(lambda: [0.0] * len(amounts))
    busy_s: dict[int, float] = defaultdict(float)
    for each in run.iterations:
        counts = bool(each.reads or each.ended or each.cut)
        read = sum(context for _, context in each.reads) / 1000
        mine = (1.0, each.seconds, len(each.reads), read, each.prompt_s)
        for at, share in cells_of(each, cell_s):
            busy_s[at] += share * (each.seconds + each.chunks_s)
            if counts:
                values[at] = [a + share * b for a, b in zip(values[at], mine, strict=True)]
    rows = [
        {programme.variable(run.option.usd_per_s, busy_s[at] + SOLVED): -1.0} for at in range(count)
    ]
    work = CellWork.new(programme, run.option, 0.0, cell_s, count)
    for column, demand in served:
        work.add(column, demand, is_apart=True)
    work.finish(rows)
    programme.at_most += [(row, 0.0) for row in rows]
    for at, cell in enumerate(work.cells):
        for name, value in zip(amounts, values[at], strict=True):
            column, slack = getattr(cell, name), SOLVED * (1 + value)
            programme.at_most.append(({column: 1.0}, value + slack))
            if name != "seconds":
                programme.at_most.append(({column: -1.0}, slack - value))
    return programme.solve("highs-ds")


@pytest.mark.parametrize("seed", range(20))
def test_every_run_keeps_the_rows_of_every_cell(seed: int) -> None:
    for run in some_runs(seed):
        for cell_s in (0.05, 0.5):
            usd = least_usd(run, cell_s)
            assert 0 < usd <= run.busy_s * run.option.usd_per_s * (1 + 1e-4)


def test_those_runs_have_iterations_that_cross_cells_and_requests_of_many() -> None:
    found = [run for seed in range(20) for run in some_runs(seed)]
    shares = [share for run in found for each in run.iterations for _, share in cells_of(each, 0.5)]
    assert sum(share < 1 for share in shares) > 100
    assert any(
        demand.profile.deadline - demand.profile.created_at > 0.05 * WIDTHS[5]
        for run in found
        for demand in run.demands.values()
    )


def test_a_long_reply_has_a_step_in_an_iteration_however_many_there_are_beside() -> None:
    option = one_option(16, 60_000, 0.0)
    long = RunRequest("long", 0.0, 0.0, 50, 400, 0, 0)
    alone = witness(option, [long])
    usd = alone.busy_s * option.usd_per_s
    assert cells_usd(alone) == pytest.approx(usd, rel=0.05)
    # Of others with a step each, sixteen at a time, there would be fewer iterations.
    many = witness(option, [replace(long, id=str(n), output_tokens=25) for n in range(16)])
    assert cells_usd(many) < 0.2 * usd


def cells_usd(run: RunWitness) -> float:
    """Return what the cells' rows say by themselves."""
    programme = Programme()
    work = CellWork.new(programme, run.option, 0.0, 1.0, 600)
    rows = [{programme.variable(run.option.usd_per_s): -1.0} for _ in work.cells]
    for demand in run.demands.values():
        column = programme.variable()
        programme.equal.append(({column: 1.0}, 1.0))
        work.add(column, demand, is_apart=True)
    work.finish(rows)
    programme.at_most += [(row, 0.0) for row in rows]
    return programme.solve("highs-ds")


def chats(at_s: float, count: int, output_tokens: int) -> list[Arrival]:
    return [
        Arrival(0, at_s, "chat", "llama-3.1-8b", 900, output_tokens, None) for _ in range(count)
    ]


def demands(*arrivals: Arrival) -> list[Demand]:
    profiles = profiles_of(arrivals, FLEET, POLICY)
    return [
        Demand(profile, profile.input_tokens, arrival.output_tokens, POLICY.floor_of(profile))
        for profile, arrival in zip(profiles, arrivals, strict=True)
    ]


def test_a_burst_fills_no_quiet_seconds() -> None:
    burst, quiet = bursty(60)[:60], bursty(60)[60:]
    together = bursts_bound(demands(*burst, *quiet), OPTIONS)
    apart = bursts_bound(demands(*burst), OPTIONS) + bursts_bound(demands(*quiet), OPTIONS)
    assert together == pytest.approx(apart, rel=0.05)
    every = demands(*burst, *quiet)
    assert together > 1.5 * max(volume_bound(every, OPTIONS), streaming_bound(every, OPTIONS))


def bursty(count: int) -> list[Arrival]:
    """Many chats at once, and one a second for a while."""
    found = [*chats(1.0, count, 60), *(c for at in range(12) for c in chats(30.0 + at, 1, 300))]
    return [replace(arrival, row=row) for row, arrival in enumerate(found)]


def test_the_bound_of_a_bursty_trace_is_by_cells_of_time() -> None:
    case = Setting(bursty(60), FLEET, POLICY, Reality())
    assert lower_bound(case) == pytest.approx(bursts_bound(demands(*case.arrivals), OPTIONS))


def test_a_burst_that_no_fleet_bears_leaves_the_bounds_of_longer_spans() -> None:
    only = FLEET.model_copy(update={"pools": {"silicon-us": FLEET.pools["silicon-us"]}})
    options = compile_options(only)
    served = demands(*bursty(3_000))
    with pytest.raises(NoBoundError, match="too small"):
        bursts_bound(served, options)
    expected = max(volume_bound(served, options), streaming_bound(served, options))
    case = Setting(bursty(3_000), only, POLICY, Reality())
    assert lower_bound(case) == pytest.approx(expected, rel=1e-6)


def test_a_steady_trace_is_not_uneven() -> None:
    steady = demands(*(c for at in range(60) for c in chats(float(at), 3, 200)))
    work_usd, streaming_usd = volume_bound(steady, OPTIONS), streaming_bound(steady, OPTIONS)
    assert not is_uneven(steady, OPTIONS, work_usd, streaming_usd)
    waits = [replace(d, profile=replace(d.profile, ttft_s=None)) for d in steady]
    assert not is_uneven(waits, OPTIONS, work_usd, 0.0)
