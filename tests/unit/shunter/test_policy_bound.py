"""The bound of a plan under its policy: fleets that clearly fail exclude all lesser ones."""

import itertools
import math
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor
from types import SimpleNamespace
from typing import cast

import pytest
from backtest_cases import FLEET, POLICY, sample
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from shunter.backtest.suite import Setting
from shunter.plan.judge import Case, Judge, OutOfTimeError, Tally, judging
from shunter.plan.market import Counts, Market, Offer, Rentable, devices_of, usd_per_hour
from shunter.plan.policy_bound import PolicyBound
from shunter.plan.span_work import Cut
from shunter.plan.spare_cores import SpareCores

MOST = 3
SOME = ("premium-eu", "silicon-us", "cpu-eu")
NARROW = Market(
    pools={name: Rentable(replicas_max=MOST if name in SOME else 0) for name in FLEET.pools}
)
WORK = st.fixed_dictionaries({name: st.integers(0, 4) for name in SOME})


def price(counts: Counts) -> float:
    return usd_per_hour(counts, FLEET, NARROW)


def all_fleets() -> Iterator[dict[str, int]]:
    for numbers in itertools.product(range(MOST + 1), repeat=len(SOME)):
        yield {name: count for name, count in zip(SOME, numbers, strict=True) if count}


def does(work: Mapping[str, int], counts: Counts) -> int:
    return sum(work[name] * count for name, count in counts.items())


@settings(max_examples=40)
@given(st.lists(WORK, min_size=1, max_size=3), st.integers(1, 9), st.booleans(), st.integers(1, 4))
def test_no_fleet_that_holds_is_ever_below_the_bound_and_the_last_is_near(
    works: list[dict[str, int]], need: int, is_known: bool, harm: int
) -> None:
    """Of a policy whose fleets hold if they do enough of each kind of work.

    A premium pool beside the others may do harm.
    """

    def least(counts: Counts) -> float:
        part = harm if "premium-eu" in counts else 1
        return min(does(work, counts) for work in works) / part

    holding = [counts for counts in all_fleets() if least(counts) >= need]
    if not holding:
        return
    best = min(holding, key=price)
    bound = PolicyBound(FLEET, NARROW, [], [Cut({"silicon-us": 1.0, "premium-eu": 2.0}, 0.5)])
    able = [counts for counts in holding if {"silicon-us", "premium-eu"} & counts.keys()]
    if best not in able:
        return
    bound.plan = best if is_known else None
    for _ in range(300):
        assert bound.usd_per_hour <= price(best) + 1e-6
        found = bound.next_case()
        if found is None:
            break
        counts, case = found
        assert case == ()
        bound.learn(counts, is_failing=2 * least(counts) < need)
    else:
        pytest.fail("it never ends")
    if bound.open_fleet is not None:
        # It fails, if at all, by little: nothing more can be said.
        assert 2 * least(bound.open_fleet) >= need
        assert bound.usd_per_hour == pytest.approx(price(bound.open_fleet), rel=1e-3)
    elif is_known:
        assert bound.usd_per_hour == pytest.approx(price(best), rel=1e-3)
    for counts in holding:
        assert not bound.excludes(counts)


def test_a_fleet_that_fails_covers_those_without_its_cheap_pools() -> None:
    bound = PolicyBound(FLEET, NARROW, [], [Cut({"silicon-us": 1.0}, 0.5)])
    failing = bound.covering({"silicon-us": 2, "cpu-eu": 1, "premium-eu": 0})
    assert failing.needed == {"silicon-us"}
    assert failing.covers({"silicon-us": 1})
    assert not failing.covers({"cpu-eu": 1})
    assert not failing.covers({"silicon-us": 3})


def test_a_pool_that_costs_a_tenth_of_the_bound_is_cheap_with_and_without_a_plan() -> None:
    """What a plan costs is no less than the bound: what is dear beside it is dear before, too."""
    offers = (Offer(name="one", usd_per_hour=1.2 / devices_of(FLEET.pools["lpddr-eu"])),)
    known = Market(pools={"lpddr-eu": Rentable(offers=offers)})
    for plan in (None, {"silicon-us": 8}):
        bound = PolicyBound(FLEET, known, [], [Cut({"silicon-us": 1.0}, 1.5)], plan)
        assert bound.usd_per_hour == pytest.approx(8.12)
        assert bound.covering({"silicon-us": 2, "lpddr-eu": 1, "cpu-eu": 1}).needed == {
            "silicon-us",
            "lpddr-eu",
        }


