"""The long chaos run: every fault in turn under load, and the table of what was seen.

python tests/chaos/run.py --rounds 3 --seed 7 --table docs/reliability.md
"""

import argparse
import asyncio
import contextlib
import logging
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

import orjson
from aiokafka.errors import KafkaError
from faults import FAULTS
from system import System, chat
from verdict import POLICY_SPEED, TIMEOUTS, problems, supervise

from topics.broker import EmbeddedBroker

Row = tuple[str, ...]

CALM_S = 7.0
MARGIN_S = 1.5


@dataclass
class Probes:
    """Direct requests, published at a steady beat; their latencies tell of a fault."""

    published: dict[str, float] = field(default_factory=dict)

    async def publish(self, system: System, per_second: int) -> None:
        """Publish until cancelled; every other request may wait."""
        count = 0
        while True:
            request_id = f"r-{count}"
            request = chat(request_id, **({"task": "summarization"} if count % 2 else {}))
            self.published[request_id] = time.time()
            # Sent, not awaited: a dead broker must not keep the next from being asked for.
            with contextlib.suppress(KafkaError):
                await system.producer.send(
                    system.catalogue.requests, orjson.dumps(request), key=request_id.encode()
                )
            count += 1
            await asyncio.sleep(1 / per_second)

    def latencies_s(self, system: System, since: float, until: float) -> list[float]:
        """Return created-to-finished of direct requests published in a span of time."""
        return [
            system.result(name)["timing"]["finished_at"] - at
            for name, at in self.published.items()
            if since <= at <= until
            and int(name[2:]) % 2 == 0
            and name in system.results
            and system.result(name)["status"] == "completed"
        ]


async def run(seed: int, rounds: int, per_second: int) -> tuple[list[Row], int]:
    """Return the rows of the table and the number of requests.

    Raises:
        SystemExit: a request was lost or doubled, or ended other than once.
    """
    rng = random.Random(seed)
    directory = Path(tempfile.mkdtemp(prefix="shunter-chaos-"))
    spans: list[tuple[str, float, float]] = []
    probes = Probes()
    with EmbeddedBroker(data_dir=directory / "kafka") as broker:
        async with System(
            broker.bootstrap_servers,
            "chaos",
            directory,
            extra_env=TIMEOUTS,
            policy_speed=POLICY_SPEED,
        ) as system:
            system.start_all()
            tasks = [
                asyncio.create_task(probes.publish(system, per_second)),
                asyncio.create_task(supervise(system)),
            ]
            await asyncio.sleep(2 * CALM_S)
            spans.append(("none", time.time() - CALM_S, time.time()))
            for number in range(rounds):
                for fault in rng.sample(FAULTS, len(FAULTS)):
                    began = time.time()
                    await fault(system, broker, rng)
                    await asyncio.sleep(CALM_S + rng.random())
                    # What comes last may still be on its way when the next fault begins.
                    spans.append((fault.__doc__ or "", began, time.time() - MARGIN_S))
                    print(f"round {number + 1}/{rounds}: {fault.__name__}", flush=True)
            tasks[0].cancel()
            await asyncio.sleep(CALM_S)
            await system.wait_for_results(probes.published, timeout_s=180)
            tasks[1].cancel()
            await system.catch_up()
            return _rows(system, probes, spans), len(probes.published)


def _rows(system: System, probes: Probes, spans: list[tuple[str, float, float]]) -> list[Row]:
    statuses = Counter(found[0]["status"] for found in system.results.values())
    print(f"{len(probes.published):,} requests: {dict(statuses)}")
    found = problems(system, probes.published)
    if found:
        raise SystemExit(f"{len(found)} problems: {found[:5]}; logs in {system.directory}")
    rows = []
    for name in dict.fromkeys(name for name, _, _ in spans):
        times = [(began, ended) for n, began, ended in spans if n == name]
        worst = [max(probes.latencies_s(system, b, e), default=0.0) for b, e in times]
        median = statistics.median(
            latency for b, e in times for latency in probes.latencies_s(system, b, e)
        )
        rows.append((name, str(len(times)), f"{median:.2f}", f"{max(worst):.1f}"))
    return rows


def table(rows: list[Row], requests: int, command: str) -> str:
    """Return the table as a Markdown document."""
    lines = [
        "# What was done to it, and what was seen",
        "",
        "Real processes on a real Kafka of one broker, two pools, under load. Written by the run:",
        "",
        f"```sh\n{command}\n```",
        "",
        f"{requests:,} requests, none lost, none doubled. Latencies are of direct requests",
        "published from the fault until about 6 s after its end, from publishing to the last",
        "token, in seconds. The worst is that of the request that came at the worst moment.",
        "",
        "| fault | times | median | worst |",
        "| --- | --: | --: | --: |",
        *(f"| {' | '.join(row)} |" for row in rows),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    parser.add_argument("--rounds", type=int, default=1, help="times that each fault is injected")
    parser.add_argument("--rate", type=int, default=60, help="requests per second")
    parser.add_argument("--table", type=Path, help="where to write the table")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    # A client without a broker says so many times a second.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    rows, requests = asyncio.run(run(asked.seed, asked.rounds, asked.rate))
    options = f"--rounds {asked.rounds} --rate {asked.rate} --seed {asked.seed}"
    document = table(rows, requests, f"python tests/chaos/run.py {options}")
    print(document)
    if asked.table:
        asked.table.write_text(document, encoding="utf-8")


if __name__ == "__main__":
    main()
