"""Whether a term of expert parallelism, with nothing fitted, is nearer to what was measured.

    python -m benchmarks.expert_imbalance MEASURED.csv

With whole experts on each device, 8 of 128 a token and 8 devices, what a token's exchange sends is
what an all-reduce sends (2 x 8 / 8 of its activations each way); what is left is that some device
has more experts to read than others. Prints, for the measured rows of such replicas, the median
error and the 90 % of abs ln of TPOT as it is predicted, and with the busiest device's share.
"""

import argparse
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, median, quantiles

from benchmarks.hardware_fit import Row, load
from policies.config.rooflines import roofline_of
from policies.hardware.closed_loop import closed_loop

MODEL, EXPERTS, CHOSEN, DRAWS = "qwen3-235b-a22b", 128, 8, 200


def imbalance(sequences: int, devices: int) -> float:
    """Return the experts that the busiest device reads, over the mean, if tokens choose freely."""
    draw, ratios = random.Random(1), []
    for _ in range(DRAWS):
        touched = {e for _ in range(sequences) for e in draw.sample(range(EXPERTS), CHOSEN)}
        counts = [sum(1 for e in touched if e % devices == each) for each in range(devices)]
        ratios.append(max(counts) / fmean(counts))
    return fmean(ratios)


def ratio(row: Row, busiest: float) -> float:
    """Return TPOT predicted over measured, where reading takes so many times as long."""
    asked = row.asked
    fields = (asked.device, asked.model, asked.precision, asked.tensor_parallel, asked.kv_precision)
    roofline = roofline_of(*fields)
    share = roofline.bandwidth_efficiency / busiest
    roofline = replace(roofline, bandwidth_efficiency=share)
    found = closed_loop(roofline, 0.0, row.lengths, asked.concurrency)
    return found.tpot_s / row.tpot_s


def told(ratios: Sequence[float]) -> str:
    """Return median error and the 90 % of abs ln."""
    most = quantiles([abs(math.log(each)) for each in ratios], n=10, method="inclusive")[-1]
    return f"{100 * median(abs(each - 1.0) for each in ratios):.1f} %, {most:.2f}"


def main() -> None:
    """Print both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="measured configurations, .csv or .csv.gz")
    rows = [
        row
        for row in load(parser.parse_args().file)
        if row.fields["model"] == MODEL and row.fields.get("expert_parallel") not in ("", "1")
    ]
    plain = [ratio(row, 1.0) for row in rows]
    busiest = {row.asked.concurrency: 0.0 for row in rows}
    devices = rows[0].asked.tensor_parallel
    busiest = {sequences: imbalance(sequences, devices) for sequences in busiest}
    print(f"{len(rows)} rows, as predicted: {told(plain)}")
    print(
        f"with the busiest device: {told([ratio(r, busiest[r.asked.concurrency]) for r in rows])}"
    )


if __name__ == "__main__":
    main()