def test_a_fleet_under_way_is_not_asked_for_again_and_is_not_taken_to_have_failed() -> None:
    bound = PolicyBound(FLEET, NARROW, [], [Cut({"silicon-us": 1.0, "premium-eu": 2.0}, 0.5)])
    first, second = bound.next_case(), bound.next_case()
    assert first is not None
    assert second is not None
    assert first[0] != second[0]
    assert not bound.failing
    # Beside the cheapest that does the work are the cheap pools.
    assert first[0].keys() >= {"cpu-eu"}
    before = bound.usd_per_hour
    bound.learn(first[0], is_failing=True)
    assert bound.usd_per_hour > before
    assert bound.excludes({"silicon-us": 1})
    assert bound.excludes({"silicon-us": 1, "cpu-eu": 1})
    # Without a dear pool, or with one that it has not, a fleet is another.
    assert not bound.excludes({"cpu-eu": 1})
    assert not bound.excludes({"premium-eu": 1})
    assert not bound.excludes({"silicon-us": 1, "premium-eu": 1})


def test_a_fleet_is_asked_about_where_the_dearest_part_of_it_is_gone() -> None:
    cases: list[Case] = [("cpu-eu",), ("silicon-us", "lpddr-us"), ("lpddr-eu",)]
    bound = PolicyBound(FLEET, NARROW, cases, [Cut({"silicon-us": 1.0}, 0.5)])
    found = bound.next_case()
    assert found is not None
    assert found[1] == ("silicon-us", "lpddr-us")


def test_a_fleet_is_left_open_only_when_it_bears_each_case() -> None:
    """One that bears the dearest case may fail another, in which others are asked about then."""
    few = Market(pools={n: Rentable(replicas_max=1 if n in SOME[1:] else 0) for n in FLEET.pools})
    cases: list[Case] = [("cpu-eu",), ("silicon-us",), ("lpddr-eu",)]
    for fails_in, asked in ((("cpu-eu",), 2), ((), 2)):
        bound = PolicyBound(FLEET, few, cases, [Cut({"silicon-us": 1.0, "cpu-eu": 9.0}, 9.5)])
        seen: list[Case] = []
        while found := bound.next_case():
            counts, case = found
            assert counts == {"silicon-us": 1, "cpu-eu": 1}
            seen.append(case)
            bound.learn(counts, is_failing=case == fails_in)
        assert len(seen) == asked
        assert seen[:2] == [("silicon-us",), ("cpu-eu",)]
        assert bool(bound.failing) is bool(fails_in)
        assert (bound.open_fleet is None) is bool(fails_in)


def test_without_a_dear_pool_of_one_that_failed_a_fleet_is_asked_about() -> None:
    offers = {"premium-eu": (1, 9.5), "silicon-us": (1, 10.0), "cpu-eu": (12, 1.1)}
    few = Market(
        pools={
            name: Rentable(
                replicas_max=most,
                offers=(Offer(name="one", usd_per_hour=usd / devices_of(FLEET.pools[name])),),
            )
            for name in FLEET.pools
            for most, usd in [offers.get(name, (0, 1.0))]
        }
    )
    work = Cut({"premium-eu": 1.0, "silicon-us": 1.0, "cpu-eu": 0.1}, 2.0)
    bound = PolicyBound(FLEET, few, [], [work])
    found = bound.next_case()
    assert found is not None
    assert found[0] == {"premium-eu": 1, "silicon-us": 1, "cpu-eu": 12}
    bound.learn(found[0], is_failing=True)
    # That one had as many processors, and silicon beside.
    found = bound.next_case()
    assert found is not None
    assert found[0] == {"premium-eu": 1, "cpu-eu": 12}
    assert bound.usd_per_hour == pytest.approx(20.5)


def test_fleets_are_asked_about_first_where_others_have_failed() -> None:
    few = Market(
        pools={
            n: Rentable(replicas_max={"silicon-us": 3, "cpu-eu": 1}.get(n, 0)) for n in FLEET.pools
        }
    )
    cases: list[Case] = [("cpu-eu",), ("silicon-us",)]
    bound = PolicyBound(FLEET, few, cases, [Cut({"silicon-us": 1.0, "cpu-eu": 9.0}, 9.5)])
    seen: list[tuple[int, Case]] = []
    while found := bound.next_case():
        counts, case = found
        seen.append((counts["silicon-us"], case))
        bound.learn(counts, is_failing=case == ("cpu-eu",))
    assert seen == [
        (1, ("silicon-us",)),
        (1, ("cpu-eu",)),
        (2, ("cpu-eu",)),
        (3, ("cpu-eu",)),
    ]


