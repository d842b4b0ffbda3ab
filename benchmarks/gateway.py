"""``python -m benchmarks.gateway``: what the way through the gateway adds to a model server's own.

The server answers at once. Beside the gateway (gateway, router, worker, broker, each request twice
through Kafka, with evidence), LiteLLM's proxy may stand before the same server: ``--litellm`` names
the program, from an environment of its own (``pip install 'litellm[proxy]'``).
"""

import argparse
import asyncio
import contextlib
import math
import os
import random
import secrets
import signal
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import yaml

from benchmarks.cluster_fixture import Ground, ground, machine
from topics.embedded_broker.broker import EmbeddedBroker
from topics.embedded_broker.settings import free_port

MODEL, POOL = "served", "served-eu"
RATES, SECONDS, WARM_S = (50, 200), 8.0, 2.0
READY_S_MAX = 60.0
SEED = 1
# LiteLLM refuses to start with a weak one.
KEY = f"sk-{secrets.token_hex(32)}"
BURST = 64
STREAMS, MEASURED, OPEN, AT_ONCE = 200, 100, 1000, 20
# Below any server's own: LiteLLM's closes a connection that was idle for 5 s, and whoever sends on
# it in that moment is disconnected.
KEEP_ALIVE_S = 2.0


@dataclass(frozen=True)
class Side:
    """A way to the server: its name, its URL, and the process whose memory counts."""

    name: str
    url: str
    pid: int | None = None


def fleet_text(base_url: str) -> str:
    """Return a fleet of one pool before the server."""
    shape = {"parameters_b": 8.03, "layers": 32, "kv_heads": 8, "head_dim": 128}
    served = {"model": MODEL, "variant": "served-fp8", "precision": "fp8", "max_batch": 1024}
    pool = {"device": "h200", "count": 1, "region": "eu-west", "serves": [served]}
    pool["backend"] = {"type": "openai", "base_url": base_url}
    models = {MODEL: shape | {"context_tokens": 131072}}
    return yaml.safe_dump({"models": models, "pools": {POOL: pool}})


async def ask(session: aiohttp.ClientSession, url: str, said: str = "hi") -> float:
    """Ask for one answer, and return the seconds that it took."""
    began_at = time.perf_counter()
    body = {"model": MODEL, "messages": [{"role": "user", "content": said}]}
    async with session.post(f"{url}/chat/completions", json=body) as answer:
        told = await answer.read()
        if answer.status != 200:
            raise RuntimeError(f"{url} answered {answer.status}: {told[:300]!r}")
    return time.perf_counter() - began_at


async def keep_pace(session: aiohttp.ClientSession, url: str, rate: int, s: float) -> list[float]:
    """Ask at a steady rate, arrivals by chance, and return how long each answer took."""
    gaps, due, asked = random.Random(SEED), time.perf_counter(), []
    for _ in range(int(rate * s)):
        due += gaps.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        asked.append(asyncio.create_task(ask(session, url)))
    return await asyncio.gather(*asked)


async def most_per_s(session: aiohttp.ClientSession, url: str, s: float) -> float:
    """Return the requests/s of so many clients that each ask again at once."""
    end_at, count = time.perf_counter() + s, 0

    async def client() -> None:
        nonlocal count
        while time.perf_counter() < end_at:
            await ask(session, url)
            count += 1

    began_at = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(BURST)))
    return count / (time.perf_counter() - began_at)


async def first_piece(session: aiohttp.ClientSession, url: str) -> tuple[Any, float]:
    """Open a stream that stays; return it, and the seconds from the piece's writing to here."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hold"}], "stream": True}
    # Longer than the opening of all takes, for who knows it.
    lasts = {"X-Shunter-Deadline": "10m"}
    answer = await session.post(f"{url}/chat/completions", json=body, headers=lasts)
    told = b""
    while line := await answer.content.readline():
        now, told = time.time(), line
        choices = orjson.loads(line[6:])["choices"] if line.startswith(b"data: {") else []
        if choices and (written := choices[0]["delta"].get("content")):
            return answer, now - float(written)
    raise RuntimeError(f"{url}: {answer.status}, a stream without a piece: {told[:300]!r}")


def rss_mb(pid: int) -> float:
    """Return the memory of a process, in MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def p99(values: Sequence[float]) -> float:
    """Return the 99th percentile."""
    return sorted(values)[math.ceil(0.99 * len(values)) - 1]


def told(values: Sequence[float]) -> str:
    """Return median and 99th percentile of seconds, in milliseconds."""
    return f"p50 {statistics.median(values) * 1e3:.1f} ms, p99 {p99(values) * 1e3:.1f} ms"


async def speed(session: aiohttp.ClientSession, side: Side, asked: argparse.Namespace) -> None:
    """Print latencies at each rate, and the most requests/s."""
    await keep_pace(session, side.url, min(asked.rates), WARM_S)
    for rate in asked.rates:
        took = await keep_pace(session, side.url, rate, asked.seconds)
        print(f"{side.name:9} {rate:4}/s: {told(took)}", flush=True)
    print(f"{side.name:9} most: {await most_per_s(session, side.url, 5.0):.0f}/s", flush=True)


