"""Cost of a change of policy while much is held: processor time of the new windows.

python -m benchmarks.regroup
"""

import argparse
import time

from benchmarks.hold import Filled
from policies import Arrivals, Situation
from streams.batcher.partition_state import HeldPartition
from streams.batcher.payload_cache import Payloads, Room
from streams.engine.log import Partition

WAITING = 100_000
REPEATS = 5


def main() -> None:
    """Print the best of some."""
    argparse.ArgumentParser(prog="python -m benchmarks.regroup", description=__doc__).parse_args()
    filled = Filled(WAITING)
    home = Partition("held", 0)
    held = HeldPartition(home, filled.windows, Payloads(home, Room(0)))
    yard = filled.yard.situation
    here = Situation(yard.options, yard.policy, yard.view, Arrivals(1.0))
    found = []
    for _ in range(REPEATS):
        began = time.process_time()
        held.regroup(here)
        found.append(time.process_time() - began)
    print(f"{WAITING:,} held requests put into new windows: {min(found):.2f} s")


if __name__ == "__main__":
    main()
