"""Three times as much over HTTP as a pool can do: clients that come again when they are told to.

python tests/overload/door.py --seconds 30

A pool of known capacity stands behind a gateway. Half of the clients obey `Retry-After` by a loop
of their own, half are OpenAI's; all come again until they are served. What that took is held
against one queue in which all would stand, and against the capacity. `--rate` does the same again
with a tenant's rate as the limit, not the pool.
"""

import argparse
import asyncio
import hashlib
import heapq
import itertools
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import yaml

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from gateway_cases import KEY, MODEL, Door, door, fleet, warm_up
from model_server import Exchange, ModelServer, good
from running_system import System
from stream import quantiles, running, show

SLOTS, SERVICE_S = 4, 0.5
CAPACITY_PER_S = SLOTS / SERVICE_S
TIMES = 3.0
OPEN_MAX = 40
RATE_PER_S, LIMITED_KEY = 5.0, "key-of-limited"
LAG_S = 2.0
# By the measure: time until all are served, and each one's, over the oracle's.
RATIO_MAX, GOODPUT_MIN = 1.2, 0.95
# OpenAI's clients may need more tries than their default of two where places are few.
TRIES_MAX = 60


@dataclass
class Client:
    """When a client came first, and when it had its answer; epoch seconds."""

    came_at: float
    served_at: float = 0.0
    tries: int = 0


@dataclass
class Pool:
    """A model server that answers so many at a time, each after the same time."""

    room: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(SLOTS))
    served: list[tuple[float, float]] = field(default_factory=list)
    """When it began and ended each, epoch seconds."""

    async def answer(self, x: Exchange) -> None:
        async with self.room:
            began = time.time()
            await asyncio.sleep(SERVICE_S)
            self.served.append((began, time.time()))
        await good(x)

    def service_s(self) -> float:
        """Return what one takes at the mean: more than it should on a machine that is busy."""
        return sum(end - began for began, end in self.served) / len(self.served)

    def idle(self, since: float, until: float) -> float:
        """Return the share of its room that nobody used in this time."""
        used = sum(max(0.0, min(e, until) - max(b, since)) for b, e in self.served)
        return 1.0 - used / (SLOTS * (until - since))


async def by_loop(session: aiohttp.ClientSession, url: str, number: int, client: Client) -> None:
    """Ask until there is an answer, after as many seconds as was told."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": f"question {number}"}]}
    while True:
        client.tries += 1
        async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
            told = await answer.read()
            if answer.status == 200:
                client.served_at = time.time()
                return
            if answer.status not in (429, 503):
                raise RuntimeError(f"{answer.status}: {told[:300]!r}")
            wait_s = int(answer.headers["Retry-After"])
        await asyncio.sleep(wait_s)


async def by_sdk(sdk: openai.AsyncOpenAI, number: int, client: Client) -> None:
    """Ask by OpenAI's client, which obeys by itself."""
    raw = await sdk.chat.completions.with_raw_response.create(
        model=MODEL, messages=[{"role": "user", "content": f"question {number}"}]
    )
    client.served_at, client.tries = time.time(), raw.retries_taken + 1


async def crowd(opened: Door, key: str, seconds: float, per_s: float) -> list[Client]:
    """Send clients by chance for so long, and return them when all are served."""
    chance, clients, tasks = random.Random(1), list[Client](), list[asyncio.Task[None]]()
    began, due = time.time(), 0.0
    async with (
        aiohttp.ClientSession(
            headers={"Authorization": f"Bearer {key}"},
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        ) as session,
        opened.client(api_key=key, max_retries=TRIES_MAX, timeout=600) as sdk,
    ):
        for number in itertools.count():
            due += chance.expovariate(per_s)
            if due > seconds:
                break
            await asyncio.sleep(max(0.0, began + due - time.time()))
            client = Client(time.time())
            clients.append(client)
            asking = by_sdk(sdk, number, client) if number % 2 else None
            asking = asking or by_loop(session, opened.url, number, client)
            tasks.append(asyncio.create_task(asking))
        await asyncio.gather(*tasks)
    return clients


def oracle(clients: list[Client], places: int, each_s: float) -> list[float]:
    """Return when one queue would serve each: so many at a time, each for so long."""
    free, found = [0.0] * places, []
    for client in clients:
        end = max(client.came_at, heapq.heappop(free)) + each_s
        heapq.heappush(free, end)
        found.append(end)
    return found


