"""How many requests of a trace's busiest 40 s a rented fleet serves in time.

    python -m benchmarks.peak workload-open.csv.gz --replicas silicon-us=14 cpu-eu=6
    python -m benchmarks.peak workload-open.csv.gz --replicas silicon-us=10 cpu-eu=6 --leave-out 450

The stretch is the one that `shunter plan` judges long traces in first. With ``--leave-out N`` the N
chats are left out that take the most device time: what a fleet could do whose policy knew which
requests to give up. They count as missed.
"""

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from policies import Options, compile_options
from policies.backtest.fault_model import Reality
from policies.backtest.workload import Arrival, compress
from shunter.backtest.bound_times import TokenTimes
from shunter.backtest.files import read_trace
from shunter.backtest.suite import Setting, run_one, shunter
from shunter.plan.judge import busiest
from shunter.plan.market import Market, fleet_of, usd_per_hour
from streams.config.declarations import load_fleet, load_policy

OBJECTIVES = ("missed_ttft", "missed_tpot")
# Sequences that share a decode step, about, by which chats are compared.
SHARED_BY = 16


def device_s(arrival: Arrival, options: Options, pool: str) -> float:
    """Return about how long a request takes of a pool's device; 0 where it has not the model."""
    for option in options.by_pool[pool]:
        if option.model == arrival.model:
            times = TokenTimes.of(option)
            step_s = option.roofline.step_s(SHARED_BY, SHARED_BY * arrival.input_tokens)
            decode_s = arrival.output_tokens * step_s / SHARED_BY
            return arrival.input_tokens * times.token_s + decode_s
    return 0.0


def replicas_of(words: Sequence[str]) -> dict[str, int]:
    """Return the counts in words like ``silicon-us=8``."""
    return {name: int(count) for name, count in (word.split("=") for word in words)}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print attainment and misses by class."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--rate", type=float, default=10.0)
    parser.add_argument("--replicas", nargs="+", required=True, metavar="POOL=COUNT")
    parser.add_argument("--leave-out", type=int, default=0, metavar="N")
    given = parser.parse_args(arguments)
    counts = replicas_of(given.replicas)
    declared = load_fleet(None)
    fleet = fleet_of(counts, declared, Market())
    setting = Setting(
        compress(read_trace(given.trace), given.rate), declared, load_policy(None), Reality()
    )
    stretch = busiest(setting)
    options = compile_options(fleet)
    pool = next(iter(counts))
    chats = [each for each in stretch if each.task == "chat"]
    chats.sort(key=lambda each: -device_s(each, options, pool))
    left_out = {each.row for each in chats[: given.leave_out]}
    kept = [each for each in stretch if each.row not in left_out]
    rented = replace(setting, arrivals=kept, fleet=fleet)
    run = run_one("peak", rented, options, shunter(rented, options))
    outcomes = run.run.outcomes
    missed = sum(not each.attained for each in outcomes)
    by_ttft, by_tpot = (sum(getattr(each, name) for each in outcomes) for name in OBJECTIVES)
    usd = usd_per_hour(counts, declared, Market())
    print(
        f"{usd:.2f} an hour: {missed} of {len(outcomes)} miss, {1 - missed / len(outcomes):.1%}"
        f" attained; {by_ttft} miss their TTFT, {by_tpot} their TPOT;"
        f" {len(left_out)} left out, {missed + len(left_out)} missed in all"
    )


if __name__ == "__main__":
    main()
