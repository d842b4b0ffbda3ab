"""The spans of a plan's bound: the busiest are found, and the dearest requests of them may miss."""

import itertools
import random
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from backtest_cases import FLEET, POLICY, sample
from hypothesis import given
from hypothesis import strategies as st

from policies import compile_options
from policies.backtest.fault_model import Reality
from policies.backtest.workload import profiles_of
from shunter.backtest.bound_work import add_work
from shunter.backtest.demand import Demand, able
from shunter.backtest.programme import Programme
from shunter.backtest.suite import Setting, run_one, shunter
from shunter.plan.busy_spans import BusySpan, busiest_spans, due_s
from shunter.plan.capacity import _demands, _single, capacity
from shunter.plan.cuts import Misses, SpanSet
from shunter.plan.market import Market, fleet_of
from shunter.plan.span_work import SpanWork

KNOWN = sample(40)
SHORT = Setting(sample(100, 10.0), FLEET, POLICY, Reality())


def demands(moments_s: list[float]) -> list[Demand]:
    """Return the sample's first requests, as if they came at these moments."""
    arrivals = [
        replace(each, arrival_s=moment_s)
        for each, moment_s in zip(KNOWN, sorted(moments_s), strict=False)
    ]
    profiles = profiles_of(arrivals, FLEET, POLICY)
    return [
        Demand(profile, profile.input_tokens, arrival.output_tokens)
        for profile, arrival in zip(profiles, arrivals, strict=True)
    ]


@given(
    st.lists(st.floats(0, 60), min_size=1, max_size=40),
    st.randoms(use_true_random=False),
    st.integers(0, 5),
)
def test_spans_are_busy_from_end_to_end_and_those_that_ask_the_most_come_first(
    moments_s: list[float], draw: random.Random, may_miss: int
) -> None:
    known = demands(moments_s)
    weights = [draw.uniform(0.1, 2.0) for _ in known]

    def asked(span: BusySpan) -> float:
        inside = sorted(w for d, w in zip(known, weights, strict=True) if span.counts(d))
        return sum(inside[: max(0, len(inside) - may_miss)]) / span.length_s

    found = busiest_spans(known, weights, may_miss, 50)
    assert len(set(found)) == len(found)
    assert [asked(span) for span in found] == sorted(map(asked, found), reverse=True)
    for span in found:
        inside = [each for each in known if span.counts(each)]
        assert min(each.profile.created_at for each in inside) == span.from_s
        assert max(map(due_s, inside)) == span.to_s
    assert busiest_spans(known, weights, may_miss, 1) == found[:1]
    if len(known) > may_miss:
        # The longest has them all.
        assert any(all(span.counts(each) for each in known) for span in found)


def test_a_burst_is_found_where_it_comes() -> None:
    known = [d for d in demands([20 + 0.01 * n for n in range(40)]) if d.profile.ttft_s == 1.5]
    spread = [
        replace(d, profile=replace(d.profile, created_at=4.0 * n)) for n, d in enumerate(known)
    ]
    (span,) = busiest_spans([*known, *spread], [1.0] * 2 * len(known), 0, 1)
    assert all(span.counts(each) for each in known)
    assert span.length_s < 2.5


@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(-3, 9)), max_size=7),
    st.integers(0, 4),
    st.dictionaries(st.sampled_from("abc"), st.integers(0, 3)),
)
def test_those_that_come_to_most_are_missed_as_far_as_they_may(
    requests: list[tuple[str, int]], of_all: int, of_class: dict[str, int]
) -> None:
    """By all sets of requests that may be missed together."""
    allowed = {task: of_class.get(task, 0) for task in "abc"}
    best = 0
    for count in range(min(of_all, len(requests)) + 1):
        for some in itertools.combinations(requests, count):
            classes = Counter(task for task, _ in some)
            if all(number <= allowed[task] for task, number in classes.items()):
                best = max(best, sum(value for _, value in some))
    found = SpanSet([], Misses(of_all, allowed), {})._missed(
        np.array([float(value) for _, value in requests]), np.array([task for task, _ in requests])
    )
    assert found == best


