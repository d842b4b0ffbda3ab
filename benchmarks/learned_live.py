"""Promises of a live pool that is not as declared, before and after it has learned.

    python -m benchmarks.learned_live [--requests 900] [--rate 6] [--json]

Kafka, a router and a worker run, whose simulated accelerator takes 3 times as long as declared for
prompts and first tokens, and 1.5 times for decoding, which no router is told. Requests come at
random at a rate, with prompts of 200 to 4,000 tokens and replies of 20 to 300. What was promised of
each is held against what the client could see, in the order in which they came.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from running_system import FLEET, System, eventually

from topics.embedded_broker.broker import EmbeddedBroker

POOL, MODEL = "premium-eu", "llama-3.1-8b"
TIMES = {"compute": 3.0, "prompt": 3.0, "first_token": 3.0, "memory": 1.5, "step": 1.5}
PARTS = ((0, 10), (10, 100), (100, 500), (500, 1_000_000))


async def published(system: System, requests: int, rate: float) -> list[str]:
    """Publish requests at random times, and return their ids."""
    draw, loop = random.Random(5), asyncio.get_running_loop()
    at, ids = loop.time(), []
    for number in range(requests):
        at += draw.expovariate(rate)
        await asyncio.sleep(max(0.0, at - loop.time()))
        reply = draw.randint(20, 300)
        await system.publish(
            {
                "id": f"r-{number}",
                "task": "chat",
                "body": {
                    "model": MODEL,
                    "messages": [{"role": "user", "content": "Where does this wagon go?"}],
                    "max_tokens": reply,
                },
                "hints": {"input_tokens": draw.randint(200, 4000), "output_tokens": reply},
            }
        )
        ids.append(f"r-{number}")
    return ids


async def run(requests: int, rate: float) -> list[dict[str, Any]]:
    """Return the evidence of the executed requests, in the order of their coming."""
    pool = FLEET["pools"][POOL] | {"backend": {"type": "simulated", "times": TIMES}}
    fleet = {"pools": {POOL: pool}}
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as directory:
        servers = broker.bootstrap_servers
        async with System(
            servers, "live", Path(directory), fleet=fleet, policy_speed=1.0
        ) as system:
            system.start_all()
            await system.warm_up()
            ids = await published(system, requests, rate)
            await system.wait_for_results(ids, timeout_s=120)

            def executed() -> dict[str, dict[str, Any]]:
                return {e["request_id"]: e for e in system.evidence if e["step"] == "executed"}

            async def all_told() -> bool:
                await system.read()
                return set(ids) <= executed().keys()

            await eventually(all_told, "evidence of all", 30)
            return [executed()[each] for each in ids]


def part(rows: list[dict[str, Any]], first: int, last: int) -> dict[str, Any]:
    """Return ratios of promised to measured latency, and their errors, of some of the requests."""
    found: dict[str, Any] = {"requests": len(rows[first:last])}
    for name in ("ttft_s", "tpot_s"):
        pairs = [(row["promised"][name], row["got"][name]) for row in rows[first:last]]
        ratios = [promised / got for promised, got in pairs if promised and got]
        if ratios:
            found[name] = {
                "promised": round(median(p for p, g in pairs if p and g), 4),
                "got": round(median(g for p, g in pairs if p and g), 4),
                "ratio": round(median(ratios), 3),
                "error": round(median(abs(each - 1.0) for each in ratios), 3),
            }
    return found


def main() -> None:
    """Run the system, and print what promises were worth."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=900)
    parser.add_argument("--rate", type=float, default=6.0, help="requests a second")
    parser.add_argument("--json", action="store_true", help="each request, too")
    options = parser.parse_args()
    rows = asyncio.run(run(options.requests, options.rate))
    for first, last in PARTS:
        if rows[first:last]:
            print(f"from {first}:", json.dumps(part(rows, first, last)))
    if options.json:
        told = [
            {n: row[n] for n in ("request_id", "at", "promised", "got", "usage")} for row in rows
        ]
        print(json.dumps(told))


if __name__ == "__main__":
    main()