async def streams(session: aiohttp.ClientSession, side: Side) -> None:
    """Print how late first pieces come beside open streams, and what 1,000 of these take."""
    before, held, late = rss_mb(side.pid or os.getpid()), [], []
    for number in range(STREAMS + MEASURED):
        answer, late_s = await first_piece(session, side.url)
        held.append(answer)
        if number >= STREAMS:
            late.append(late_s)
    while len(held) < OPEN:
        more = await asyncio.gather(*(first_piece(session, side.url) for _ in range(AT_ONCE)))
        held += [answer for answer, _ in more]
    after = rss_mb(side.pid or os.getpid())
    print(f"{side.name:9} first piece beside {STREAMS} open streams: {told(late)}")
    memory = f"{after:.0f} MB, before {before:.0f} MB"
    print(f"{side.name:9} {OPEN} open streams: {memory}", flush=True)
    for answer in held:
        answer.close()


def start_shunter(here: Ground, base_url: str) -> Side:
    """Start a router, a worker and a gateway."""
    fleet, port = here.directory / "fleet.yaml", free_port()
    fleet.write_text(fleet_text(base_url))
    own = {"SHUNTER_FLEET": str(fleet), "SHUNTER_IN_FLIGHT_MAX": "4096"}
    here.start("shunter", "router", **own)
    here.start("shunter", "worker", POOL, **own)
    door = {"SHUNTER_GATEWAY_PORT": str(port), "SHUNTER_GATEWAY_OPEN_MAX": "4096"}
    process = here.start("shunter", "gateway", **own, **door)
    return Side("gateway", f"http://127.0.0.1:{port}/v1", process.pid)


def start_litellm(program: str, here: Ground, base_url: str) -> Side:
    """Start LiteLLM's proxy with one worker, as it comes, before the same server."""
    port = free_port()
    params = {"model": f"openai/{MODEL}", "api_base": base_url, "api_key": KEY}
    models = [{"model_name": MODEL, "litellm_params": params}]
    settings = {"model_list": models, "general_settings": {"master_key": KEY}}
    config = here.directory / "litellm.yaml"
    config.write_text(yaml.safe_dump(settings))
    with (here.directory / f"{here.prefix}-{len(here.processes)}.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--config", str(config), "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
            stdout=log,
            stderr=log,
        )
    here.processes.append(process)
    return Side("LiteLLM", f"http://127.0.0.1:{port}/v1", process.pid)


@contextlib.asynccontextmanager
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    """Provide a client without a limit of connections."""
    async with aiohttp.ClientSession(
        headers={"Authorization": f"Bearer {KEY}"},
        connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_S),
        timeout=aiohttp.ClientTimeout(total=120),
    ) as opened:
        yield opened


async def ready(session: aiohttp.ClientSession, side: Side, require: Callable[[], None]) -> None:
    """Wait until a side answers."""
    end_at = time.monotonic() + READY_S_MAX
    while True:
        require()
        with contextlib.suppress(aiohttp.ClientError, RuntimeError):
            await ask(session, side.url)
            return
        if time.monotonic() > end_at:
            raise RuntimeError(f"{side.name} does not answer within {READY_S_MAX:g} s")
        await asyncio.sleep(0.2)


async def measure(broker: EmbeddedBroker, directory: Path, asked: argparse.Namespace) -> None:
    """Start a side after the other, and print what each took."""
    port = free_port()
    base_url = f"http://127.0.0.1:{port}/v1"
    with ground(broker.bootstrap_servers, "bench-gateway", directory) as here:
        server = here.start("benchmarks.contestants.instant_server", str(port))
        async with session() as asking:
            for name in asked.side:
                if name == "gateway":
                    await here.apply([POOL])
                    side = start_shunter(here, base_url)
                elif name == "litellm":
                    side = start_litellm(asked.litellm, here, base_url)
                else:
                    side = Side("server", base_url, server.pid)
                await ready(asking, side, here.require_alive)
                if asked.streams:
                    await streams(asking, side)
                else:
                    await speed(asking, side, asked)
                for process in here.processes[1:]:
                    process.send_signal(signal.SIGTERM)
                for process in here.processes[1:]:
                    process.wait(20)
                del here.processes[1:]


def main() -> None:
    """Run the sides one after the other."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gateway", description=__doc__)
    parser.add_argument("--rates", type=int, nargs="+", default=list(RATES), help="requests/s")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="at each rate")
    parser.add_argument("--litellm", metavar="PROGRAM", default="litellm", help="its proxy")
    parser.add_argument("--streams", action="store_true", help="first pieces, and 1,000 open")
    names = ("server", "gateway", "litellm")
    parser.add_argument("--side", choices=names, action="append", help="only this one")
    asked = parser.parse_args()
    asked.side = asked.side or list(names)
    print(", ".join(f"{name}: {value}" for name, value in machine().items()), flush=True)
    with tempfile.TemporaryDirectory(prefix="shunter-bench-") as name, EmbeddedBroker() as broker:
        asyncio.run(measure(broker, Path(name), asked))


if __name__ == "__main__":
    main()
