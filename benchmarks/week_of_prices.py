"""A week of day-ahead electricity prices, and of spot capacity that comes and goes, as a backtest.

    python -m benchmarks.week_of_prices 2023.csv us-west-2b_v100_1.json --from 2023-04-24 --out week

Neither file comes with Shunter, since neither names a licence. The first is a year of hourly
prices in euros per MWh (github.com/pvyleta/cz-electricity-spot-prices-history, ``data/ote/1h``),
the second a trace of spot capacity (github.com/skypilot-org/spot-traces, ``preemption/1-node``).
The folder then has a fleet of own hardware, of which upkeep and energy are paid, beside a spot
pool; a reality in which that pool goes with notice; a trace of a week made of the packaged sample;
and the packaged policy, in which batch work has a day, with and without waiting for prices.
docs/prices.md has the commands.
"""

import argparse
import csv
import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from shunter.backtest.files import read_trace
from streams.config.declarations import packaged

WEEK_S = 7 * 86_400.0
USD_OF_EUR = 1.1
# Market times are those of Central Europe in summer.
AHEAD_OF_UTC = timedelta(hours=2)
NOTICE_S = 120.0
OWN_USD_PER_HOUR = 0.05
"""Upkeep of a device that is paid for."""
SPOT = "silicon-us"


def prices(file: Path, start: datetime) -> Iterator[tuple[str, float]]:
    """Yield each hour of the week with its price in US dollars per kWh; none is below 0."""
    with file.open(encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            # The day on which clocks go back has a 25th hour.
            hours = timedelta(hours=int(row["time_from"][:2]))
            at = datetime.fromisoformat(f"{row['date']}T00:00+00:00") + hours - AHEAD_OF_UTC
            if start <= at < start + timedelta(seconds=WEEK_S):
                usd = max(0.0, float(row["price_eur_mwh"])) / 1000 * USD_OF_EUR
                yield at.isoformat(), round(usd, 6)


def outages(file: Path) -> list[dict[str, float | str]]:
    """Return when the capacity of a trace was away, in its first week."""
    told = json.loads(file.read_text())
    gap_s, found, since = told["metadata"]["gap_seconds"], [], None
    # The instances that there were at each tick; the end ends the last outage.
    ticks = [*told["data"][: int(WEEK_S / gap_s)], 1]
    for number, instances in enumerate(ticks):
        if not instances and since is None:
            since = number * gap_s
        elif instances and since is not None:
            found.append({"pool": SPOT, "from_s": since, "to_s": number * gap_s})
            since = None
    return [each | {"notice_s": NOTICE_S} for each in found]


def fleet() -> str:
    """Return the packaged fleet with own hardware at a site that pays by the hour."""
    text = packaged("fleet.yaml")
    series = "series: {day-ahead: {file: prices.csv, known_ahead_s: 86400}}\n"
    text = text.replace(
        "pools:\n", f"{series}sites: {{hall: {{usd_per_kwh: day-ahead}}}}\npools:\n", 1
    )
    own = f"    device: h200\n    site: hall\n    usd_per_hour: {OWN_USD_PER_HOUR}\n"
    text = text.replace("    device: h200\n", own, 1)
    spot = f"    device: maia-200\n    notice_s: {NOTICE_S:g}\n"
    return text.replace("    device: maia-200\n", spot, 1)


def policy(*, waits: bool) -> str:
    """Return the packaged policy with a day for batch work."""
    text = packaged("policy.yaml")
    wait = "" if waits else "\n    price_wait_s: 0"
    for name, seconds in (("summarization", 3600), ("synthetic_data", 14400)):
        head, tail = text.split(f"  {name}:\n", 1)
        tail = tail.replace(f"deadline_s: {seconds}", f"deadline_s: 86400{wait}", 1)
        text = f"{head}  {name}:\n{tail}"
    return text


def write_trace(folder: Path, every: int) -> None:
    """Write each so manieth request of the packaged sample, spread over a week."""
    found = read_trace(None)[::every]
    span_s = found[-1].arrival_s
    rows = [
        {
            "arrival_s": round(each.arrival_s / span_s * WEEK_S, 3),
            "task": each.task,
            "model": each.model,
            "input_tokens": each.input_tokens,
            "output_tokens": each.output_tokens,
        }
        for each in found
    ]
    with (folder / "trace.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prices", type=Path)
    parser.add_argument("capacity", type=Path)
    parser.add_argument("--from", dest="start", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--every", type=int, default=4)
    given = parser.parse_args(arguments)
    start = datetime.fromisoformat(given.start).replace(tzinfo=UTC)
    given.out.mkdir(parents=True, exist_ok=True)
    with (given.out / "prices.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("at", "value"), *prices(given.prices, start)])
    write_trace(given.out, given.every)
    (given.out / "fleet.yaml").write_text(fleet())
    (given.out / "policy.yaml").write_text(policy(waits=True))
    (given.out / "now.yaml").write_text(policy(waits=False))
    (given.out / "reality.yaml").write_text(json.dumps({"outages": outages(given.capacity)}))


if __name__ == "__main__":
    main()
