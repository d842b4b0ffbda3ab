"""What factors of a framework's own bring: errors on rows held out, without and with them.

    python -m benchmarks.framework_fit MEASURED.csv

MEASURED.csv is as for `benchmarks/hardware_fit.py`. The constants are fitted anew without each
group of rows, in three ways: alone, with a factor of each framework on what an iteration takes
beside arithmetic and memory, and with one on each of the five times that a pool learns
(`policies/hardware/constants.py`). Groups are told apart by less and less: by framework and all
that a configuration has, by device, by model, by the version of the framework.

All is linear in the logarithms about the packaged constants, so that the hundred fits need no
more simulation than one.
"""

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.hardware_fit import (
    GROUP,
    GUESS,
    GUESS_ERROR,
    ODD,
    STEP,
    TTFT_WEIGHT,
    Loops,
    Row,
    constants,
    load,
)
from shunter.hardware.devices import INHERITED, load_catalogue

Array = NDArray[np.float64]

# Standard deviation of ln of a framework's factor, before anything is seen of it.
FACTOR_ERROR = 0.1
ROUNDS = 30
# Constants that the factor of a time multiplies; those of a share divide it.
_TIMES: dict[str, dict[str, float]] = {
    "compute": {"compute_share": -1.0, "link_share": -1.0},
    "memory": {"bandwidth_share": -1.0},
    "step": {
        "layer_us": 1.0,
        "expert_layer_us": 1.0,
        "sequence_layer_us": 1.0,
        "all_reduce_us": 1.0,
    },
    "prompt": {"prompt_layer_us": 1.0},
    "first_token": {"first_token_ms": 1.0},
}
WAYS: dict[str, Sequence[str]] = {"none": (), "of a step": ("step",), "all five": tuple(_TIMES)}
HELD_OUT: dict[str, Sequence[str]] = {
    "configuration and framework": GROUP,
    "device": ("device",),
    "model": ("model",),
    "device and model": ("device", "model"),
    "version": ("framework", "framework_version"),
}


class Measured:
    """Residuals at the packaged constants (ln of predicted over measured), and their slopes.

    Figures are the TPOT of all rows, then the TTFT of those that have one.
    """

    def __init__(self, rows: Sequence[Row]) -> None:
        serving = load_catalogue().serving[INHERITED]
        self.point = np.array([math.log(getattr(serving, name)) for name in GUESS])
        self.rows = rows
        self._loops = Loops(rows)
        self.at = [*range(len(rows))]
        self.at += [number for number, row in enumerate(rows) if row.ttft_s is not None]
        self.residuals = self._residuals(self.point)
        moved = (self._residuals(self.point + STEP * unit) for unit in np.eye(len(GUESS)))
        self.slopes = np.column_stack([(each - self.residuals) / STEP for each in moved])
        weights = [row.weight for row in rows]
        self.weights = np.array(
            [weights[n] * (1.0 if i < len(rows) else TTFT_WEIGHT) for i, n in enumerate(self.at)]
        )

    def _residuals(self, point: Array) -> Array:
        tpot, ttft = [], []
        for row, means in self._loops.pairs(constants(tuple(point))):
            tpot.append(math.log(means.tpot_s / row.tpot_s))
            if row.ttft_s is not None:
                ttft.append(math.log(means.ttft_s / row.ttft_s))
        return np.array(tpot + ttft)

    def told(self, columns: Sequence[str]) -> NDArray[np.str_]:
        """Return for each figure what its row has in these columns, as one text."""
        named = ["|".join(row.fields.get(name, "") for name in columns) for row in self.rows]
        return np.array([named[number] for number in self.at])


def design(measured: Measured, times: Sequence[str]) -> Array:
    """Return the slopes by constants, and by each framework's factors on these times."""
    names, frameworks = list(GUESS), measured.told(("framework",))
    columns = [measured.slopes]
    for time in times:
        by = sum(sign * measured.slopes[:, names.index(of)] for of, sign in _TIMES[time].items())
        columns += [
            np.where(frameworks == framework, by, 0.0)[:, None]
            for framework in sorted(set(frameworks))
        ]
    return np.hstack(columns)


