"""A rolling upgrade and a rollback under load, from any version in the repository to this one.

python tests/chaos/upgrade.py --from v0.1.0 --table docs/reliability.md
"""

import argparse
import asyncio
import io
import logging
import math
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

from ledger import Ledger
from load import Load
from recovery import calm_after
from running_system import System
from verdict import POLICY_SPEED, held_now, supervise, trail_problems

from topics.embedded_broker.broker import EmbeddedBroker

ROOT = Path(__file__).parents[2]
ROUTERS = ("router", "router-b")
POOLS = ("premium-eu", "lpddr-us")
ORDER = (*POOLS, *ROUTERS)
# Of the repository, what a version of Shunter consists of.
ROOMS = ("shunter", "workers", "streams", "policies", "topics")
BEFORE_S = 15.0
CALM_S_MAX = 30.0
END_S = 240.0
STOPPED_S_MAX = 40.0
SESSION = {"SHUNTER_SESSION_TIMEOUT_MS": "6000"}
MARKS = (
    "<!-- what `tests/chaos/upgrade.py` writes -->\n",
    "<!-- end of what the upgrade writes -->\n",
)


@dataclass(frozen=True)
class Step:
    """A process that was replaced, and the direct requests that came until all was calm again.

    ``slowest_s`` is that of those that were completed, ``late`` the number of the others.
    """

    name: str
    direct: int
    slowest_s: float
    late: int


@dataclass(frozen=True)
class Rolled:
    """What was seen: each step, what became of the requests, and what was wrong."""

    requests: int
    statuses: dict[str, int]
    steps: Sequence[Step]
    problems: Sequence[str]


def checkout(reference: str, directory: Path) -> Path:
    """Write a version of the repository into a directory, and return where its code is."""
    archive = subprocess.run(
        ["git", "archive", reference, *ROOMS],  # noqa: S607  whichever git there is
        cwd=ROOT,
        check=False,
        capture_output=True,
    )
    if archive.returncode:
        raise SystemExit(
            f"{reference} can't be had from the repository; a shallow clone lacks older versions:"
            f" {archive.stderr.decode().strip()}"
        )
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(directory, filter="data")
    return directory


def next_version(directory: Path) -> Path:
    """Write this version as a next one into a directory: each record it writes has a field more."""
    for room in ROOMS:
        shutil.copytree(ROOT / room, directory / room, ignore=shutil.ignore_patterns("__pycache__"))
    codec = directory / "topics/wire/codec.py"
    text = codec.read_text()
    plain = "    return orjson.dumps(record)\n"
    if text.count(plain) != 1:
        raise ValueError(f"{codec}: the line that encodes a record is not there once")
    codec.write_text(text.replace(plain, _GROWN))
    return directory


_GROWN = """    told = orjson.loads(orjson.dumps(record))
    # What is signed changes with a major version alone (docs/compatibility.md).
    is_signed = type(record).__module__ == "topics.signing.signed_root"
    if hasattr(record, "__dataclass_fields__") and not is_signed:
        told["next_release"] = {"more": [1, None]}
        if isinstance(told.get("head"), dict):
            told["head"]["next_release"] = "more"
    return orjson.dumps(told)
"""


async def roll(
    system: System, load: Load, old: Path, new: Path, calm_s_max: float = CALM_S_MAX
) -> Rolled:
    """Replace each process by one of the new version, and then by one of the old again.

    After each of them requests go on until they are served in time, ``calm_s_max`` at most.
    """
    ledger = Ledger(system)
    resting: set[str] = set()
    system.code_of = dict.fromkeys(ORDER, old)
    system.start(*ORDER)
    tasks = [
        asyncio.create_task(work)
        for work in (supervise(system, resting), ledger.read(), load.publish())
    ]
    await asyncio.sleep(BEFORE_S)
    seen = []
    steps = [(name, new, "upgraded") for name in ORDER]
    steps += [(name, old, "rolled back") for name in reversed(ORDER)]
    for name, code, what in steps:
        began = time.time()
        await _replace(system, resting, name, code)
        ended = time.time()
        until, _ = await calm_after(ended, ledger, load, calm_s_max)
        seen.append((f"{name} {what}", began, until))
        print(f"{len(load.published_at):>7,} requests: {name} {what}", flush=True)
    tasks.pop().cancel()
    await _until(lambda: ledger.missing(load) <= 0)
    problems = [*ledger.problems(load), *await trail_problems(system)]
    if held := await held_now(system):
        problems.append(f"{held} requests are left in the hold")
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    steps_seen = [_step(ledger, load, *each) for each in seen]
    return Rolled(len(load.published_at), dict(ledger.statuses(load)), steps_seen, problems)


