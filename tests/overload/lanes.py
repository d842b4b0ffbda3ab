"""A pool that is slow and full: what the latency of another pool's direct lane has to say to it.

python tests/overload/lanes.py
"""

import argparse
import asyncio
import copy
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from running_system import FLEET
from stream import Stream, quantiles, read_meanwhile, running, show

PHASE_S = 20.0
RATIO_MAX = 1.5


def two_pools() -> dict[str, Any]:
    """Return a fleet of two like pools, of which one runs at a fiftieth of the other's speed."""
    fast = copy.deepcopy(FLEET["pools"]["premium-eu"])
    slow = copy.deepcopy(fast)
    fast["backend"]["time_scale"], slow["backend"]["time_scale"] = 1.0, 0.02
    return {"pools": {"fast": fast, "slow": slow}}


async def run(slow_per_s: float) -> dict[str, Any]:
    """Return TTFT and end-to-end of the fast pool, alone and beside the slow one's flood."""
    fast = Stream("fast", 20.0, {"task": "chat", "constraints": {"pools": ["fast"]}})
    slow = Stream("slow", slow_per_s, {"task": "chat", "constraints": {"pools": ["slow"]}})
    async with running("lanes", two_pools()) as system:
        async with read_meanwhile(system):
            await fast.publish(system, PHASE_S)
            alone_until = time.time()
            await asyncio.gather(fast.publish(system, PHASE_S), slow.publish(system, PHASE_S))
            await asyncio.sleep(2)
        beside = fast.latencies_s(system, alone_until)
        alone = fast.latencies_s(system)[: -len(beside)]
        return {
            "alone_ttft_s": quantiles(alone),
            "beside_ttft_s": quantiles(beside),
            "median_ratio": quantiles(beside)[0] / quantiles(alone)[0],
            "p99_ratio": quantiles(beside)[1] / quantiles(alone)[1],
            "slow_published": len(slow.published_at),
            "slow_ended": dict(slow.ends(system)),
        }


def beyond(found: dict[str, Any]) -> list[str]:
    """Return which targets were missed."""
    ratios = {name: found[name] for name in ("median_ratio", "p99_ratio")}
    # What was not measured is no ratio, and has met nothing.
    return [
        f"{name}: {ratio:.2f}, where {RATIO_MAX} is the most"
        for name, ratio in ratios.items()
        if not ratio <= RATIO_MAX
    ]


def main() -> None:
    """Run, print what was measured, and fail beyond a target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow-per-s", type=float, default=60.0)
    asked = parser.parse_args()
    show(run(asked.slow_per_s), beyond)


if __name__ == "__main__":
    main()
