"""Growth of cost: processor time of a request against the size of each input.

    python -m benchmarks.growth [--plot docs/growth.svg]

The real code of the router runs in memory on one core, without a Kafka. A request has 30
candidates unless its curve says otherwise.
"""

import argparse
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks.hold import SAMPLE, Filled
from benchmarks.workload import (
    Yard,
    make_options,
    records_of,
    report_all,
    request_value,
)
from policies import Policy
from policies.config.policy import TenantLimits
from streams.config.declarations import load_policy

REQUESTS = 1000
POLL = 100
REPEATS = 5


@dataclass(frozen=True)
class Curve:
    """A growing input, its sizes, and the cost of a request at each, in microseconds."""

    name: str
    sizes: tuple[int, ...]
    cost_us: Callable[[int], float]
    why: str


def routed_us(
    yard: Yard, tenants: int = 1, tasks: Sequence[str] = (), transactions: int = 1
) -> float:
    """Return the least processor time of a request of some runs: the machine is shared.

    Args:
        yard: the router.
        tenants: by turns.
        tasks: by turns, those of the policy.
        transactions: that each 100 requests are decided on in.
    """
    fields: list[dict[str, str]] = [{} for _ in range(REQUESTS)]
    for number, each in enumerate(fields):
        each["tenant"] = f"tenant-{number * 7919 % tenants}"
        if tasks:
            each["task"] = tasks[number * 7919 % len(tasks)]
    values = [request_value(number, **each) for number, each in enumerate(fields)]
    records = records_of(values, yard.catalogue.requests)
    starts = [at * POLL // transactions for at in range(REQUESTS // POLL * transactions + 1)]
    gc.collect()
    best = math.inf
    for _ in range(REPEATS):
        report_all(yard.situation.view, yard.options)
        began = time.process_time()
        for start, end in pairwise(starts):
            yard.route(records[start:end])
        best = min(best, time.process_time() - began)
    return best / REQUESTS * 1e6


def of_pools(pools: int) -> float:
    """Every pool serves the model in three variants, each a candidate and in the evidence."""
    return routed_us(Yard(make_options(pools)))


def of_other_pools(pools: int) -> float:
    """One pool in ten serves the model, at least one, and the rest another one as large."""
    return routed_us(Yard(make_options(pools, serving=max(1, pools // 10))))


def of_classes(classes: int) -> float:
    """A policy of this many classes, each of them requested."""
    policy = load_policy(None)
    chat = policy.classes["chat"]
    names = [f"class_{number}" for number in range(classes)]
    more = Policy.model_validate(
        policy.model_dump(exclude_none=True)
        | {"classes": {name: chat.model_dump(exclude_none=True) for name in [*names, "chat"]}}
    )
    return routed_us(Yard(policy=more), tasks=names)


def of_tenants(tenants: int) -> float:
    """A policy that names this many tenants, each with a rate and just served."""
    policy = load_policy(None)
    limits = TenantLimits(rate_per_s=1e9, share=2.0)
    named = policy.model_copy(
        update={"tenants": {f"tenant-{number}": limits for number in range(tenants)}}
    )
    yard = Yard(policy=named)
    for number in range(min(tenants, 100_000)):
        yard.evidence_writer.digests.digest(f"tenant-{number}", "text")
    yard.evidence_writer.digests.written(yard.evidence_writer.digests.unwritten())
    return routed_us(yard, tenants)


def of_transactions(transactions: int) -> float:
    """The same requests in more transactions, as more partitions share them out; 10 candidates."""
    return routed_us(Yard(make_options(is_mixed=True)), transactions=transactions)


def of_held(held: int) -> float:
    """Hold a request and release it in a batch, while this many wait for a pool."""
    filled = Filled(held)
    filled.per_request_us(SAMPLE)
    return min(filled.per_request_us(SAMPLE) for _ in range(REPEATS))


CURVES = (
    Curve("pools, all candidates", (1, 3, 10, 30, 100), of_pools, "three candidates a pool"),
    Curve("pools, a tenth serves it", (1, 10, 30, 100), of_other_pools, "others aren't looked at"),
    Curve("classes", (10, 30, 100, 300, 1000), of_classes, "one look-up"),
    Curve("tenants", (1, 10, 100, 1000, 10_000, 100_000), of_tenants, "look-ups"),
    Curve(
        "transactions for 100 requests, 10 candidates",
        (1, 4, 16, 64),
        of_transactions,
        "signatures, for fewer requests each",
    ),
    Curve("held", (1000, 10_000, 100_000, 1_000_000), of_held, "a window of its own each group"),
)


def exponent(points: Sequence[tuple[int, float]]) -> float:
    """Return p of a cost that grows as size**p from the first point to the last."""
    (first, least), (last, most) = points[0], points[-1]
    return math.log(most / least) / math.log(last / first)


def measured() -> Iterator[tuple[Curve, list[tuple[int, float]]]]:
    """Yield each curve with its points."""
    for curve in CURVES:
        yield curve, [(size, curve.cost_us(size)) for size in curve.sizes]


def main() -> None:
    """Print a table, and draw it where that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__)
    parser.add_argument("--plot", type=Path, metavar="FILE", help="SVG or PNG, by its ending")
    asked = parser.parse_args()
    drawn = []
    print("| what grows | us a request at each size | grows as | because of |")
    print("| --- | --- | --- | --- |")
    for curve, points in measured():
        told = ", ".join(f"{size:,}: {cost:,.1f}" for size, cost in points)
        print(f"| {curve.name} | {told} | n^{exponent(points):.2f} | {curve.why} |", flush=True)
        drawn.append((curve.name, points))
    if asked.plot:
        draw(drawn, asked.plot)


def draw(curves: Sequence[tuple[str, Sequence[tuple[int, float]]]], file: Path) -> None:
    """Draw the curves, each over the cost of its smallest size, both axes logarithmic."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - wanted for the plot alone

    figure, axes = plt.subplots(figsize=(8, 5))
    for name, points in curves:
        sizes, costs = zip(*points, strict=True)
        axes.loglog(sizes, [cost / costs[0] for cost in costs], marker="o", label=name)
    axes.loglog((1, 100), (1, 100), linestyle=":", color="grey", label="linear")
    axes.set_xlabel("size")
    axes.set_ylabel("cost of a request, over that at the smallest size")
    axes.legend()
    figure.savefig(file)


if __name__ == "__main__":
    main()
