"""The long chaos run: every fault in turn under load, and the table of what was seen.

python tests/chaos/run.py --rounds 3 --seed 7 --table docs/reliability.md
"""

import argparse
import asyncio
import logging
import random
import shlex
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]

from faults import FAULTS, LAST_FAULTS, POOLS, ROUTERS, SESSION_S, TRANSACTION_S, Fault, Scene
from ledger import Ledger
from load import Load
from proxy import Proxy
from system import System
from verdict import POLICY_SPEED, held_now, supervise, trail_problems

from topics.broker import EmbeddedBroker, Listener
from topics.broker_settings import free_port

CALM_S = 7.0
MARGIN_S = 1.5
# A direct request that takes longer is one that the fault delayed.
SLOW_S = 1.0
# Time for what waits to come out, at the speed of the policy.
END_S = 240.0

# A right can be taken away where there is somebody who checks it.
AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


@dataclass(frozen=True)
class Span:
    """A fault: when it began and ended, and until when requests count to it."""

    name: str
    began: float
    ended: float
    until: float


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    seed: int
    rounds: int
    rate: float
    requests: int
    only: str
    table: Path | None


@dataclass(frozen=True)
class Seen:
    """What came of a run."""

    load: Load
    ledger: Ledger
    spans: list[Span]
    kills: int
    held: int
    trail: list[str]
    began: float
    ended: float


async def run(asked: Asked) -> Seen:
    """Inject the faults while requests come, wait for the last result, and return what was seen."""
    rng = random.Random(asked.seed)
    directory = Path(tempfile.mkdtemp(prefix="shunter-chaos-"))
    print(f"logs in {directory}", flush=True)
    behind = Listener("PROXY", free_port(), free_port())
    broker = EmbeddedBroker(
        data_dir=directory / "kafka", properties=AUTHORIZER, extra_listeners=[behind]
    )
    with broker, Proxy(behind.advertised_port, behind.port) as proxy:
        async with System(
            broker.bootstrap_servers,
            "chaos",
            directory,
            extra_env={
                "SHUNTER_BOOTSTRAP_SERVERS": f"127.0.0.1:{behind.advertised_port}",
                "SHUNTER_SESSION_TIMEOUT_MS": str(int(SESSION_S * 1000)),
                "SHUNTER_TRANSACTION_TIMEOUT_MS": str(int(TRANSACTION_S * 1000)),
            },
            policy_speed=POLICY_SPEED,
        ) as system:
            load, ledger = Load(system, asked.rate, asked.requests or None), Ledger(system)
            scene = Scene(system, broker, proxy, load, rng, set())
            system.start(*ROUTERS, *POOLS)
            began = time.time()
            tasks = [
                asyncio.create_task(supervise(system, scene.resting)),
                asyncio.create_task(ledger.read()),
            ]
            publishing = asyncio.create_task(load.publish())
            spans = await _inject(scene, asked, publishing)
            publishing.cancel()
            await _drain(load, ledger)
            held, trail = await held_now(system), await trail_problems(system)
            ended = time.time()
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, publishing, return_exceptions=True)
            return Seen(load, ledger, spans, system.kills, held, trail, began, ended)


async def _inject(scene: Scene, asked: Asked, publishing: "asyncio.Task[None]") -> list[Span]:
    await asyncio.sleep(2 * CALM_S)
    now = time.time()
    spans = [Span("none", now - CALM_S, now - CALM_S, now - MARGIN_S)]
    wanted = [fault for fault in FAULTS if is_wanted(fault, asked)]
    number = 0

    async def inject(fault: Fault) -> None:
        spans.append(await _inject_one(scene, fault, number))

    while number < asked.rounds or (asked.requests and not publishing.done()):
        number += 1
        for fault in scene.rng.sample(wanted, len(wanted)):
            if not (asked.requests and publishing.done()):
                await inject(fault)
    for fault in LAST_FAULTS:
        if is_wanted(fault, asked):
            await inject(fault)
    return spans


def is_wanted(fault: Fault, asked: Asked) -> bool:
    """Tell whether a fault is among those asked for."""
    return any(part in fault.__name__ for part in asked.only.split(","))


async def _inject_one(scene: Scene, fault: Fault, number: int) -> Span:
    began = time.time()
    await fault(scene)
    ended = time.time()
    await asyncio.sleep(CALM_S + scene.rng.random())
    published = len(scene.load.published_at)
    print(f"{published:>9,} requests, round {number}: {fault.__name__}", flush=True)
    # What comes last may still be on its way when the next fault begins.
    return Span(fault.__doc__ or "", began, ended, time.time() - MARGIN_S)


