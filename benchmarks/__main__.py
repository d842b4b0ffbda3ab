"""``python -m benchmarks``: the table of docs/performance.md, on a broker of its own."""

import argparse
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.cluster_fixture import machine
from benchmarks.figures import Figure, table
from benchmarks.hold import hold
from benchmarks.latency import latency
from benchmarks.throughput import Hall, large, libraries, routed, two
from benchmarks.worker import worker
from topics.embedded_broker.broker import EmbeddedBroker

RESULTS = Path(__file__).parent / "results"
MEASURES: Mapping[str, Callable[[Hall], list[Figure]]] = {
    "routed": routed,
    "libraries": libraries,
    "latency": latency,
    "hold": hold,
    "two": two,
    "worker": worker,
    "large": large,
}
BEGIN, END = "<!-- python -m benchmarks --table -->", "<!-- end of the table -->"
ROUNDS, QUICK_ROUNDS = 5, 1
QUICK_SCALE = 0.2


def put_table(page: Path, lines: str) -> None:
    """Replace the text between the two marks of a page."""
    before, _, rest = page.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{lines}\n{END}{after}")


def heading(about: Mapping[str, Any]) -> str:
    """Return the command and the machine of a table."""
    return (
        f"`{about['command']}`, {about['at']}, {about['rounds']} rounds on {about['cpu']},"
        f" {about['cores']} cores, Python {about['python']}, event loop {about['loop']},"
        f" {about['system']}; load before {about['load_before']:.1f}."
    )


def main() -> None:
    """Run the selected measurements, and print them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", choices=MEASURES, action="append", help="may be repeated")
    parser.add_argument("--rounds", type=int, help=f"of each comparison (default {ROUNDS})")
    parser.add_argument("--quick", action="store_true", help="in 3 minutes; says little")
    parser.add_argument("--json", action="store_true", help="one object as the last line")
    parser.add_argument("--save", metavar="NAME", help=f"keep raw results as {RESULTS.name}/NAME")
    parser.add_argument("--table", type=Path, metavar="FILE", help="put the table into a page")
    asked = parser.parse_args()
    rounds = asked.rounds or (QUICK_ROUNDS if asked.quick else ROUNDS)
    command = shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    at = time.strftime("%Y-%m-%d")
    about = {**machine(), "rounds": rounds, "at": at, "command": command}
    print(", ".join(f"{name}: {value}" for name, value in about.items()), flush=True)
    figures: list[Figure] = []
    with tempfile.TemporaryDirectory(prefix="shunter-bench-") as name, EmbeddedBroker() as broker:
        scale = QUICK_SCALE if asked.quick else 1.0
        hall = Hall(broker, Path(name), rounds, scale)
        for number, (measure, run) in enumerate(MEASURES.items(), 1):
            if asked.only and measure not in asked.only:
                continue
            print(f"[{number}/{len(MEASURES)}] {measure}", flush=True)
            figures += run(hall)
    print(table(figures))
    found = {
        "machine": about,
        "figures": [each.as_json() for each in figures],
        "told": [each.as_json() for each in hall.told],
    }
    if asked.table:
        put_table(asked.table, f"{heading(about)}\n\n{table(figures)}")
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"{asked.save}.json").write_text(json.dumps(found, indent=1) + "\n")
    if asked.json:
        print(json.dumps(found))


if __name__ == "__main__":
    main()