def _step(ledger: Ledger, load: Load, name: str, began: float, until: float) -> Step:
    took = [took_s for _, took_s in ledger.took_s(load, began, until)]
    completed = [took_s for took_s in took if math.isfinite(took_s)]
    return Step(name, len(took), max(completed, default=0.0), len(took) - len(completed))


async def _replace(system: System, resting: set[str], name: str, code: Path) -> None:
    """Stop a process as its supervisor does, and start the other version under its name."""
    resting.add(name)
    process = system.processes[name]
    process.send_signal(signal.SIGTERM)
    await asyncio.to_thread(process.wait, STOPPED_S_MAX)
    system.code_of[name] = code
    system.start(name)
    resting.discard(name)


async def _until(is_done: Callable[[], bool]) -> None:
    end_at = time.monotonic() + END_S
    while time.monotonic() < end_at:
        if is_done():
            break
        await asyncio.sleep(0.5)
    # Whatever would come twice, comes soon.
    await asyncio.sleep(5.0)


def table(rolled: Rolled, command: str) -> str:
    """Return what was seen as a document."""
    rows = [
        f"| {step.name} | {step.direct:,} | {step.slowest_s:.1f} s | {step.late:,} |"
        for step in rolled.steps
    ]
    ends = ", ".join(f"{count:,} {status}" for status, count in sorted(rolled.statuses.items()))
    said = f"`{command}`: {rolled.requests:,} requests ({ends}), {len(rolled.problems)} problems."
    heading = [
        "| step | direct requests meanwhile | slowest | not completed |",
        "| --- | --- | --- | --- |",
    ]
    return "\n".join([said, "", *heading, *rows, "", ""])


async def run(reference: str, rate: float) -> Rolled:
    """Roll a system of its own, on a Kafka of its own."""
    directory = Path(tempfile.mkdtemp(prefix="shunter-upgrade-"))
    print(f"logs in {directory}", flush=True)
    old = checkout(reference, directory / "old")
    with EmbeddedBroker(data_dir=directory / "kafka") as broker:
        system = System(
            broker.bootstrap_servers,
            "upgrade",
            directory,
            extra_env=SESSION,
            policy_speed=POLICY_SPEED,
        )
        async with system:
            return await roll(system, Load(system, rate), old, ROOT)


def main() -> None:
    """Run, print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--from", dest="reference", required=True, help="tag, branch or commit")
    parser.add_argument("--rate", type=float, default=20, help="requests per second")
    parser.add_argument("--table", type=Path, help="where to write the table")
    asked = parser.parse_args()
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    rolled = asyncio.run(run(asked.reference, asked.rate))
    found = table(
        rolled, f"python tests/chaos/upgrade.py --from {asked.reference} --rate {asked.rate:g}"
    )
    print(found)
    if rolled.problems:
        raise SystemExit(f"{len(rolled.problems)} problems: {rolled.problems[:10]}")
    if asked.table:
        text = asked.table.read_text()
        head, _, rest = text.partition(MARKS[0])
        tail = rest.partition(MARKS[1])[2]
        asked.table.write_text(f"{head}{MARKS[0]}{found}{MARKS[1]}{tail}")


if __name__ == "__main__":
    main()
