"""The bound of a plan by the share that is to be in time, in whole replicas and in parts of them.

    python -m benchmarks.plan_bound workload-open.csv.gz --attainment 0.99 0.998

No fleet that serves as much in time is cheaper than whole replicas; in parts the same cuts tell how
far they are from one replica more.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from policies.backtest.fault_model import Reality
from policies.backtest.workload import compress
from shunter.backtest.files import read_trace
from shunter.backtest.programme import Programme
from shunter.backtest.suite import Setting
from shunter.plan.capacity import Capacity, capacity, may_miss
from shunter.plan.market import Market, usd_per_hour
from streams.config.declarations import load_fleet, load_policy

CLASS_ATTAINMENT = 0.95
SECONDS = 120.0


def in_parts(setting: Setting, found: Capacity) -> float:
    """Return the dollars an hour of the cheapest parts of replicas that keep the cuts."""
    programme = Programme()
    columns = {
        pool: programme.variable(usd_per_hour({pool: 1}, setting.fleet, Market()))
        for pool in setting.fleet.pools
    }
    for cut in found.cuts:
        if cut.least > 0:
            row = {columns[pool]: -weight / cut.least for pool, weight in cut.weights.items()}
            programme.at_most.append((row, -1.0))
    return programme.solve()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--attainment", type=float, nargs="+", default=[0.99])
    given = parser.parse_args(arguments)
    arrivals = compress(read_trace(given.trace), given.rate)
    setting = Setting(arrivals, load_fleet(None), load_policy(None), Reality())
    print("| in time | may miss | $ an hour, in parts | in whole replicas |")
    print("| --: | --: | --: | --: |")
    for share in given.attainment:
        found = capacity(setting, Market(), (), SECONDS, (share, CLASS_ATTAINMENT))
        missed = may_miss(len(arrivals), share)
        parts = in_parts(setting, found)
        print(f"| {100 * share:g} % | {missed} | {parts:.2f} | {found.bound_usd_per_hour:.2f} |")


if __name__ == "__main__":
    main()
