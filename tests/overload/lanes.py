"""A pool that is slow and full: what the latency of another pool's direct lane has to say to it.

python tests/overload/lanes.py
"""

import argparse
import asyncio
import copy
import logging
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import orjson
from stream import Stream, quantiles, read_on
from system import FLEET, System

from topics.broker import EmbeddedBroker

PHASE_S = 20.0


def two_pools() -> dict[str, Any]:
    """Return a fleet of two like pools, of which one runs at a fiftieth of the other's speed."""
    fast = copy.deepcopy(FLEET["pools"]["premium-eu"])
    slow = copy.deepcopy(fast)
    fast["backend"]["time_scale"], slow["backend"]["time_scale"] = 1.0, 0.02
    return {"pools": {"fast": fast, "slow": slow}}


async def run(slow_per_s: float) -> dict[str, Any]:
    """Return TTFT and end-to-end of the fast pool, alone and beside the slow one's flood."""
    directory = Path(tempfile.mkdtemp(prefix="shunter-lanes-"))
    fast = Stream("fast", 20.0, {"task": "chat", "constraints": {"pools": ["fast"]}})
    slow = Stream("slow", slow_per_s, {"task": "chat", "constraints": {"pools": ["slow"]}})
    with EmbeddedBroker(data_dir=directory / "kafka") as broker:
        async with System(
            broker.bootstrap_servers, "lanes", directory, fleet=two_pools(), policy_speed=1.0
        ) as system:
            system.start_all()
            await asyncio.sleep(5)
            reading = asyncio.create_task(read_on(system))
            await fast.publish(system, PHASE_S)
            alone_until = time.time()
            await asyncio.gather(fast.publish(system, PHASE_S), slow.publish(system, PHASE_S))
            await asyncio.sleep(2)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            beside = fast.latencies_s(system, alone_until)
            alone = fast.latencies_s(system)[: -len(beside)]
            found = {
                "alone_ttft_s": quantiles(alone),
                "beside_ttft_s": quantiles(beside),
                "median_ratio": quantiles(beside)[0] / quantiles(alone)[0],
                "p99_ratio": quantiles(beside)[1] / quantiles(alone)[1],
                "slow_published": len(slow.published_at),
                "slow_ended": dict(slow.ends(system)),
            }
            for name in list(system.processes):
                system.kill(name)
            return found


def main() -> None:
    """Run, and print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--slow-per-s", type=float, default=60.0)
    asked = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    print(orjson.dumps(asyncio.run(run(asked.slow_per_s)), option=orjson.OPT_INDENT_2).decode())


if __name__ == "__main__":
    main()
