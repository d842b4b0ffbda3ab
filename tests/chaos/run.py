"""The long chaos run: every fault in turn under load, and the table of what was seen.

python tests/chaos/run.py --rounds 3 --seed 7 --table docs/reliability.md
"""

import argparse
import asyncio
import contextlib
import itertools
import logging
import random
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from cluster_faults import CLUSTER_FAULTS, IDLE_MS, ClusterScene
from faults import (
    FAULTS,
    LAST_FAULTS,
    POOLS,
    ROUTERS,
    SESSION_S,
    TRANSACTION_S,
    Fault,
    LoneScene,
    Scene,
    grow_partitions,
)
from guarded_doors import ALL, Door, Doors
from kafka_upgrade import OLD, upgrade_kafka
from ledger import Ledger
from load import Load
from lost_tail import lose_tail
from plain_client import plain_client, read_bare
from proxy import Proxy
from recovery import MARGIN_S, Span, calm_after
from running_system import System
from silent_pool import MuteServer, fleet_with
from table import (
    LOST_TAIL,
    ONE_BROKER,
    THREE_BROKERS,
    Ground,
    Seen,
    document,
    found_wrong,
    write,
)
from takeovers import read_taken
from verdict import POLICY_SPEED, held_now, supervise, trail_problems

from topics.embedded_broker.broker import EmbeddedBroker, Listener
from topics.embedded_broker.cluster import EmbeddedCluster
from topics.embedded_broker.jars import KAFKA_VERSION
from topics.embedded_broker.settings import free_port

# What Kafka has lost is lost for all that come after.
LAST_CLUSTER_FAULTS: tuple[Fault, ...] = (
    lose_tail,
    grow_partitions,
    *((upgrade_kafka,) if KAFKA_VERSION == OLD else ()),
)
# Without a fault, before the first one; and after the last result, for whatever would come twice.
CALM_S = 7.0
# Longest wait for processes to start, on a busy machine.
START_S_MAX = 60.0
# Of a run of so many requests, what is left for the faults that come last, and for what follows.
LEFT_PART, LEFT_S = 0.03, 120.0
# Time for what waits to come out, at the speed of the policy.
END_S = 240.0
# Time for processes to end beside three brokers on a busy machine.
STOP_S_MAX = 90.0

# Ways to the only broker that ask who comes, by name; a login ends after so long.
DOORS = {"": Door("PLAINTEXT")} | {door.name: door for door in ALL}
LOGIN_MS = 60_000

# A right can be taken away where there is somebody who checks it.
AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}


@dataclass(frozen=True)
class Asked:
    """What the command line asks for."""

    seed: int
    rounds: int
    rate: float
    requests: int
    only: str
    calm_s_max: float
    table: Path | None
    nodes: int = 1
    door: str = ""

    @property
    def faults(self) -> tuple[Fault, ...]:
        """Those of a Kafka of so many brokers, in every round."""
        return FAULTS if self.nodes == 1 else CLUSTER_FAULTS

    @property
    def last_faults(self) -> tuple[Fault, ...]:
        """Those that can't be undone."""
        return LAST_FAULTS if self.nodes == 1 else LAST_CLUSTER_FAULTS

    @property
    def before_last(self) -> float:
        """So many requests come before the last faults, where a number of them is asked for."""
        return self.requests - max(LEFT_PART * self.requests, LEFT_S * self.rate)


async def run(asked: Asked) -> Seen:
    """Inject the faults while requests come, wait for the last result, and return what was seen."""
    directory = Path(tempfile.mkdtemp(prefix="shunter-chaos-"))
    print(f"logs in {directory}", flush=True)
    on = _on_one_broker if asked.nodes == 1 else _on_a_cluster
    return await on(asked, random.Random(asked.seed), directory)


async def _on_one_broker(asked: Asked, rng: random.Random, directory: Path) -> Seen:
    door = DOORS[asked.door]
    doors = Doors([door], directory, LOGIN_MS)
    behind = Listener(door.name, free_port(), free_port())
    broker = EmbeddedBroker(
        data_dir=directory / "kafka",
        properties=AUTHORIZER | doors.properties,
        extra_listeners=[behind],
    )
    proxy = Proxy(behind.advertised_port, behind.port)
    async with MuteServer() as server:
        with broker, proxy:
            doors.add_user(broker.bootstrap_servers)
            async with System(
                broker.bootstrap_servers,
                "chaos",
                directory,
                fleet=fleet_with(server),
                extra_env={
                    **doors.variables(door),
                    "SHUNTER_BOOTSTRAP_SERVERS": f"127.0.0.1:{behind.advertised_port}",
                    "SHUNTER_SESSION_TIMEOUT_MS": str(int(SESSION_S * 1000)),
                    "SHUNTER_TRANSACTION_TIMEOUT_MS": str(int(TRANSACTION_S * 1000)),
                },
                policy_speed=POLICY_SPEED,
            ) as system:
                load = Load(system, asked.rate, asked.requests or None)
                scene = LoneScene(
                    system=system, load=load, rng=rng, broker=broker, proxy=proxy, server=server
                )
                return await _run(scene, asked)


