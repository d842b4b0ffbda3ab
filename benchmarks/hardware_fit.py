"""Fit the constants of servers to measured latencies, and tell the error on groups held out.

    python -m benchmarks.hardware_fit MEASURED.csv [--hold-out device] [--hold-out model]
    python -m benchmarks.hardware_fit MEASURED.csv --packaged --plot docs/hardware-errors.svg

MEASURED.csv, also as .csv.gz, has the columns of `shunter hardware predict` and, of the same
configurations, `tpot_ms` and where known `ttft_ms`; `framework` groups rows. Prints the constants
as `policies/defaults/devices.yaml` has them and the errors of `docs/hardware.md`. Each row is
simulated once, which takes most of the time; a fit then takes seconds (`benchmarks/schedules.py`).
"""

import argparse
import gzip
import math
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from statistics import median, quantiles

from benchmarks.schedules import Schedule, Schedules, schedule
from policies.config.rooflines import roofline_of
from policies.config.serving import Serving
from policies.hardware.closed_loop import Means
from policies.hardware.roofline import Roofline
from shunter.hardware.devices import load_catalogue
from shunter.hardware.least_squares import solved, weighted_product
from shunter.hardware.predictions import Configuration, configuration, predict, read_rows

# What one would guess: the fit begins here, and stays near where the data says nothing.
GUESS = {
    "compute_share": 0.8,
    "experts_share": 0.5,
    "bandwidth_share": 0.8,
    "layer_us": 30.0,
    "expert_layer_us": 10.0,
    "sequence_layer_us": 0.5,
    "prompt_layer_us": 100.0,
    "all_reduce_us": 10.0,
    "link_share": 0.7,
    "first_token_ms": 30.0,
}
# Standard deviations of ln: of what a guess is worth, and of what frameworks differ by on the same
# configuration; residuals beyond the latter count ever less, as some rows are simply odd.
GUESS_ERROR, ODD = 0.7, 0.15
# TTFT depends on settings that no column tells, so a row of it counts half as much.
TTFT_WEIGHT = 0.5
STEP_MAX, STEP, IMPROVEMENT = 0.5, 0.03, 0.002
GROUP = ("device", "model", "precision", "tensor_parallel", "framework")

Point = tuple[float, ...]
"""Logarithms of the constants, in the order of `GUESS`."""


@dataclass(eq=False)
class Row:
    """A measured configuration; times in seconds."""

    fields: dict[str, str]
    asked: Configuration
    lengths: list[tuple[int, int]]
    ttft_s: float | None
    tpot_s: float
    weight: float = 1.0

    @cached_property
    def schedule(self) -> Schedule:
        """Its iterations, which are the same by all constants."""
        roofline = roofline_by(self, constants(tuple(map(math.log, GUESS.values()))))
        return schedule(roofline, self.lengths, self.asked.concurrency)


def load(path: Path) -> list[Row]:
    """Return the measured rows of a file."""
    with tempfile.TemporaryDirectory() as directory:
        if path.suffix == ".gz":
            plain = Path(directory) / "rows.csv"
            with gzip.open(path) as packed, plain.open("wb") as file:
                shutil.copyfileobj(packed, file)
            path = plain
        given = read_rows(path)
    catalogue, rows = load_catalogue(), []
    groups = Counter(tuple(fields.get(name, "") for name in GROUP) for fields in given)
    for fields in given:
        asked = configuration(fields, catalogue)
        ttft_s = float(fields["ttft_ms"]) / 1000 if fields.get("ttft_ms") else None
        # Large groups say less per row: their rows share what is odd about them.
        weight = groups[tuple(fields.get(name, "") for name in GROUP)] ** -0.25
        tpot_s = float(fields["tpot_ms"]) / 1000
        rows.append(Row(fields, asked, asked.lengths(), ttft_s, tpot_s, weight))
    return rows


