"""Twenty tenants of different bindings and budgets under faults, and an independent judge of both.

python tests/chaos/tenants.py --seconds 120 --seed 7 --table docs/reliability.md
"""

import argparse
import asyncio
import contextlib
import copy
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from aiokafka.errors import KafkaError
from books_audit import Judge
from running_system import FLEET, System, chat, records_of
from verdict import POLICY_SPEED, TIMEOUTS, supervise, trail_problems

from streams.config.declarations import load_policy
from topics.embedded_broker.broker import EmbeddedBroker

TENANTS = 20
ROUTERS = ("router", "router-b")
VENDOR = {
    "device": "h200",
    "count": 1,
    "region": "us-east",
    "token_price": {"usd_per_million": {"input": 0.6, "cached_input": 0.06, "output": 2.4}},
    "serves": [
        {
            "model": "llama-3.1-8b",
            "variant": "llama-3.1-8b-fp8",
            "precision": "fp8",
            "max_batch": 32,
        }
    ],
    "backend": {"type": "simulated", "time_scale": 4.0},
}
BOUNDS: tuple[dict[str, Any], ...] = (
    {},
    {"regions": ["eu-west"]},
    {"regions": ["us-east"]},
    {"precisions": ["fp8"]},
    {"precisions": ["int8"], "regions": ["us-east"]},
    {"pools": ["vendor-us"]},
    {"pools": ["premium-eu", "lpddr-us"]},
)
BUDGETS: tuple[list[dict[str, Any]], ...] = (
    [],
    [{"window_s": 20.0, "requests": 4}],
    [{"window_s": 30.0, "usd": 0.0004}],
    [{"window_s": 15.0, "tokens": 400}],
    [{"window_s": 20.0, "requests": 6, "usd": 0.0004}, {"window_s": 60.0, "tokens": 1500}],
    [{"window_s": 30.0, "wh": 2.0}],
)
# Of each tenant, beside its own.
CLASS_BUDGETS = {"summarization": [{"window_s": 25.0, "requests": 8, "wh": 1.0}]}
PER_S = 14.0
# Between two faults, and how long one is down.
EACH_S, DOWN_S = 6.0, 1.5
END_S = 240.0


def fleet() -> dict[str, Any]:
    """Return the fleet of the tests with a vendor that is paid by tokens."""
    found = copy.deepcopy(FLEET)
    for pool in found["pools"].values():
        pool["backend"]["time_scale"] = 4.0
    found["pools"]["vendor-us"] = copy.deepcopy(VENDOR)
    return found


def tenants() -> dict[str, Any]:
    """Return twenty tenants, no two alike in binding and budgets."""
    found = {}
    for number in range(TENANTS):
        bound, budgets = BOUNDS[number % len(BOUNDS)], BUDGETS[number % len(BUDGETS)]
        found[f"t{number:02d}"] = {"bound": bound, "budgets": budgets}
    # What stands in YAML twice would be written as an alias.
    copied: dict[str, Any] = json.loads(json.dumps(found))
    return copied


def policy_changes() -> dict[str, Any]:
    """Return what the run's policy has in place of the packaged one's, at the run's speed."""
    packaged = load_policy(None).faster(POLICY_SPEED).model_dump(mode="json", exclude_none=True)
    classes = {
        name: each | ({"budgets": CLASS_BUDGETS[name]} if name in CLASS_BUDGETS else {})
        for name, each in packaged["classes"].items()
    }
    return {"tenants": tenants(), "classes": classes}


@dataclass
class Load:
    """Requests of all tenants, some of which ask for more than they may have."""

    system: System
    rng: random.Random
    published: int = 0

    async def publish(self, seconds: float) -> list[str]:
        """Publish for so long, and return the ids."""
        ids: list[str] = []
        began = time.monotonic()
        while time.monotonic() < began + seconds:
            name = f"r-{len(ids)}"
            ids.append(name)
            await self._publish(self._request(name))
            await asyncio.sleep(self.rng.expovariate(PER_S))
        return ids

    def _request(self, name: str) -> dict[str, Any]:
        fields: dict[str, Any] = {"tenant": f"t{self.rng.randrange(TENANTS):02d}"}
        if self.rng.random() < 0.5:
            fields["task"] = "summarization"
        if self.rng.random() < 0.2:
            fields["constraints"] = {"regions": [self.rng.choice(("eu-west", "us-east"))]}
        return chat(name, **fields)

    async def _publish(self, request: dict[str, Any]) -> None:
        while True:
            with contextlib.suppress(KafkaError):
                # An idempotent producer: a resend after a broker's death is no second request.
                await self.system.publish(request)
                return


async def faults(
    system: System, broker: EmbeddedBroker, rng: random.Random, seconds: float
) -> list[str]:
    """Kill one after another, the broker now and then, for so long; return what was done."""
    done: list[str] = []
    victims, began = [*ROUTERS, *system.fleet["pools"]], time.monotonic()
    while True:
        await asyncio.sleep(rng.uniform(0.5, 1.5) * EACH_S)
        if time.monotonic() > began + seconds:
            return done
        if len(done) % 5 == 3:
            await asyncio.to_thread(broker.kill)
            await asyncio.sleep(DOWN_S)
            await asyncio.to_thread(broker.start)
            done.append("broker")
            continue
        victim = rng.choice(victims)
        system.kill(victim)
        await asyncio.sleep(rng.uniform(0.0, DOWN_S))
        # Whoever supervises may have been quicker.
        if system.processes[victim].poll() is not None:
            system.start(victim)
        done.append("router" if victim in ROUTERS else "worker")