async def _drain(load: Load, ledger: Ledger) -> None:
    """Wait until each request has a result, or until there can be none any more."""
    end_at = time.monotonic() + END_S
    while ledger.results < len(load.published_at) - len(load.unsure):
        if time.monotonic() > end_at:
            break
        await asyncio.sleep(0.5)
    # Whatever would come twice, comes soon.
    await asyncio.sleep(CALM_S)


def rows(seen: Seen) -> list[tuple[str, ...]]:
    """Return a row for each kind of fault: times, median and worst latency, recovery."""
    found = []
    for name in dict.fromkeys(span.name for span in seen.spans):
        spans = [span for span in seen.spans if span.name == name]
        took = [seen.ledger.latencies_s(seen.load, s.began, s.until) for s in spans]
        latencies = [latency for each in took for _, latency in each]
        recoveries = [
            max((at - span.ended for at, latency in each if latency > SLOW_S), default=0.0)
            for span, each in zip(spans, took, strict=True)
        ]
        median = statistics.median(latencies) if latencies else float("nan")
        worst = max(latencies, default=float("nan"))
        recovery = max(0.0, *recoveries)
        found.append((name, str(len(spans)), f"{median:.2f}", f"{worst:.1f}", f"{recovery:.1f}"))
    return found


def found_wrong(seen: Seen) -> list[str]:
    """Return what must not be."""
    found = seen.ledger.problems(seen.load) + seen.trail
    return [*found, f"{seen.held} requests are held for ever"] if seen.held else found


def document(seen: Seen, command: str) -> str:
    """Return the table as a Markdown document."""
    load, minutes = seen.load, (seen.ended - seen.began) / 60
    statuses = ", ".join(f"{n:,} {s}" for s, n in seen.ledger.statuses(load).most_common())
    codes = ", ".join(f"{n:,} {code}" for code, n in seen.ledger.codes.most_common(8))
    lines = [
        "# What was done to it, and what was seen",
        "",
        "Real processes on a real Kafka of one broker: two routers, two pools, a TCP proxy",
        "between broker and processes, mixed requests at a steady rate. Written by the run:",
        "",
        f"```sh\n{command}\n```",
        "",
        f"{len(load.published_at):,} requests in {minutes:.0f} minutes, {seen.kills:,} kills of",
        "processes: none lost, none doubled, no constraint broken, nothing left in the hold, each",
        f"end explained by its evidence. Besides, {load.published_twice:,} requests came twice and",
        f"{load.published_bad:,} records were no requests: each was told, once, as what it was.",
        "",
        f"Ends: {statuses}.",
        "",
        f"Reasons of those not completed: {codes or 'none'}.",
        "",
        "Latencies are of direct requests published from the fault until about 6 s after its end,",
        "from publishing to the last token, in seconds; the worst is that of the request that came",
        "at the worst moment. Recovery is the time from the end of the fault to the last request",
        f"that took more than {SLOW_S:.0f} s, at worst.",
        "",
        "| fault | times | median | worst | recovery |",
        "| --- | --: | --: | --: | --: |",
        *(f"| {' | '.join(row)} |" for row in rows(seen)),
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    parser.add_argument("--rounds", type=int, default=1, help="times that each fault is injected")
    parser.add_argument("--rate", type=float, default=60, help="requests per second")
    parser.add_argument("--requests", type=int, default=0, help="go on until so many have come")
    parser.add_argument(
        "--only",
        default="",
        help="faults whose names have one of these, separated by commas, in it",
    )
    parser.add_argument("--table", type=Path, help="where to write the table")
    asked = Asked(**vars(parser.parse_args()))
    print(f"seed {asked.seed}", flush=True)
    # A client without a broker says so many times a second.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    seen = asyncio.run(run(asked))
    given = [
        f"--{name} {value}" for name, value in vars(asked).items() if value and name != "table"
    ]
    found = document(seen, shlex.join(["python", "tests/chaos/run.py", *" ".join(given).split()]))
    problems = found_wrong(seen)
    print(found)
    if seen.load.unsure:
        print(f"{len(seen.load.unsure)} may not have reached Kafka, and are left out")
    if problems:
        raise SystemExit(f"{len(problems)} problems: {problems[:10]}")
    if asked.table:
        asked.table.write_text(found, encoding="utf-8")


if __name__ == "__main__":
    main()
