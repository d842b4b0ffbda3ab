"""Ten times as much as the fleet can do, for a minute: what becomes of it.

python tests/overload/burst.py --seconds 60
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
from stream import Stream, quantiles, read_meanwhile, running, show, wait_for_all

# Requests of 64 output tokens a second that the fleet below completes, as measured by this run
# when nothing else comes.
CAPACITY_PER_S = 28.0
URGENT_PER_S = 6.0
SLO_TTFT_S = 1.5
# Of the urgent requests, how many should have their first token within that.
IN_TIME_MIN = 0.99
CALM_S = 15.0


def small_fleet() -> dict[str, Any]:
    """Return the fleet of the tests at its true speed, with room for few at a time."""
    fleet = copy.deepcopy(FLEET)
    for pool, members in (("premium-eu", 4), ("lpddr-us", 8)):
        fleet["pools"][pool]["backend"]["time_scale"] = 1.0
        fleet["pools"][pool]["count"] = 1
        fleet["pools"][pool]["serves"][0]["max_batch"] = members
    return fleet


async def run(seconds: float, times: float) -> dict[str, Any]:
    """Return what became of each stream, and how long the rest took."""
    urgent = Stream("urgent", URGENT_PER_S, {"task": "chat"})
    waits = CAPACITY_PER_S * times - URGENT_PER_S
    soon = Stream("soon", waits / 2, {"task": "summarization", "completion_window": "90s"})
    later = Stream("later", waits / 2, {"task": "summarization", "completion_window": "4m"})
    async with running("burst", small_fleet()) as system:
        async with read_meanwhile(system):
            await urgent.publish(system, CALM_S)
            calm = quantiles(urgent.latencies_s(system))
            began = time.time()
            await asyncio.gather(*(s.publish(system, seconds) for s in (urgent, soon, later)))
            ended = time.time()
        await wait_for_all(system, (urgent, soon, later), 600)
        drained_s = time.time() - ended
        burst = urgent.latencies_s(system, began)
        return {
            "calm_ttft_s": calm,
            "burst_ttft_s": quantiles(burst),
            "urgent_in_time": sum(each <= SLO_TTFT_S for each in burst)
            / len(urgent.results(system, began)),
            "drained_s": drained_s,
            "ends": {s.name: dict(s.ends(system)) for s in (urgent, soon, later)},
            "published": {s.name: len(s.published_at) for s in (urgent, soon, later)},
        }


def beyond(found: dict[str, Any]) -> list[str]:
    """Return which targets were missed; that each request has its result was seen before."""
    in_time = found["urgent_in_time"]
    if in_time >= IN_TIME_MIN:
        return []
    return [f"{in_time:.3f} of the urgent had their first token in time: {IN_TIME_MIN} at least"]


def main() -> None:
    """Run, print what came of it, and fail beyond the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--times", type=float, default=10.0, help="as much as the fleet can do")
    asked = parser.parse_args()
    show(run(asked.seconds, asked.times), beyond)


if __name__ == "__main__":
    main()
