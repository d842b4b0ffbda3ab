"""A week of spot prices of GPU instances, and of spot capacity that comes and goes, as a backtest.

    python -m benchmarks.week_of_spot_prices logs/aws/cost us-west-2b_v100_1.json --out spot

The first is of github.com/stanford-futuredata/training_on_a_dime (MIT): what AWS asked for its GPU
instances from December 2019 to March 2020, by zone. The second is a trace of spot capacity
(github.com/skypilot-org/spot-traces, ``preemption/1-node``), which names no licence. Neither comes
with Shunter.

The folder then has the packaged fleet with two of its pools on the spot market. Nobody has
published spot prices of their devices, so that each costs the share of its declared price that an
instance of the week cost of its own price on demand. ``fleet.yaml`` knows the market of now alone,
``known.yaml`` a day of it ahead. Capacity of one of them goes with notice, by the trace. The policy
and the requests are those of `benchmarks.week_of_prices`. docs/prices.md has the commands.
"""

import argparse
import csv
import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from benchmarks.week_of_prices import NOTICE_S, SPOT, WEEK_S, outages, policy, write_trace
from streams.config.declarations import load_fleet, packaged

START = "2020-03-02"
DAY_S = 86_400
WEEK_H = WEEK_S / 3600


class Instance(NamedTuple):
    """A kind of instance in a zone, and its price on demand in US dollars an hour."""

    name: str
    zone: str
    usd_per_hour: float


# Sixteen K80, whose price doubled within the week, and eight V100, whose price moved little.
MARKETS = {
    SPOT: Instance("p2.16xlarge", "us-east-1c", 14.4),
    "premium-us": Instance("p3.16xlarge", "us-west-2b", 24.48),
}


def shares(costs: Path, instance: Instance, start: datetime) -> list[tuple[datetime, float]]:
    """Return when the spot price of an instance moved, as shares of its price on demand.

    The first is that of the week's beginning.

    Raises:
        ValueError: the folder has no price of it before the week, or none within it.
    """
    found: dict[datetime, float] = {}
    # A file is of the weeks before the day in its name.
    for file in (costs / instance.zone[:-1]).glob(f"*{instance.name}.json"):
        for told in json.loads(file.read_text())["SpotPriceHistory"]:
            if told["AvailabilityZone"] == instance.zone:
                at = datetime.fromisoformat(told["Timestamp"])
                found[at] = float(told["SpotPrice"]) / instance.usd_per_hour
    before = [at for at in found if at <= start]
    within = [at for at in sorted(found) if start < at < start + timedelta(seconds=WEEK_S)]
    if not before or not within:
        raise ValueError(f"{costs} has no prices of {instance} around {start:%Y-%m-%d}")
    return [(start, found[max(before)]), *((at, found[at]) for at in within)]


def fleet(known_ahead_s: int, interruptions_per_hour: float) -> str:
    """Return the packaged fleet with two pools on the market."""
    text, declared = packaged("fleet.yaml"), load_fleet(None)
    series = "".join(
        f"  spot-{pool}: {{file: {pool}.csv, known_ahead_s: {known_ahead_s}}}\n" for pool in MARKETS
    )
    text = text.replace("pools:\n", f"series:\n{series}pools:\n", 1)
    for pool in MARKETS:
        head = f"  {pool}:\n    device: {declared.pools[pool].device}\n"
        if head not in text:
            raise ValueError(f"the packaged fleet has {pool} otherwise than {head!r}")
        text = text.replace(head, f"{head}    tariff: spot-{pool}\n", 1)
    head = f"    tariff: spot-{SPOT}\n"
    taken = f"    notice_s: {NOTICE_S:g}\n    interruptions_per_hour: {interruptions_per_hour:g}\n"
    return text.replace(head, head + taken, 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("costs", type=Path)
    parser.add_argument("capacity", type=Path)
    parser.add_argument("--from", dest="start", default=START)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=2)
    given = parser.parse_args(arguments)
    start = datetime.fromisoformat(given.start).replace(tzinfo=UTC)
    given.out.mkdir(parents=True, exist_ok=True)
    declared, gone = load_fleet(None), outages(given.capacity)
    for pool, instance in MARKETS.items():
        usd = declared.devices[declared.pools[pool].device].usd_per_hour
        moves = [(at, share * usd) for at, share in shares(given.costs, instance, start)]
        least, most = min(usd for _, usd in moves), max(usd for _, usd in moves)
        print(f"{pool}: {len(moves)} prices, {least:.2f} to {most:.2f} an hour; {usd:.2f} declared")
        with (given.out / f"{pool}.csv").open("w", newline="") as file:
            rows = [(at.isoformat(), round(usd, 6)) for at, usd in moves]
            csv.writer(file).writerows([("at", "value"), *rows])
    write_trace(given.out, given.every)
    for name, ahead_s in (("fleet", 0), ("known", DAY_S)):
        (given.out / f"{name}.yaml").write_text(fleet(ahead_s, len(gone) / WEEK_H))
    (given.out / "policy.yaml").write_text(policy(waits=True))
    (given.out / "reality.yaml").write_text(json.dumps({"outages": gone}))


if __name__ == "__main__":
    main()