def fitted(measured: Measured, slopes: Array, seen: NDArray[np.bool_]) -> Array:
    """Return the best changes of constants and factors, by these figures alone."""
    known = len(GUESS)
    factors = slopes.shape[1] - known
    pull = np.array([ODD / GUESS_ERROR] * known + [ODD / FACTOR_ERROR] * factors) ** 2
    guess = np.array([math.log(value) for value in GUESS.values()])
    away = np.concatenate([measured.point - guess, np.zeros(factors)])
    x, y, found = slopes[seen], measured.residuals[seen], np.zeros(known + factors)
    for _ in range(ROUNDS):
        # As in `hardware_fit.fit`: what is odd counts ever less.
        weights = measured.weights[seen] ** 2 / np.sqrt(1 + ((y + x @ found) / ODD) ** 2)
        weighted = (x * weights[:, None]).T
        found = -np.linalg.solve(weighted @ x + np.diag(pull), weighted @ y + pull * away)
    return found


def errors(measured: Measured, slopes: Array, columns: Sequence[str]) -> Array:
    """Return the residual of each figure by a fit that saw no row of its group."""
    groups, left = measured.told(columns), measured.residuals.copy()
    for group in sorted(set(groups)):
        held = groups == group
        left[held] += slopes[held] @ fitted(measured, slopes, ~held)
    return left


def lines(measured: Measured, told: Callable[[Array], str]) -> Iterator[str]:
    """Yield the lines of a table of Markdown, one for each kind of group held out."""
    slopes = {way: design(measured, times) for way, times in WAYS.items()}
    yield "| held out | " + " | ".join(f"factors: {way}" for way in WAYS) + " |"
    yield "| --- |" + " --- |" * len(WAYS)
    everything = np.ones(len(measured.at), dtype=bool)
    seen = {
        way: measured.residuals + each @ fitted(measured, each, everything)
        for way, each in slopes.items()
    }
    yield _line("nothing", seen, told)
    for name, columns in HELD_OUT.items():
        found = {way: errors(measured, each, columns) for way, each in slopes.items()}
        yield _line(name, found, told)


def _line(name: str, found: Mapping[str, Array], told: Callable[[Array], str]) -> str:
    return f"| {name} | " + " | ".join(map(told, found.values())) + " |"


def _shown(residuals: Array, rows: int) -> str:
    """Return median error and 90 % of abs ln, of TPOT and TTFT."""
    parts = residuals[:rows], residuals[rows:]
    shown = (
        f"{100 * np.median(abs(np.expm1(part))):.1f} %, {np.quantile(abs(part), 0.9):.2f}"
        for part in parts
    )
    return "; ".join(shown)


def main() -> None:
    """Print the table, and the factors that all rows together have."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="measured configurations, .csv or .csv.gz")
    measured = Measured(load(parser.parse_args().file))
    for line in lines(measured, lambda left: _shown(left, len(measured.rows))):
        print(line, flush=True)
    own = measured.residuals.copy()
    groups = measured.told((*GROUP, "framework_version"))
    for first in (True, False):
        kind = np.arange(len(own)) < len(measured.rows)
        for group in set(groups):
            of = (groups == group) & (kind == first)
            own[of] -= np.median(own[of]) if of.any() else 0.0
    print(f"own factors of each group and version, seen: {_shown(own, len(measured.rows))}")
    frameworks = sorted({str(each) for each in measured.told(("framework",))})
    slopes = design(measured, WAYS["all five"])
    factors = np.exp(fitted(measured, slopes, np.ones(len(measured.at), dtype=bool))[len(GUESS) :])
    for time, values in zip(_TIMES, factors.reshape(-1, len(frameworks)), strict=True):
        print(time, dict(zip(frameworks, np.round(values, 2).tolist(), strict=True)))


if __name__ == "__main__":
    main()
