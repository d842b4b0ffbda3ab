"""Cost to a router of an open live page.

    python benchmarks/live_page.py [--rate 60] [--seconds 20]

Starts a Kafka, a router and a worker for each pool of the packaged fleet (simulated, at four times
its speed), publishes the packaged traffic and prints the router's processor time as a share of one
core: before the page is opened, and while its numbers are fetched every two seconds, as it does.
"""

import argparse
import asyncio
import json
import os
import sys
import tempfile
import urllib.request
from itertools import count
from pathlib import Path

import yaml

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests" / "support"))

from running_system import System, eventually

from shunter.demo.scaling import fleet_text
from shunter.demo.trace import load_rows, request_of
from streams.config.declarations import load_fleet
from topics.embedded_broker.broker import EmbeddedBroker
from topics.embedded_broker.settings import free_port

SPEED = 4.0
LOOK_EVERY_S = 2.0
SETTLE_S = 5.0


def processor_s(pid: int) -> float:
    """Return user and system time of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def publish(system: System, rate: float) -> None:
    """Publish the packaged traffic again and again, under new ids."""
    rows = load_rows()
    for number in count():
        row = rows[number % len(rows)]
        await system.publish(request_of(row) | {"id": f"{row.id}-{number}"})
        await asyncio.sleep(1 / rate)


async def look(port: int) -> dict[str, object]:
    """Fetch the numbers once."""

    def ask() -> dict[str, object]:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/view.json", timeout=10) as page:
            return dict(json.loads(page.read()))

    return await asyncio.to_thread(ask)


async def measure(servers: str, directory: Path, rate: float, seconds: float) -> None:
    """Run the system, and print."""
    port = free_port()
    fleet = yaml.safe_load(fleet_text(load_fleet(None), SPEED))
    env = {"router": {"SHUNTER_WEB_PORT": str(port)}}
    async with System(
        servers, "live-page", directory, fleet=fleet, policy_speed=SPEED, env_of=env
    ) as system:
        system.start_all()
        publishing = asyncio.create_task(publish(system, rate))
        await eventually(lambda: _has_results(system), "the first results", 60)
        await asyncio.sleep(SETTLE_S)
        router = system.processes["router"].pid

        before = processor_s(router)
        await asyncio.sleep(seconds)
        alone = processor_s(router) - before

        await look(port)
        await asyncio.sleep(SETTLE_S)
        before, looks = processor_s(router), int(seconds / LOOK_EVERY_S)
        for _ in range(looks):
            shown = await look(port)
            await asyncio.sleep(LOOK_EVERY_S)
        watched = processor_s(router) - before
        publishing.cancel()
    ended = shown["ended"]
    print(f"{ended['per_s']:.0f} requests/s ended; the router took")  # type: ignore[index]
    print(f"  {alone / seconds:.1%} of a core while nobody looked")
    print(f"  {watched / (looks * LOOK_EVERY_S):.1%} with its page open")


async def _has_results(system: System) -> bool:
    await system.read()
    return len(system.results) > 10


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rate", type=float, default=60.0, help="requests published per second")
    parser.add_argument("--seconds", type=float, default=20.0, help="length of each measurement")
    options = parser.parse_args()
    with EmbeddedBroker() as broker, tempfile.TemporaryDirectory() as directory:
        work = measure(broker.bootstrap_servers, Path(directory), options.rate, options.seconds)
        asyncio.run(work)


if __name__ == "__main__":
    main()
