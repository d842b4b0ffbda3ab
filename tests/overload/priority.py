"""A full pool: how much sooner tier `priority` has its first token than the default tier.

python tests/overload/priority.py
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

# What the pool below completes in a second, about; the default tier alone asks for more.
DEFAULT_PER_S, PRIORITY_PER_S = 8.0, 1.0
OUTPUT_TOKENS = 256
# Until there is a queue, and how long it is looked at.
FILL_S = 6.0
# Of the packaged policy.
PRICE_FACTOR = 2.0
RATIO_MAX = 1 / 3


def one_pool() -> dict[str, Any]:
    """Return a fleet of one pool at its true speed, with room for few at a time."""
    pool = copy.deepcopy(FLEET["pools"]["premium-eu"])
    pool["backend"]["time_scale"] = 1.0
    pool["serves"][0]["max_batch"] = 4
    return {"pools": {"premium-eu": pool}}


async def run(seconds: float, default_per_s: float) -> dict[str, Any]:
    """Return the times to the first token of both tiers while the pool is full."""
    default = Stream("default", default_per_s, {"task": "chat"}, OUTPUT_TOKENS)
    first = {"task": "chat", "service_tier": "priority"}
    priority = Stream("priority", PRIORITY_PER_S, first, OUTPUT_TOKENS)
    async with running("priority", one_pool(), {}) as system:
        async with read_meanwhile(system):
            await default.publish(system, FILL_S)
            since = time.time()
            await asyncio.gather(*(s.publish(system, seconds) for s in (default, priority)))
        await wait_for_all(system, (default, priority), 120)
        found = {s.name: s.latencies_s(system, since) for s in (default, priority)}
        charged = [e for e in system.evidence if e["step"] == "placed" and e.get("profile")]
        factors = {e["profile"]["tier"]: e["profile"].get("price_factor", 1) for e in charged}
        ttft_s = {name: quantiles(each) for name, each in found.items()}
        return {
            "ttft_s": ttft_s,
            "stages_s": {s.name: s.stages_s(system, since) for s in (default, priority)},
            "median_ratio": ttft_s["priority"][0] / ttft_s["default"][0],
            "p99_ratio": ttft_s["priority"][1] / ttft_s["default"][1],
            "price_factors": factors,
            "ends": {s.name: dict(s.ends(system)) for s in (default, priority)},
        }


def beyond(found: dict[str, Any]) -> list[str]:
    """Return which targets were missed."""
    wrong = [
        f"{name}: {found[name]:.2f}, where {RATIO_MAX:.2f} is the most"
        for name in ("median_ratio", "p99_ratio")
        # What was not measured is no ratio, and has met nothing.
        if not found[name] <= RATIO_MAX
    ]
    if found["price_factors"].get("priority") != PRICE_FACTOR:
        wrong.append(f"priority is charged {found['price_factors'].get('priority')} times its cost")
    return wrong


def main() -> None:
    """Run, print what was measured, and fail beyond a target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--default-per-s", type=float, default=DEFAULT_PER_S)
    asked = parser.parse_args()
    show(run(asked.seconds, asked.default_per_s), beyond)


if __name__ == "__main__":
    main()
