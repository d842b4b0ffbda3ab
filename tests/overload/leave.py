"""Clients that leave: how long their requests run on, and where that time goes.

python tests/overload/leave.py --seconds 20

Clients of a gateway read the first piece of a stream that would never end, and close their
connection. It is told how long after that the canceller had the gateway's word, the worker told the
end of the request, and the model server saw its connection close.
"""

import argparse
import asyncio
import itertools
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from gateway_cases import KEY, MODEL, Door, door, fleet
from model_server import Exchange, ModelServer, good
from running_system import System
from stream import quantiles, read_meanwhile, running, show

PER_S = 3.0
STAYS_S = 0.5
# From the client's leaving until the server's work stops.
STOPPED_S_MAX = 1.0
GONE_S = 10.0


@dataclass
class Server:
    """A model server whose streams end only when their reader goes."""

    stopped_at: dict[str, float] = field(default_factory=dict)

    async def answer(self, x: Exchange) -> None:
        said = x.body["messages"][0]["content"]
        if not said.startswith("leave"):
            await good(x)
            return
        await x.events()
        try:
            for number in itertools.count():
                await x.event(x.piece(f"{number} "))
                await asyncio.sleep(0.02)
        finally:
            self.stopped_at[said] = time.time()


async def leaver(session: aiohttp.ClientSession, opened: Door, said: str) -> tuple[str, float]:
    """Ask, read on for a moment, and leave; return the id and when that was."""
    body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": said}]}
    async with session.post(f"{opened.url}/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        await answer.content.readline()
        await asyncio.sleep(STAYS_S)
        request_id = answer.headers["x-request-id"]
        answer.close()
        return request_id, time.time()


async def run(seconds: float) -> dict[str, Any]:
    """Return how long after its client each step came."""
    served = Server()
    async with (
        ModelServer(served.answer) as server,
        running("leave", fleet(server.base_url)) as system,
    ):
        async with door(system) as opened, read_meanwhile(system):
            async with opened.client() as client:
                await client.chat.completions.create(
                    model=MODEL, messages=[{"role": "user", "content": "hi"}]
                )
            left = await crowd(opened, seconds)
            await asyncio.sleep(GONE_S / 5)
            await system.catch_up()
        return told(system, served, left)


async def crowd(opened: Door, seconds: float) -> dict[str, tuple[str, float]]:
    """Have clients come and leave; return what each said, with its id and when it left."""
    leaving = {}
    headers = {"Authorization": f"Bearer {KEY}"}
    async with aiohttp.ClientSession(headers=headers) as session:
        for number in range(int(seconds * PER_S)):
            said = f"leave {number}"
            leaving[said] = asyncio.create_task(leaver(session, opened, said))
            await asyncio.sleep(1 / PER_S)
        return {said: await task for said, task in leaving.items()}


def told(system: System, served: Server, left: dict[str, tuple[str, float]]) -> dict[str, Any]:
    """Return the times after leaving: of each step, median and 99th percentile, and the worst."""
    steps = {(e["request_id"], e["step"]): e["at"] for e in system.evidence}
    found: dict[str, list[float]] = {"canceller": [], "told_by_worker": [], "server_stopped": []}
    for said, (request_id, left_at) in left.items():
        ends = (
            steps.get((request_id, "cancel_requested"), float("inf")),
            steps.get((request_id, "cancelled"), float("inf")),
            served.stopped_at.get(said, float("inf")),
        )
        for name, at in zip(found, ends, strict=True):
            found[name].append(at - left_at)
    return {
        "left": len(left),
        "seconds": {name: quantiles(each) for name, each in found.items()},
        "worst_s": {name: max(each) for name, each in found.items()},
    }


def beyond(found: dict[str, Any]) -> list[str]:
    """Return which target was missed."""
    worst = found["worst_s"]["server_stopped"]
    if worst <= STOPPED_S_MAX:
        return []
    return [f"one ran on for {worst:.2f} s after its client left, {STOPPED_S_MAX:g} at most"]


def main() -> None:
    """Run, print what was measured, and fail beyond the target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20.0)
    show(run(parser.parse_args().seconds), beyond)


if __name__ == "__main__":
    main()