async def run(seconds: float, seed: int) -> tuple[Judge, dict[str, int]]:
    """Run, and return the judge with what it found, and what was done."""
    rng, directory = random.Random(seed), Path(tempfile.mkdtemp(prefix="shunter-tenants-"))
    print(f"logs in {directory}", flush=True)
    with EmbeddedBroker(data_dir=directory / "kafka") as broker:
        async with System(
            broker.bootstrap_servers,
            "tenants",
            directory,
            fleet=fleet(),
            extra_env=TIMEOUTS,
            policy_speed=POLICY_SPEED,
            policy_changes=policy_changes(),
            stop_s_max=60.0,
        ) as system:
            system.start(*ROUTERS, *system.fleet["pools"])
            await system.warm_up()
            watching = asyncio.create_task(supervise(system))
            load = Load(system, random.Random(seed + 1))
            ids, done = await asyncio.gather(
                load.publish(seconds), faults(system, broker, rng, seconds)
            )
            await system.wait_for_results(ids, END_S)
            judge = await judged(system, policy_changes(), ids)
            judge.amiss += [f"{name}: no result" for name in ids if name not in system.results]
            watching.cancel()
            return judge, {name: done.count(name) for name in ("router", "worker", "broker")}


async def judged(system: System, policy: dict[str, Any], ids: Collection[str]) -> Judge:
    """Let the judge read all that there is, once the last settlement has been counted."""
    judge = Judge(system.fleet, policy)
    end_at = time.monotonic() + 60
    while True:
        budgets = [(r.key, r.value) for r in await records_of(system, system.catalogue.budgets)]
        newest = {key: value for key, value in budgets if value is not None}
        is_open = any(json.loads(v)["reserved"]["requests"] for v in newest.values())
        if not is_open or time.monotonic() > end_at:
            break
        await asyncio.sleep(1)
    for pool in system.fleet["pools"]:
        for lane in ("direct", "batch"):
            topic = system.catalogue.pool_lane(pool, lane)
            for record in await records_of(system, topic):
                judge.placed(pool, record.headers, record.value)
    await system.catch_up()
    results = [each for name in ids for each in system.results.get(name, [])]
    judge.judge(system.evidence, results, budgets)
    judge.amiss += await trail_problems(system)
    return judge


def document(judge: Judge, done: dict[str, int], command: str) -> str:
    """Return what was seen, as the section of docs/reliability.md."""
    counts, killed = judge.counts, ", ".join(f"{n} x {name}" for name, n in done.items())
    within, beyond = counts["accepted within budgets"], counts["beyond a budget"]
    rows = {
        "results, one for each request": counts["results"],
        "sent to pools, further tries among them": counts["sent to pools"],
        "windows of budgets": counts["windows of budgets"],
        "accepted within a budget": within,
        "turned away by one": beyond,
        "tries without an answer that cost something": counts["tries that cost something"],
        "answers paid by tokens": counts["paid by tokens"],
        "settled, in nano-dollars": counts["nano-dollars settled"],
        "outside a binding, beyond a budget, or unlike the sum of the evidence": len(judge.amiss),
    }
    return "\n".join(
        [
            f"`{command}`: {TENANTS} tenants of different bindings and budgets (requests, tokens,",
            "dollars, watt hours), and a class with budgets, two routers, three pools, of which",
            "one is paid by tokens, one broker; killed with `kill -9` and started",
            f"again: {killed}. `tests/support/books_audit.py` reads lanes, results, evidence and",
            "books as JSON, and shares no code with Shunter.",
            "",
            "| judged | seen |",
            "| --- | --- |",
            *(f"| {name} | {count:,} |" for name, count in rows.items()),
            "",
        ]
    )


def write(path: Path, found: str) -> None:
    """Put the section in its place in a document."""
    begin, end = "<!-- tenants: begin -->", "<!-- tenants: end -->"
    text = path.read_text()
    head, _, rest = text.partition(begin)
    _, _, tail = rest.partition(end)
    path.write_text(f"{head}{begin}\n{found}{end}{tail}")


def main() -> None:
    """Run, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=random.randrange(1, 2**31))
    parser.add_argument("--seconds", type=float, default=120.0, help="so long requests come")
    parser.add_argument("--table", type=Path, help="where to write the table")
    asked = parser.parse_args()
    print(f"seed {asked.seed}", flush=True)
    # A client without a broker says so many times a second.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    judge, done = asyncio.run(run(asked.seconds, asked.seed))
    command = f"python tests/chaos/tenants.py --seconds {asked.seconds:g} --seed {asked.seed}"
    found = document(judge, done, command)
    print(found)
    if judge.amiss:
        raise SystemExit(f"{len(judge.amiss)} problems: {judge.amiss[:10]}")
    if asked.table:
        write(asked.table, found)


if __name__ == "__main__":
    main()
