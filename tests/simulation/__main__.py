"""`python -m simulation`: run many seeds, or replay one and tell all that happened."""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterator

from simulation.world import problems_of, run


def replay(seed: int) -> int:
    """Run a seed and print all that happens; return 1 where something is wrong."""
    world = run(seed)
    print("\n".join(world.trace))
    print("\n".join(world.problems) or "all holds")
    return int(bool(world.problems))


def outcomes(seeds: range, jobs: int) -> Iterator[tuple[int, list[str]]]:
    """Yield each seed with what was wrong."""
    if jobs == 1:
        yield from map(problems_of, seeds)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(problems_of, seeds, chunksize=10)


def main() -> int:
    """Run what the arguments say; return 1 where a seed has failed."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    parser.add_argument("--seeds", type=int, default=2000, help="number of seeds")
    parser.add_argument("--start", type=int, default=0, help="the first seed")
    parser.add_argument(
        "--replay", type=int, nargs="+", metavar="SEED", help="run some, and print their traces"
    )
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="processes to use")
    options = parser.parse_args()
    if options.replay is not None:
        return max(map(replay, options.replay))
    began_at, failed = time.monotonic(), []
    seeds = range(options.start, options.start + options.seeds)
    for seed, problems in outcomes(seeds, options.jobs):
        if problems:
            failed.append(seed)
            print(f"seed {seed}: {'; '.join(problems)}", flush=True)
    took_s = time.monotonic() - began_at
    print(f"{options.seeds} seeds from {options.start} in {took_s:.1f} s: {len(failed)} failed")
    if failed:
        print(f"replay one with: make simulate REPLAY={failed[0]}")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
