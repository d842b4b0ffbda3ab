"""Figures: a measurement, its reference, and its target."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One row of the table.

    Attributes:
        name: name of the measurement.
        value: Shunter's value, in ``unit``.
        reference: value of the reference; None if there is only a limit.
        ratio: value over reference, or the value if there is no reference.
        reach: target of the ratio.
        at_most: whether less is better.
        unit: unit of value and reference.
        against: description of the reference.
        rounds: the raw values of each side.
        note: remark for readers, printed with the row.
    """

    name: str
    value: float
    reference: float | None
    ratio: float
    reach: float
    at_most: bool = False
    unit: str = "/s"
    against: str = ""
    rounds: Mapping[str, Sequence[float]] = field(default_factory=dict)
    note: str = ""

    @property
    def ok(self) -> bool:
        """True if the target is reached."""
        return self.ratio <= self.reach if self.at_most else self.ratio >= self.reach

    def as_json(self) -> dict[str, Any]:
        """Return the row for programs."""
        return {
            "name": self.name,
            "value": round(self.value, 6),
            "reference": None if self.reference is None else round(self.reference, 6),
            "ratio": round(self.ratio, 4),
            "reach": self.reach,
            "ok": self.ok,
            "unit": self.unit,
            "against": self.against,
            "rounds": {name: [round(x, 6) for x in each] for name, each in self.rounds.items()},
            "note": self.note,
        }


def compared(
    name: str,
    ours: Sequence[float],
    theirs: Sequence[float],
    reach: float,
    *,
    against: str,
    at_most: bool = False,
    unit: str = "/s",
    note: str = "",
) -> Figure:
    """Return the row of medians of interleaved rounds."""
    value, reference = statistics.median(ours), statistics.median(theirs)
    return Figure(
        name,
        value,
        reference,
        value / reference,
        reach,
        at_most,
        unit,
        against,
        {"shunter": list(ours), against: list(theirs)},
        note,
    )


def table(figures: Sequence[Figure]) -> str:
    """Return the figures as a table of Markdown."""
    lines = [
        "| figure | value | against | reference | ratio | reach | |",
        "| --- | ---: | --- | ---: | ---: | ---: | --- |",
    ]
    for figure in figures:
        met = "met" if figure.ok else "not met"
        told = f"{met}; {figure.note}" if figure.note else met
        sign = "≤" if figure.at_most else "≥"
        reference = "" if figure.reference is None else f"{figure.reference:,.6g} {figure.unit}"
        lines.append(
            f"| {figure.name} | {figure.value:,.6g} {figure.unit} | {figure.against} |"
            f" {reference} | {figure.ratio:.2f} | {sign} {figure.reach:g} | {told} |"
        )
    return "\n".join(lines)
