"""The gap of small plans, told apart: what the search misses, and what the bound doesn't see.

    python -m benchmarks.plan_exact --requests 150 --rate 10 [--every]

A few requests of the packaged sample, with a market of few replicas, so that every whole fleet
which may be rented can be judged by the replay. The cheapest of those that hold is the optimum of
what a plan is judged by. Fleets that break a cut of the bound are left out: none of them can hold
(docs/decisions/0053-cuts-of-spans.md). No assumption is made that more replicas are better.

With ``--every`` all of them are judged, which tells how often that assumption is wrong. On it rests
the bound under the policy (docs/decisions/0078-a-plans-bound-under-its-policy.md).
"""

import argparse
import itertools
import math
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace

from benchmarks.peak import replicas_of
from policies.backtest.fault_model import Reality
from policies.backtest.workload import compress
from shunter.backtest.files import read_trace
from shunter.backtest.suite import Setting
from shunter.plan.capacity import ALL, Capacity, capacity
from shunter.plan.cheapest_fleet import FailingFleet
from shunter.plan.judge import Judge, fails_here, judge_here, judging
from shunter.plan.market import Market, Rentable, usd_per_hour
from shunter.plan.policy_bound import PolicyBound
from shunter.plan.search import FleetSearch, NoPlanError
from streams.config.declarations import load_fleet, load_policy

WANTED = (0.99, 0.95)
# A cut is broken by no less than the solver's tolerance.
BROKEN = 1e-6
AT_ONCE = 16


def fleets(setting: Setting, market: Market, found: Capacity) -> Iterator[dict[str, int]]:
    """Yield the fleets that keep all cuts, the cheapest first."""
    pools = list(setting.fleet.pools)
    ranges = [range(market.rentable(name).replicas_max + 1) for name in pools]
    all_of_them = [dict(zip(pools, counts, strict=True)) for counts in itertools.product(*ranges)]
    kept = [f for f in all_of_them if not any(cut.lacks(f) > BROKEN for cut in found.cuts)]
    yield from sorted(kept, key=lambda each: usd_per_hour(each, setting.fleet, market))


def cheapest(
    processes: ProcessPoolExecutor, each: Iterator[dict[str, int]]
) -> tuple[dict[str, int] | None, int]:
    """Return the first that holds, and how many were judged until then."""
    judged = 0
    while some := list(itertools.islice(each, AT_ONCE)):
        verdicts = processes.map(judge_here, some, [()] * len(some))
        for counts, verdict in zip(some, verdicts, strict=True):
            judged += 1
            if verdict.is_kept:
                return counts, judged
    return None, judged


@dataclass(frozen=True)
class Verdicts:
    """What all fleets come to: those that hold, those that fail, and fail clearly."""

    holding: Sequence[dict[str, int]]
    failing: Sequence[dict[str, int]]
    clearly: Sequence[dict[str, int]]


def verdicts(judge: Judge, found: Capacity) -> Verdicts:
    """Judge each fleet that keeps all cuts."""
    every = list(fleets(judge.setting, judge.market, found))
    with judging(judge) as processes:
        kept = list(processes.map(judge_here, every, [()] * len(every), chunksize=8))
        ends_at = [math.inf] * len(every)
        fails = list(processes.map(fails_here, every, [()] * len(every), ends_at, chunksize=8))
    return Verdicts(
        [counts for counts, each in zip(every, kept, strict=True) if each.is_kept],
        [counts for counts, each in zip(every, kept, strict=True) if not each.is_kept],
        [counts for counts, each in zip(every, fails, strict=True) if each],
    )


def tell_every(judge: Judge, found: Capacity) -> None:
    """Print how often a fleet holds of which a larger one fails, and the bound under the policy."""
    seen, market = verdicts(judge, found), judge.market
    holds, fails, clearly = (len(each) for each in (seen.holding, seen.failing, seen.clearly))
    print(f"{holds + fails} fleets judged: {holds} hold, {clearly} fail clearly")
    bound, replays = PolicyBound(judge.setting.fleet, market, [], found.cuts), 0
    for told, larger in (("fails", seen.failing), ("fails clearly", seen.clearly)):
        any_pool = _pairs(seen.holding, [FailingFleet(each, frozenset()) for each in larger])
        same = _pairs(seen.holding, [bound.covering(each) for each in larger])
        print(f"pairs of one that holds and a larger one that {told}: {any_pool}", end=", ")
        print(f"of the same dear pools {same}")
    while asked := bound.next_case():
        counts, _ = asked
        # Pools that the fleet has none of stand in those that were judged.
        known = {name: counts.get(name, 0) for name in judge.setting.fleet.pools}
        bound.learn(counts, is_failing=known in seen.clearly)
        replays += 1
    print(f"bound under the policy: {bound.usd_per_hour:.2f} an hour, by {replays} replays")


def _pairs(holding: Sequence[dict[str, int]], failing: Sequence[FailingFleet]) -> int:
    return sum(each.covers(counts) for each in failing for counts in holding)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print bound, optimum and plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--skip", type=int, default=0, help="requests before them")
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--replicas-max", type=int, default=4, help="of each pool")
    parser.add_argument("--most", nargs="+", default=[], metavar="POOL=N", help="of these instead")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the search")
    parser.add_argument("--every", action="store_true", help="judge all fleets")
    given = parser.parse_args(arguments)
    rows = compress(read_trace(None), given.rate)[given.skip : given.skip + given.requests]
    fleet = load_fleet(None)
    begin_s = rows[0].arrival_s
    arrivals = [replace(each, arrival_s=each.arrival_s - begin_s) for each in rows]
    setting = Setting(arrivals, fleet, load_policy(None), Reality())
    most = dict.fromkeys(fleet.pools, given.replicas_max) | replicas_of(given.most)
    market = Market(pools={n: Rentable(replicas_max=count) for n, count in most.items()})

    def told(name: str, counts: dict[str, int], note: str = "") -> None:
        usd = usd_per_hour(counts, fleet, market)
        rented = ", ".join(f"{n} x {pool}" for pool, n in counts.items() if n)
        print(f"{name}: {usd:.2f} an hour: {rented}{note}", flush=True)

    span_s = arrivals[-1].arrival_s
    limits = ", ".join(f"{count} of {name}" for name, count in most.items())
    print(f"{len(arrivals)} requests in {span_s:.1f} s, at most {limits}")
    all_in_time = capacity(setting, market, [], given.seconds, ALL)
    print(f"bound if none may miss: {all_in_time.bound_usd_per_hour:.2f}")
    found = capacity(setting, market, [], given.seconds, WANTED)
    told("bound", found.replicas, f"; {len(found.cuts)} cuts")
    judge = Judge(setting, market, *WANTED)
    search = FleetSearch(judge, [], given.seconds, lambda _: None)
    begun = time.monotonic()
    try:
        plan = search.run(found.replicas)
    except NoPlanError as error:
        raise SystemExit(f"{error}: give more --replicas-max") from error
    note = f"; {len(search.seen)} fleets judged in {time.monotonic() - begun:.0f} s"
    told("plan", plan.counts, note)
    with judging(judge) as processes:
        best, judged = cheapest(processes, fleets(setting, market, found))
    if best is None:
        raise SystemExit(f"none of {judged} fleets holds, though the plan does: {plan.counts}")
    told("optimum", best, f"; the first to hold of {judged} fleets judged")
    if given.every:
        tell_every(judge, found)


if __name__ == "__main__":
    main()