def judged(clients: list[Client], ends: list[float], seconds: float, per_s: float) -> Any:
    """Return what was reached."""
    began = clients[0].came_at
    waited = [client.served_at - client.came_at for client in clients]
    queued = [end - client.came_at for client, end in zip(clients, ends, strict=True)]
    # Whole seconds are told: a wait of less says nothing.
    ratios = [mine / best for mine, best in zip(waited, queued, strict=True) if best > LAG_S]
    until = max(ends) - began
    served = sum(client.served_at - began <= until for client in clients)
    return {
        "clients": len(clients),
        "capacity_per_s": per_s,
        "all_served_s": max(client.served_at for client in clients) - began,
        "oracle_all_served_s": until,
        "ratio_all_served": (max(c.served_at for c in clients) - began) / until,
        "ratio_mean_wait": sum(waited) / sum(queued),
        "ratio_each": quantiles(ratios),
        "goodput": served / (per_s * until),
        "goodput_in_overload": sum(c.served_at - began <= seconds for c in clients)
        / (per_s * seconds),
        "tries_mean": sum(client.tries for client in clients) / len(clients),
        "tries_most": max(client.tries for client in clients),
    }


async def run(seconds: float, *, by_rate: bool) -> Any:
    """Return what became of each crowd, by what turned it away."""
    pool = Pool()
    async with (
        ModelServer(pool.answer) as server,
        running("door", fleet(server.base_url)) as system,
    ):
        env = {"SHUNTER_GATEWAY_KEYS": str(_limited(system))}
        found = {}
        async with door(system, SHUNTER_GATEWAY_OPEN_MAX=str(OPEN_MAX), **env) as opened:
            async with opened.client() as client:
                await warm_up(client)
            clients = await crowd(opened, KEY, seconds, TIMES * CAPACITY_PER_S)
            # The pool as it was: what it did more slowly than it should is nobody's waiting.
            each_s = pool.service_s()
            ends = oracle(clients, SLOTS, each_s)
            found["pool"] = judged(clients, ends, seconds, SLOTS / each_s)
            came, over = clients[0].came_at, max(client.served_at for client in clients)
            spans = {"while_they_came": (came, came + seconds), "after": (came + seconds, over)}
            found["pool"]["idle"] = {name: pool.idle(*span) for name, span in spans.items()}
        if by_rate:
            async with door(system, **env) as opened:
                clients = await crowd(opened, LIMITED_KEY, seconds, TIMES * RATE_PER_S)
                ends = oracle(clients, 1, 1 / RATE_PER_S)
                found["rate"] = judged(clients, ends, seconds, RATE_PER_S)
        return found


def _limited(system: System) -> Path:
    """Give one of two tenants a rate, and return the file of their keys."""
    path = system.directory / "policy.yaml"
    policy = yaml.safe_load(path.read_text())
    policy["tenants"] = {"limited": {"share": 1, "rate_per_s": RATE_PER_S}}
    path.write_text(yaml.safe_dump(policy))
    for name in list(system.processes):
        system.kill(name)
    system.start_all()
    keys = [
        {"tenant": tenant, "sha256": hashlib.sha256(key.encode()).hexdigest()}
        for tenant, key in (("free", KEY), ("limited", LIMITED_KEY))
    ]
    found = system.directory / "keys.yaml"
    found.write_text(yaml.safe_dump({"keys": keys}))
    return found


def beyond(found: Any) -> list[str]:
    """Return which targets were missed."""
    wrong = []
    for limit, each in found.items():
        wrong += [
            f"{limit}: {name} is {each[name]:.3f}, {RATIO_MAX} at most"
            for name in ("ratio_all_served", "ratio_mean_wait")
            if each[name] > RATIO_MAX
        ]
        if each["goodput"] < GOODPUT_MIN:
            wrong.append(f"{limit}: goodput is {each['goodput']:.3f}, {GOODPUT_MIN} at least")
    return wrong


def main() -> None:
    """Run, print what came of it, and fail beyond the targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument(
        "--rate", action="store_true", help="then have a tenant's rate be the limit"
    )
    asked = parser.parse_args()
    show(run(asked.seconds, by_rate=asked.rate), beyond)


if __name__ == "__main__":
    main()