async def _on_a_cluster(asked: Asked, rng: random.Random, directory: Path) -> Seen:
    """Run with the defaults of processes, which find each broker behind a proxy of its own."""
    behind = [Listener("PROXY", free_port(), free_port()) for _ in range(asked.nodes)]
    cluster = EmbeddedCluster(
        asked.nodes,
        data_dir=directory / "kafka",
        properties={"connections.max.idle.ms": str(IDLE_MS)},
        extra_listeners=[[listener] for listener in behind],
        announce=print,
    )
    with contextlib.ExitStack() as stack:
        proxies = [stack.enter_context(Proxy(each.advertised_port, each.port)) for each in behind]
        stack.enter_context(cluster)
        servers = ",".join(f"127.0.0.1:{each.advertised_port}" for each in behind)
        async with System(
            cluster.bootstrap_servers,
            "chaos",
            directory,
            extra_env={"SHUNTER_BOOTSTRAP_SERVERS": servers},
            policy_speed=POLICY_SPEED,
            stop_s_max=STOP_S_MAX,
        ) as system:
            load = Load(system, asked.rate, asked.requests or None)
            scene = ClusterScene(
                system=system, load=load, rng=rng, cluster=cluster, proxies=proxies
            )
            with plain_client(scene.kafka, servers, directory) as told:
                seen = await _run(scene, asked)
            return replace(seen, bare=read_bare(told))


async def _run(scene: Scene, asked: Asked) -> Seen:
    system, load, ledger = scene.system, scene.load, Ledger(scene.system)
    system.start(*ROUTERS, *POOLS)
    began = time.time()
    ends: list[tuple[float, str]] = []
    tasks = [
        asyncio.create_task(
            supervise(system, scene.resting, lambda name: ends.append((time.time(), name)))
        ),
        asyncio.create_task(ledger.read()),
    ]
    publishing = asyncio.create_task(load.publish())
    spans = await _inject(scene, asked, ledger, publishing)
    # One that is asked for no number ends early only where it failed.
    if asked.requests or publishing.done():
        await publishing
    publishing.cancel()
    await _drain(load, ledger)
    held, trail = await held_now(system), await trail_problems(system)
    ended = time.time()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, publishing, return_exceptions=True)
    taken = read_taken(system.directory)
    return Seen(
        load, ledger, spans, system.kills, scene.kills, taken, held, trail, began, ended, ends
    )


async def _inject(
    scene: Scene, asked: Asked, ledger: Ledger, publishing: "asyncio.Task[None]"
) -> list[Span]:
    load = scene.load
    await calm_after(time.time(), ledger, load, START_S_MAX)
    calm = time.time()
    await asyncio.sleep(CALM_S + MARGIN_S)
    spans = [Span("none", calm, calm, calm + CALM_S)]
    for number, fault in schedule(scene.rng, asked, lambda: len(load.published_at)):
        if publishing.done():
            break
        began = time.time()
        await fault(scene)
        ended = time.time()
        until, is_calm = await calm_after(ended, ledger, load, asked.calm_s_max)
        spans.append(Span(fault.__doc__ or "", began, ended, until, is_calm=is_calm))
        published = len(load.published_at)
        print(f"{published:>9,} requests, round {number}: {fault.__name__}", flush=True)
        await asyncio.sleep(scene.rng.random())
    return spans


def schedule(
    rng: random.Random, asked: Asked, published: Callable[[], int]
) -> Iterator[tuple[int, Fault]]:
    """Yield faults and their rounds: each in every round, at last those that can't be undone.

    Where a number of requests is asked for, those come while the last of them are published.
    """
    wanted = [fault for fault in asked.faults if is_wanted(fault, asked)]
    rounds = itertools.count(1) if asked.requests and wanted else range(1, asked.rounds + 1)
    faults = ((number, fault) for number in rounds for fault in rng.sample(wanted, len(wanted)))
    number = 0
    for number, fault in faults:
        if asked.requests and published() >= asked.before_last:
            break
        yield number, fault
    yield from ((number, fault) for fault in asked.last_faults if is_wanted(fault, asked))


def is_wanted(fault: Fault, asked: Asked) -> bool:
    """Tell whether a fault is among those asked for."""
    return any(part in fault.__name__ for part in asked.only.split(","))


async def _drain(load: Load, ledger: Ledger) -> None:
    """Wait until each request has a result, or until there can be none any more."""
    end_at = time.monotonic() + END_S
    while ledger.missing(load) > 0:
        if time.monotonic() > end_at:
            break
        await asyncio.sleep(0.5)
    # Whatever would come twice, comes soon.
    await asyncio.sleep(CALM_S)


def command(asked: Asked) -> str:
    """Return the command line that asks for this, but for where the table goes."""
    unused = {"table", "rounds" if asked.requests else "requests"}
    if asked.nodes == 1:
        unused.add("nodes")
    words = ["python", "tests/chaos/run.py"]
    for name, value in vars(asked).items():
        if value and name not in unused:
            words += ["--" + name.replace("_", "-"), str(value)]
    return shlex.join(words)


def ground_of(asked: Asked) -> Ground:
    """Return the section that a run's tables go to; what Kafka loses has one of its own."""
    if asked.nodes == 1:
        return ONE_BROKER
    return LOST_TAIL if asked.only == lose_tail.__name__ else THREE_BROKERS


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
    parser.add_argument(
        "--calm-s-max",
        type=float,
        default=30.0,
        help="longest wait for requests to be served in time after a fault, in seconds",
    )
    parser.add_argument("--nodes", type=int, default=1, help="brokers, 1 or 3")
    parser.add_argument(
        "--door",
        default="",
        choices=DOORS,
        help="how processes come to the only broker; by default without TLS and login",
    )
    parser.add_argument("--table", type=Path, help="where to write the table")
    asked = Asked(**vars(parser.parse_args()))
    print(f"seed {asked.seed}", flush=True)
    # A client without a broker says so many times a second.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    seen = asyncio.run(run(asked))
    ground = ground_of(asked)
    found = document(seen, command(asked), ground)
    problems = found_wrong(seen)
    print(found)
    if problems:
        raise SystemExit(f"{len(problems)} problems: {problems[:10]}")
    if asked.table:
        write(asked.table, found, ground)


if __name__ == "__main__":
    main()
