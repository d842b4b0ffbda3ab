"""The rows of the bound's work: what any run of accelerators does keeps every one of them."""

from bisect import bisect_left
from collections import Counter, defaultdict

import pytest
from iteration_witness import (
    Iteration,
    RunRequest,
    RunWitness,
    one_option,
    reserved,
    some_runs,
    witness,
)

from policies.hardware.chunks import PREFILL_CHUNK_TOKENS, SHORT_CHUNK_TOKENS
from shunter.backtest.bound_ends import SPANS_AT_S
from shunter.backtest.bound_iterations import Kinds, add_iterations
from shunter.backtest.bound_times import Iterations, context_beyond
from shunter.backtest.programme import Programme

SOLVED = 1e-6


def kind_of(kinds: Kinds, run: RunWitness, iteration: Iteration, last_s: float) -> Iterations:
    """Return the kind that docs/bound.md says an iteration is of."""
    span = bisect_left([last_s + at for at in SPANS_AT_S], iteration.ends_at)
    span = min(span, len(kinds.others) - 1)
    if not iteration.ended and not iteration.cut:
        return kinds.others[span]
    if span:
        return kinds.chunked[-1][span]
    if iteration.cut:
        return kinds.chunked[-1][0]
    longest = max(run.demands[name].input_tokens for name in iteration.ended)
    return kinds.chunked[bisect_left(kinds.edges, longest)][0]


def rows_of(programme: Programme, run: RunWitness, last_s: float | None) -> Kinds:
    """Add the rows of what a run served, each request wholly at its option."""
    served = [(programme.variable(), demand) for demand in run.demands.values()]
    programme.equal += [({column: 1.0}, 1.0) for column, _ in served]
    busy = {programme.variable(run.option.usd_per_s): -1.0}
    kinds = add_iterations(programme, run.option, served, busy, last_s)
    programme.at_most.append((busy, 0.0))
    return kinds


def least_usd(run: RunWitness, last_s: float | None) -> float:
    """Return the least cost that the rows allow where their variables are what the run was."""
    programme = Programme()
    kinds = rows_of(programme, run, last_s)
    values: dict[Iterations, list[float]] = defaultdict(lambda: [0.0] * 6)
    for iteration in run.iterations:
        if not (iteration.reads or iteration.ended or iteration.cut):
            continue
        kind = kind_of(kinds, run, iteration, float("inf") if last_s is None else last_s)
        read = sum(context for _, context in iteration.reads) / 1000
        share = reserved(run, iteration)
        mine = (1.0, iteration.seconds, len(iteration.reads), share, read, iteration.prompt_s)
        values[kind] = [a + b for a, b in zip(values[kind], mine, strict=True)]
    for kind in kinds.every:
        count, seconds, steps, share, read, prompt_s = values[kind]
        slack = SOLVED * (1 + seconds)
        programme.at_most += [({kind.seconds: 1.0}, seconds + slack)]
        # Arithmetic of requests that don't count may be there besides.
        programme.at_most += [({kind.prompt_s: -1.0}, slack - prompt_s)]
        for column, value in zip(
            (kind.count, kind.steps, kind.reserved, kind.read),
            (count, steps, share, read),
            strict=True,
        ):
            slack = SOLVED * (1 + value)
            programme.at_most += [({column: 1.0}, value + slack), ({column: -1.0}, slack - value)]
    return programme.solve("highs-ds")


def keeps_every_row(run: RunWitness) -> bool:
    last_s = max(demand.profile.created_at for demand in run.demands.values())
    return 0 < least_usd(run, last_s) <= run.busy_s * run.option.usd_per_s * (1 + SOLVED)


@pytest.mark.parametrize("seed", range(20))
def test_every_run_keeps_every_row(seed: int) -> None:
    for run in some_runs(seed):
        assert keeps_every_row(run)
        assert 0 < least_usd(run, None) <= run.busy_s * run.option.usd_per_s * (1 + SOLVED)


@pytest.mark.parametrize("seed", range(20))
def test_every_run_keeps_every_row_where_replies_move(seed: int) -> None:
    runs = list(some_runs(seed, moves=True))
    assert all(keeps_every_row(run) for run in runs)
    assert sum(run.moved for run in runs)


