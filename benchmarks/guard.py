"""The guard of continuous integration: cost of requests against a fixed yardstick.

    python -m benchmarks.guard            # fails where a ratio fell by more than a quarter
    python -m benchmarks.guard --record   # writes benchmarks/recorded.json

Both run in turn in one process and are timed by its processor time, so that other load on the
machine slows both down alike. A ratio is the yardstick's time over ours: higher is better. Long
texts have a yardstick of their own, since processors differ more in bytes than in objects.
"""

import argparse
import gc
import hashlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from math import erf, log
from pathlib import Path

import orjson

from benchmarks.cluster_fixture import machine
from benchmarks.engine import routing, working
from benchmarks.hold import Filled
from benchmarks.workload import Yard, make_options, records_of, report_all, request_value
from topics import parse_request

RECORDED = Path(__file__).with_name("recorded.json")
# Of the last recorded ratio; a machine of another kind moves it by a tenth.
LEAST = 0.75
ROUNDS = 30
POLL = 50
LARGE_BYTES = 102_400


@dataclass
class _Stick:
    name: str
    number: int
    price: float
    chance: float


def yardstick() -> None:
    """Do a router's work in plain Python and orjson: look up, compute, make records, write them."""
    known = {f"pool-{number}": 1.0 + number for number in range(30)}
    text = orjson.dumps({"id": "r", "body": {"messages": ["which track? " * 60]}})
    for number in range(400):
        found = orjson.loads(text)
        sticks = []
        for name, weight in known.items():
            price = 1e-5 * weight * (number + 3.25) / 7.5 + min(weight, 3.0)
            chance = 0.5 * (1.0 + erf(log(price * 40.0) / 0.5))
            sticks.append(_Stick(name, number, price, chance))
        best = min(sticks, key=lambda stick: stick.price)
        raw = orjson.dumps([best, sticks[:5], found])
        hashlib.sha256(raw).hexdigest()


def text_yardstick(text: bytes) -> None:
    """Do no more with so many long JSON texts than read them and write them again."""
    for _ in range(POLL):
        orjson.dumps(orjson.loads(text))


@dataclass(frozen=True)
class Work:
    """What is guarded, of some milliseconds, and what it is measured by."""

    run: Callable[[], object]
    yardstick: Callable[[], object] = yardstick


@contextmanager
def works() -> Iterator[Mapping[str, Work]]:
    """Yield the guarded works by name."""
    few, many = Yard(make_options(is_mixed=True)), Yard()
    direct = records_of([request_value(n) for n in range(POLL)], few.catalogue.requests)
    waiting = [request_value(n, task="summarization", completion_window="1h") for n in range(POLL)]
    held = records_of(waiting, many.catalogue.requests)
    large = request_value(1, LARGE_BYTES)
    filled = Filled(1000)

    def route(yard: Yard, records: list) -> None:  # type: ignore[type-arg]
        report_all(yard.situation.view, yard.options)
        yard.route(records)

    def read() -> None:
        # One by one: for fifty at once the allocator asks the system for pages or doesn't, as what
        # ran before has left its heap.
        for _ in range(POLL):
            parse_request(large, bytes_max=1 << 20)

    with closing(routing(POLL)) as router, closing(working(POLL)) as worker:
        yield {
            "routed at once, 10 candidates": Work(lambda: route(few, direct)),
            "held, 60 candidates": Work(lambda: route(many, held)),
            "read, 100 KB": Work(read, lambda: text_yardstick(large)),
            "held and released": Work(lambda: filled.per_request_us(512)),
            "routed and committed, 10 candidates": Work(router.run),
            "a worker's requests": Work(worker.run),
        }


def ratios() -> dict[str, float]:
    """Return the ratio of each, the median of rounds."""
    with works() as guarded:
        gc.collect()
        gc.freeze()
        gc.set_threshold(100_000, 50, 100)
        found: dict[str, list[float]] = {name: [] for name in guarded}
        for _ in range(ROUNDS):
            for name, work in guarded.items():
                # The yardstick before and after, since a neighbour may come in between.
                in_turn = (work.yardstick, work.run, work.yardstick)
                before, ours, after = (_time_s(each) for each in in_turn)
                found[name].append((before + after) / 2 / ours)
    return {name: statistics.median(each) for name, each in found.items()}


def _time_s(run: Callable[[], object]) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


def main() -> None:
    """Record, or compare with what was recorded."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__)
    parser.add_argument("--record", action="store_true")
    asked = parser.parse_args()
    found = ratios()
    if asked.record:
        told = {"machine": machine(), "ratios": {n: round(x, 3) for n, x in found.items()}}
        RECORDED.write_text(json.dumps(told, indent=1) + "\n")
    recorded = json.loads(RECORDED.read_text())["ratios"]
    if any(ratio / recorded[name] < LEAST for name, ratio in found.items()):
        # What a neighbour does to the caches slows us down more than it does the yardstick.
        print("below what is allowed; measured once more, and the better counts")
        found = {name: max(found[name], again) for name, again in ratios().items()}
    fallen = 0
    for name, ratio in found.items():
        of_recorded = ratio / recorded[name]
        is_fallen = of_recorded < LEAST
        fallen += is_fallen
        verdict = f"below {LEAST}: slower than recorded" if is_fallen else "well"
        print(f"{name}: {ratio:.3f}, {of_recorded:.2f} of the recorded ratio: {verdict}")
    if fallen:
        print("find what made it slow, or record anew with --record and say why in the commit")
    sys.exit(1 if fallen else 0)


if __name__ == "__main__":
    main()
