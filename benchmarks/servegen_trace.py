"""A trace of chats as an operator's clients send them, by ServeGen's measured distributions.

    python -m benchmarks.servegen_trace data/language/m-mid trace.csv --rate 16

The folder is of github.com/alibaba/ServeGen (Apache-2.0): for each client of a production model its
rate and burstiness each ten minutes of two weeks, and histograms of its prompts and replies each
six hours. Arrivals of a client are a gamma process with its rate and coefficient of variation,
lengths are drawn from its histograms, and all rates are scaled to the one that is asked for. Models
are those of the open trace's chats, in its shares. Nothing of Shunter was tuned to it.
"""

import argparse
import ast
import csv
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

RATES_S, LENGTHS_S = 600, 21_600
HOUR_S = 3_600.0
TASK, MODELS, SHARES = "chat", ("llama-3.1-8b", "llama-3.1-70b"), (0.65, 0.35)
# The context that all variants of these models have.
TOKENS_MAX = 100_000

Histogram = tuple[list[int], list[float]]


class Client(NamedTuple):
    """A client at one time: requests a second, their burstiness, and lengths."""

    rate: float
    variation: float
    prompts: Histogram
    replies: Histogram


def clients(folder: Path, at_s: int) -> Iterator[Client]:
    """Yield the clients that send anything at a time, in seconds since the data's beginning."""
    for lengths_file in sorted(folder.glob("chunk-*-dataset.json")):
        lengths = json.loads(lengths_file.read_text())[str(at_s // LENGTHS_S * LENGTHS_S)]
        prompts, replies = (_histogram(lengths[name]) for name in ("input_tokens", "output_tokens"))
        rates_file = lengths_file.with_name(lengths_file.name.replace("dataset.json", "trace.csv"))
        with rates_file.open(encoding="utf-8") as lines:
            rows = {int(float(row[0])): row for row in csv.reader(lines)}
        row = rows.get(at_s // RATES_S * RATES_S)
        if row is not None and float(row[1]) > 0 and prompts[0] and replies[0]:
            yield Client(float(row[1]), max(0.1, float(row[2])), prompts, replies)


def _histogram(text: str) -> Histogram:
    found = ast.literal_eval(text)
    return list(found), list(found.values())


def requests(known: list[Client], rate: float, seed: int) -> list[dict[str, object]]:
    """Return an hour of requests, so many a second on average."""
    draw, scale = random.Random(seed), rate / sum(each.rate for each in known)
    found = []
    for each in known:
        shape = 1 / each.variation**2
        mean_s = 1 / (each.rate * scale)
        # From within a gap, so that clients don't begin together.
        at = -draw.random() * mean_s
        while (at := at + draw.gammavariate(shape, mean_s / shape)) < HOUR_S:
            (prompt,), (reply,) = (
                draw.choices(*lengths) for lengths in (each.prompts, each.replies)
            )
            if at >= 0 and prompt + reply <= TOKENS_MAX:
                found.append((at, max(1, prompt), max(1, reply)))
    return [
        {
            "arrival_s": round(at, 3),
            "task": TASK,
            "model": draw.choices(MODELS, SHARES)[0],
            "input_tokens": prompt,
            "output_tokens": reply,
        }
        for at, prompt, reply in sorted(found)
    ]


def main() -> None:
    """Write the trace."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--rate", type=float, default=16.0, help="requests a second")
    parser.add_argument("--at-hour", type=float, default=34.0, help="since the data's beginning")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    known = list(clients(given.source, int(given.at_hour * HOUR_S)))
    rows = requests(known, given.rate, given.seed)
    with given.target.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    prompts, replies = (
        sum(int(str(row[n])) for row in rows) for n in ("input_tokens", "output_tokens")
    )
    print(
        f"{len(rows)} requests of {len(known)} clients, on average {prompts / len(rows):.0f} tokens"
        f" and {replies / len(rows):.0f} of a reply"
    )


if __name__ == "__main__":
    main()