def test_a_prompt_that_another_cuts_is_in_one_iteration_more_for_what_the_other_costs() -> None:
    option = one_option(4, 9_000, 0.3)
    chunk = PREFILL_CHUNK_TOKENS
    # 512 tokens of another prompt are needed to cut it, and it leaves a thousand for the next one.
    late = RunRequest("late", 0.0, 0.0, 1_512, 1, 0, 0, counts=False)
    cut = RunRequest("cut", 0.0, 0.0, chunk - 511, 1, 0, 1)
    run = witness(option, [late, cut])
    assert [(each.cut, each.ended) for each in run.iterations] == [(["cut"], []), ([], ["cut"])]
    assert keeps_every_row(run)


def test_a_prompt_beside_a_reply_without_time_is_in_an_iteration_for_each_short_chunk() -> None:
    option = one_option(4, 9_000, 0.005, keeps_tpot=True)
    urgent = RunRequest("urgent", 0.0, 0.0, 10, 100, 0, 0, tpot_s=1e-6)
    whole = RunRequest("whole", 0.1, 0.1, SHORT_CHUNK_TOKENS, 1, 0, 1)
    parted = RunRequest("parted", 0.1, 0.1, 8 * SHORT_CHUNK_TOKENS + 1, 1, 0, 1)
    run = witness(option, [urgent, whole, parted])
    assert sum(each.cut == ["parted"] for each in run.iterations) == 8
    assert not any("whole" in each.cut for each in run.iterations)
    assert keeps_every_row(run)


def test_company_of_long_contexts_makes_a_long_reply_last_for_longer() -> None:
    option = one_option(16, 200_000, 0.0)

    def with_company(replies: dict[str, int]) -> RunWitness:
        company = [
            RunRequest(name, 0.0, 0.0, 3_000, reply, 0, 0) for name, reply in replies.items()
        ]
        return witness(option, [*company, RunRequest("long", 9.0, 9.0, 3_000, 400, 0, 0)])

    # All end together, so that each step of the long reply is shared by as many as there is room.
    probe = with_company({str(n): 5_000 for n in range(15)})
    joins = next(at for at, each in enumerate(probe.iterations) if len(each.reads) == 16)
    before = Counter(name for each in probe.iterations[:joins] for name, _ in each.reads)
    run = with_company({name: steps + 400 for name, steps in before.items()})
    assert sum(len(each.reads) == 16 for each in run.iterations) == 399
    assert keeps_every_row(run)


def test_an_iteration_that_begins_before_a_span_may_end_in_it() -> None:
    option = one_option(4, 9_000, 0.0)
    long = RunRequest("long", 0.0, 0.0, 1, 400, 0, 0)
    begins, ends = (each.ends_at for each in witness(option, [long]).iterations[289:291])
    last_s = begins + 0.9 * (ends - begins)
    run = witness(option, [long, RunRequest("last", last_s, last_s, 1, 1, 1, 0)])
    assert sum(each.ends_at > last_s and bool(each.reads) for each in run.iterations) == 110
    assert keeps_every_row(run)


@pytest.mark.parametrize("tokens", [0, 9, 10, 11, 12, 14, 15, 30])
def test_what_steps_read_beyond_some_tokens_is_summed_over_each(tokens: int) -> None:
    (demand,) = witness(
        one_option(4, 9_000, 0.0), [RunRequest("one", 0.0, 0.0, 10, 6, 0, 0)]
    ).demands.values()
    contexts = [demand.input_tokens + 1 + step for step in range(demand.steps)]
    beyond = sum(max(0, context - tokens) for context in contexts)
    assert context_beyond(demand, tokens) == beyond


def test_those_runs_have_iterations_of_every_kind() -> None:
    found: set[tuple[str, int]] = set()
    for run in (each for seed in range(20) for each in some_runs(seed)):
        last_s = max(demand.profile.created_at for demand in run.demands.values())
        kinds = rows_of(Programme(), run, last_s)
        for each in run.iterations:
            kind = kind_of(kinds, run, each, last_s)
            if kind in kinds.others:
                found.add(("others", kinds.others.index(kind)))
            elif kind in kinds.chunked[-1]:
                found.add(("chunked", kinds.chunked[-1].index(kind)))
            else:
                found.add(("short", len(kinds.edges)))
    assert found >= {("others", 0), ("others", 1), ("chunked", 0), ("chunked", 1)}
    assert any(name == "short" for name, _ in found)