def constants(point: Point) -> Serving:
    """Return the constants of a point."""
    values = {name: math.exp(value) for name, value in zip(GUESS, point, strict=True)}
    for name in ("experts_share", "bandwidth_share"):
        values[name] = min(1.0, values[name])
    return Serving(**values, error=1.0, error_datasheet=1.0, error_assumed=1.0)


def roofline_by(row: Row, serving: Serving) -> Roofline:
    """Return the roofline of a row by these constants."""
    asked = row.asked
    device = asked.device.model_copy(update={"serving": serving})
    return roofline_of(
        device, asked.model, asked.precision, asked.tensor_parallel, asked.kv_precision
    )


class Loops:
    """The closed loops of rows, by any constants."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self._schedules = Schedules([row.schedule for row in rows])

    def means(self, serving: Serving) -> list[Means]:
        """Return the latencies of each row by these constants."""
        rooflines = [roofline_by(row, serving) for row in self.rows]
        return self._schedules.means(rooflines, serving.first_token_ms / 1000)

    def pairs(self, serving: Serving) -> list["Pair"]:
        """Return each row with its latencies by these constants."""
        return list(zip(self.rows, self.means(serving), strict=True))


def residuals(loops: Loops, point: Point) -> list[tuple[float, float]]:
    """Return (ln of predicted over measured, weight) of each figure, and of the guesses."""
    found = []
    for row, means in loops.pairs(constants(point)):
        found.append((math.log(means.tpot_s / row.tpot_s), row.weight))
        if row.ttft_s is not None:
            found.append((math.log(means.ttft_s / row.ttft_s), row.weight * TTFT_WEIGHT))
    guessed = zip(GUESS.values(), point, strict=True)
    # Not robust, and scaled so that one deviation of a guess weighs like one of a row.
    return found + [
        ((value - math.log(guess)) * ODD / GUESS_ERROR, 1.0) for guess, value in guessed
    ]


def loss(found: Iterable[tuple[float, float]]) -> float:
    """Return the sum of pseudo-Huber losses."""
    return sum(w * w * ODD * ODD * (math.sqrt(1 + (r / ODD) ** 2) - 1) for r, w in found)


def fit(rows: Sequence[Row], start: Point, told: Callable[[str], object]) -> Point:
    """Return the best point: Gauss-Newton steps on reweighted residuals.

    Any other minimiser would do; this one needs no library, and few evaluations.
    """
    loops = Loops(rows)
    point, found = start, residuals(loops, start)
    while True:
        before = loss(found)
        columns = []
        for index in range(len(point)):
            moved = tuple(v + STEP * (i == index) for i, v in enumerate(point))
            pairs = zip(residuals(loops, moved), found, strict=True)
            columns.append([(after[0] - now[0]) / STEP for after, now in pairs])
        weights = [w * w / math.sqrt(1 + (r / ODD) ** 2) for r, w in found]
        errors = [r for r, _ in found]
        normal = [[weighted_product(a, b, weights) for b in columns] for a in columns]
        step = solved(normal, [-weighted_product(a, errors, weights) for a in columns])
        scale = min(1.0, STEP_MAX / max(map(abs, step)))
        for _ in range(5):
            moved = tuple(v + scale * s for v, s in zip(point, step, strict=True))
            after = residuals(loops, moved)
            if loss(after) < before:
                break
            scale /= 2
        else:
            return point
        point, found = moved, after
        told(f"loss {before:.4f} -> {loss(found):.4f}")
        if before - loss(found) < IMPROVEMENT * before:
            return point


Pair = tuple[Row, Means]


def table(pairs: Sequence[Pair], by: Sequence[str] = ()) -> str:
    """Return the errors of predictions as a table of Markdown."""
    lines = [
        "| rows | TPOT ratio | error | 90 % of abs ln | TTFT ratio | error | 90 % of abs ln |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        _line("all", pairs),
    ]
    for column in by:
        groups: dict[str, list[Pair]] = defaultdict(list)
        for pair in pairs:
            groups[pair[0].fields[column]].append(pair)
        lines += [_line(f"{column} {name}", groups[name]) for name in sorted(groups)]
    return "\n".join(lines)


def _line(title: str, pairs: Sequence[Pair]) -> str:
    tpot = _figures([math.log(means.tpot_s / row.tpot_s) for row, means in pairs])
    ttft = _figures([math.log(m.ttft_s / r.ttft_s) for r, m in pairs if r.ttft_s is not None])
    return f"| {title} ({len(pairs)}) | {tpot} | {ttft} |"


def _figures(logs: Sequence[float]) -> str:
    if len(logs) < 2:
        return " | | "
    error = median(abs(math.expm1(each)) for each in logs)
    most = quantiles(map(abs, logs), n=10, method="inclusive")[-1]
    return f"{math.exp(median(logs)):.2f} | {100 * error:.1f} % | {most:.2f}"


def held_out(rows: Sequence[Row], column: str, start: Point) -> list[Pair]:
    """Return each row with its prediction by a fit that saw no row of its group."""
    pairs = []
    for name in sorted({row.fields[column] for row in rows}):
        seen = [row for row in rows if row.fields[column] != name]
        serving = constants(fit(seen, start, partial(print, name, flush=True)))
        pairs += Loops([row for row in rows if row.fields[column] == name]).pairs(serving)
    return pairs


RATIOS = (0.25, 0.33, 0.5, 0.67, 0.8, 1.0, 1.25, 1.5, 2.0, 3.0, 4.0)
"""What is told at an axis of ratios."""


def plot(pairs: Sequence[Pair], path: Path) -> None:
    """Draw the ratios of predicted to measured latencies, by device and width."""
    from matplotlib import pyplot as plt  # noqa: PLC0415 - wanted for the plot alone

    groups: dict[str, list[Pair]] = defaultdict(list)
    for row, means in pairs:
        groups[f"{row.fields['device']} x {row.asked.tensor_parallel}"].append((row, means))
    names = sorted(groups)
    plt.rcParams["svg.hashsalt"] = "hardware"
    figure, panels = plt.subplots(1, 2, figsize=(9, 4), sharey=True)
    tpot = [[m.tpot_s / r.tpot_s for r, m in groups[name]] for name in names]
    ttft = [[m.ttft_s / r.ttft_s for r, m in groups[name] if r.ttft_s] for name in names]
    for panel, title, ratios in zip(panels, ("TPOT", "TTFT"), (tpot, ttft), strict=True):
        panel.boxplot(ratios, orientation="horizontal", whis=(10, 90), showfliers=False)
        panel.set_yticks(range(1, len(names) + 1), names)
        panel.axvline(1.0, linewidth=0.8, linestyle="--", color="gray")
        panel.set_xscale("log", base=2)
        low, high = panel.get_xlim()
        ticks = [each for each in RATIOS if low <= each <= high]
        panel.set_xticks(ticks, [f"{each:g}" for each in ticks])
        panel.minorticks_off()
        panel.set_xlabel(f"{title}, predicted / measured")
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Print constants and errors."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="measured configurations, .csv or .csv.gz")
    parser.add_argument("--hold-out", action="append", default=[], metavar="COLUMN")
    parser.add_argument("--packaged", action="store_true", help="fit nothing: the packaged ones")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the errors")
    asked = parser.parse_args()
    rows = load(asked.file)
    guess = tuple(math.log(value) for value in GUESS.values())
    by = ("tensor_parallel", "device", "model")
    if asked.packaged:
        pairs = [(row, predict(row.asked)) for row in rows]
    else:
        serving = constants(fit(rows, guess, partial(print, flush=True)))
        pairs = Loops(rows).pairs(serving)
        print("\n".join(f"    {name}: {getattr(serving, name):.3g}" for name in GUESS))
    print(table(pairs, by), flush=True)
    if asked.plot is not None:
        plot(pairs, asked.plot)
    for column in asked.hold_out:
        # From the guess, not from the fit to all: that one has seen the group.
        print(f"\nheld out: {column}\n{table(held_out(rows, column, guess), by)}", flush=True)


if __name__ == "__main__":
    main()