def test_where_the_market_has_no_more_the_bound_stays() -> None:
    bound = PolicyBound(FLEET, NARROW, [], [Cut({"silicon-us": 1.0}, 0.5)])
    everything = dict.fromkeys(SOME, MOST)
    while found := bound.next_case():
        bound.learn(found[0], is_failing=True)
    assert bound.excludes(everything)
    assert 0 < bound.usd_per_hour <= price(everything)


ROWS = 300
SETTING = Setting(sample(ROWS), FLEET, POLICY, Reality())


def test_what_fails_clearly_misses_twice_as_many_as_may_and_ten_more() -> None:
    rare, usual = [f"r-{n}" for n in range(20)], [f"u-{n}" for n in range(280)]
    asked = dict.fromkeys(rare, "audio_turn") | dict.fromkeys(usual, "chat")
    # Of 300 three may miss, and of a class of 20 one.
    for missed, may in ((usual, 2 * 3 + 10), (rare, 2 * 1 + 10)):
        tally = Tally(asked, 0.99, 0.95, clearly=True)
        ended = [tally(cast(ReplayOutcome, late(name))) for name in missed[: may + 1]]
        assert ended == [False] * may + [True]
        assert tally.is_over


def late(name: str) -> SimpleNamespace:
    return SimpleNamespace(profile=SimpleNamespace(id=name), attained=False)


def test_a_fleet_without_any_pool_left_fails_clearly() -> None:
    judge = Judge(SETTING, Market(), 0.99, 0.95)
    enough = {"silicon-us": 6, "cpu-eu": 2}
    assert not judge.fails_clearly(enough, ())
    assert judge.fails_clearly(enough, ("silicon-us", "cpu-eu"))
    assert judge.fails_clearly({}, ())
    assert judge.fails_clearly({"lpddr-eu": 1}, ())
    # More miss there than may, but not that many.
    nearly = {"silicon-us": 3, "cpu-eu": 3}
    faster = Judge(Setting(sample(ROWS, 10.0), FLEET, POLICY, Reality()), Market(), 0.99, 0.95)
    assert faster.judge(nearly, ()).lacking
    assert not faster.fails_clearly(nearly, ())


def test_a_replay_ends_with_the_time_and_has_no_verdict() -> None:
    judge, counts = Judge(SETTING, Market(), 0.99, 0.95), {"lpddr-eu": 1}
    for judged in (judge.fails_clearly, judge.judge):
        with pytest.raises(OutOfTimeError):
            judged(counts, (), ends_at=time.monotonic())


def test_a_replay_that_the_time_ends_tells_the_bound_nothing() -> None:
    bound = PolicyBound(FLEET, NARROW, [], [Cut({"silicon-us": 1.0}, 0.5)])
    asked: list[Counts] = []

    class Late:
        """Processes without the time for any replay."""

        def submit(self, _: object, counts: Counts, *__: object) -> Future[bool]:
            asked.append(counts)
            processes.ends_at = -math.inf
            ended = Future[bool]()
            ended.set_exception(OutOfTimeError())
            return ended

    processes = SpareCores(cast(ProcessPoolExecutor, Late()), bound, math.inf, lambda _: None)
    processes.raise_bound(time.monotonic() + 60)
    assert len(asked) == 1
    assert not bound.failing
    assert bound.open_fleet is None


def test_cores_without_anything_to_judge_raise_the_bound() -> None:
    judge = Judge(SETTING, NARROW, 0.99, 0.95)
    bound = PolicyBound(FLEET, NARROW, [], [Cut({"silicon-us": 1.0}, 0.5)])
    told: list[str] = []
    with judging(judge) as pool:
        processes = SpareCores(pool, bound, time.monotonic() + 60, told.append)
        processes.raise_bound(time.monotonic() + 60)
    assert told
    assert bound.failing
    for each in bound.failing:
        assert judge.fails_clearly(each.counts, ())
    cheaper = [each for each in all_fleets() if price(each) < bound.usd_per_hour - 1e-3]
    assert cheaper
    assert not any(judge.judge(each, ()).is_kept for each in cheaper)