def test_the_bound_sees_what_comes_at_the_end_of_a_short_trace() -> None:
    """A hundred requests in 1.2 s: their first tokens are due after the last of them has come."""
    found = capacity(SHORT, Market(), [], 30)
    assert found.cuts
    half = {"silicon-us": 0.5, "cpu-eu": 9}
    assert max(cut.lacks(half) for cut in found.cuts) > 0.1


@pytest.mark.parametrize("may_miss", [0, 3])
def test_a_cut_is_worth_what_the_programme_of_its_span_costs(may_miss: int) -> None:
    """The cheapest fleet in parts of replicas, by a programme with the fleet in it."""
    options, span = _single(FLEET), BusySpan(0.0, 20.0)
    known = [d for d in _demands(SHORT) if span.counts(d)]
    able_by_id = {demand.profile.id: tuple(able(demand, options)) for demand in known}
    known = [demand for demand in known if able_by_id[demand.profile.id]]
    usd = {name: choices[0].usd_per_s * 3600 for name, choices in options.by_pool.items()}

    programme = Programme()
    rented = {name: programme.variable(price) for name, price in usd.items()}
    served: dict[tuple[str, str], list[tuple[int, Demand]]] = {}
    missed: dict[int, float] = {}
    for demand in known:
        miss = programme.variable()
        missed[miss] = 1.0
        mine = {miss: 1.0}
        for option in able_by_id[demand.profile.id]:
            column = programme.variable()
            mine[column] = 1.0
            part = span.part_of(demand, option)
            served.setdefault((option.pool, option.variant), []).append((column, part))
        programme.equal.append((mine, 1.0))
    programme.at_most.append((missed, may_miss))
    busy = {name: [programme.variable()] for name in usd}
    add_work(programme, options, served, busy)
    for name, (column,) in busy.items():
        programme.at_most.append(({column: 1.0, rented[name]: -span.length_s}, 0.0))
    least_usd = programme.solve()

    misses = Misses(may_miss, dict.fromkeys({d.profile.task for d in known}, may_miss))
    work = SpanWork.of(span, options, known, able_by_id)
    cut = SpanSet([work], misses, usd).cut({})
    assert cut is not None
    # What is rented is worth its price, and nothing is worth more.
    worth = max(weight / usd[name] for name, weight in cut.weights.items())
    assert worth == pytest.approx(1.0, rel=1e-4)
    assert cut.least == pytest.approx(least_usd, rel=1e-3)
    assert cut.least < least_usd


@pytest.mark.parametrize(
    ("task", "model", "rate", "counts"),
    [
        ("safety_classification", "llama-guard-3-8b", 4.0, {"cpu-eu": 1}),
        ("code_planning", "gpt-oss-120b", 60.0, {"silicon-us": 1}),
        ("chat", "llama-3.1-8b", 60.0, {"silicon-us": 1}),
        ("chat", "llama-3.1-70b", 10.0, {"silicon-us": 2}),
    ],
)
def test_a_busy_fleet_keeps_the_cuts_of_what_it_serves_in_time(
    task: str, model: str, rate: float, counts: dict[str, int]
) -> None:
    """Of a full fleet that runs more than that; of those that are late nothing is known."""
    arrivals = [a for a in sample(2000, rate) if (a.task, a.model) == (task, model)][:300]
    fleet = fleet_of(counts, FLEET, Market())
    options = compile_options(fleet)
    setting = Setting(arrivals, fleet, POLICY, Reality())
    outcomes = run_one("busy", setting, options, shunter(setting, options)).run.outcomes
    kept = [a for a, outcome in zip(arrivals, outcomes, strict=True) if outcome.attained]
    found = capacity(Setting(kept, FLEET, POLICY, Reality()), Market(), [], 30)
    lacking = max(cut.lacks(counts) for cut in found.cuts)
    assert lacking <= 1e-6
    assert lacking > -0.7
