"""The gap of small plans, told apart: what the search misses, and what the bound doesn't see.

    python -m benchmarks.plan_exact --requests 150 --rate 10

A few requests of the packaged sample, with a market of few replicas, so that every whole fleet
which may be rented can be judged by the replay. The cheapest of those that hold is the optimum of
what a plan is judged by. Fleets that break a cut of the bound are left out: none of them can hold
(docs/decisions/0053-cuts-of-spans.md). No assumption is made that more replicas are better.
"""

import argparse
import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace

from policies.backtest.fault_model import Reality
from policies.backtest.workload import compress
from shunter.backtest.files import read_trace
from shunter.backtest.suite import Setting
from shunter.plan.capacity import ALL, Capacity, capacity
from shunter.plan.judge import Judge, judge_here, judging
from shunter.plan.market import Market, Rentable, usd_per_hour
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


def main(arguments: Sequence[str] | None = None) -> None:
    """Print bound, optimum and plan."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=150)
    parser.add_argument("--skip", type=int, default=0, help="requests before them")
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--replicas-max", type=int, default=4, help="of each pool")
    parser.add_argument("--seconds", type=float, default=60.0, help="of the search")
    given = parser.parse_args(arguments)
    rows = compress(read_trace(None), given.rate)[given.skip : given.skip + given.requests]
    fleet = load_fleet(None)
    begin_s = rows[0].arrival_s
    arrivals = [replace(each, arrival_s=each.arrival_s - begin_s) for each in rows]
    setting = Setting(arrivals, fleet, load_policy(None), Reality())
    few = Rentable(replicas_max=given.replicas_max)
    market = Market(pools=dict.fromkeys(fleet.pools, few))

    def told(name: str, counts: dict[str, int], note: str = "") -> None:
        usd = usd_per_hour(counts, fleet, market)
        rented = ", ".join(f"{n} x {pool}" for pool, n in counts.items() if n)
        print(f"{name}: {usd:.2f} an hour: {rented}{note}", flush=True)

    span_s = arrivals[-1].arrival_s
    print(f"{len(arrivals)} requests in {span_s:.1f} s, {given.replicas_max} of each pool at most")
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


if __name__ == "__main__":
    main()
