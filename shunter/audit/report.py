"""The report: where requests were served, at what cost, and whether promises were kept."""

import csv
import html
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple, dataclass, field, fields
from typing import Any

from shunter.audit.period import EvidencePeriod
from shunter.render.spreadsheet import cell
from streams.evidence.projection import EvidenceStep
from topics.iso_time import iso_time
from topics.records.evidence import ENDS

# Tolerance between promise and result, for rounding only.
COST_TOLERANCE = 1e-9


@dataclass(frozen=True, slots=True, order=True)
class Group:
    """The subject of a line; an empty name stands for requests never placed."""

    tenant: str
    task: str
    pool: str
    region: str
    precision: str


@dataclass(slots=True)
class Counts:
    """The counts of a line. ``late`` and ``dear`` are answers that broke their promise.

    ``assumed`` were answered by devices of which no servers were measured: what they were promised
    rests on assumptions. ``energy_wh`` is device time at busy power, ``gco2`` what it emitted, as
    far as the fleet tells. ``cost_usd`` includes
    ``spent_usd``, for tries that gave no answer. Answers with a promise from when they were held
    are ``held_promises``, and two counts say which broke that one.
    """

    requests: int = 0
    completed: int = 0
    failed: int = 0
    expired: int = 0
    rejected: int = 0
    cancelled: int = 0
    fallbacks: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost_usd: float = 0.0
    spent_usd: float = 0.0
    promised_usd: float = 0.0
    energy_wh: float = 0.0
    gco2: float = 0.0
    assumed: int = 0
    in_envelope: int = 0
    late: int = 0
    dear: int = 0
    held_promises: int = 0
    late_since_held: int = 0
    dear_since_held: int = 0


@dataclass(slots=True)
class AuditReport(EvidencePeriod):
    """Counts of the requests that ended from ``start`` to ``end``, epoch seconds."""

    groups: dict[Group, Counts] = field(default_factory=dict)

    def add(self, value: bytes) -> None:
        """Count a piece of evidence."""
        step = self.step_of(value)
        if step is None:
            return
        if step.spent is not None:
            counts = self._counts(step)
            counts.cost_usd += step.spent.usd
            counts.spent_usd += step.spent.usd
        if step.step == "fell_back":
            self._counts(step).fallbacks += 1
        elif step.step in ENDS:
            self._end(step)

    def total(self) -> Counts:
        """Return the sums over all groups."""
        total = Counts()
        for counts in self.groups.values():
            for each in fields(Counts):
                name = each.name
                setattr(total, name, getattr(total, name) + getattr(counts, name))
        return total

    def rows(self) -> list[dict[str, Any]]:
        """Return a line for each group, in the order of names."""
        return [asdict(group) | asdict(self.groups[group]) for group in sorted(self.groups)]

    def _counts(self, step: EvidenceStep) -> Counts:
        place = step.placement
        where = (place.pool, place.region, place.precision) if place else ("", "", "")
        group = Group(step.tenant or "", step.task or "", *where)
        return self.groups.setdefault(group, Counts())

    def _end(self, step: EvidenceStep) -> None:
        counts = self._counts(step)
        counts.requests += 1
        status = "completed" if step.step == "executed" else step.step
        setattr(counts, status, getattr(counts, status) + 1)
        if step.usage is not None:
            counts.input_tokens += step.usage.input_tokens
            counts.output_tokens += step.usage.output_tokens
        if step.promised is not None:
            counts.promised_usd += step.promised.cost_usd
        counts.assumed += step.assumed
        counts.energy_wh += step.energy_wh or 0.0
        if step.step == "executed":
            counts.gco2 += step.gco2
        if step.got is not None:
            counts.cost_usd += step.got.cost_usd
            if step.promised is not None:
                is_dear = step.got.cost_usd > step.promised.cost_usd + COST_TOLERANCE
                is_late = step.got.finish_s > step.promised.finish_s
                counts.dear += is_dear
                counts.late += is_late
                counts.in_envelope += not (is_dear or is_late)
            if (held := step.held_promise) is not None:
                counts.held_promises += 1
                counts.dear_since_held += step.got.cost_usd > held.cost_usd + COST_TOLERANCE
                counts.late_since_held += step.got.finish_s > held.finish_s


_HEADINGS = [each.name for each in (*fields(Group), *fields(Counts))]
_STYLE = (
    "body{font:14px sans-serif;margin:2em;color:#222}table{border-collapse:collapse}"
    "th,td{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:right}"
    "th:nth-child(-n+5),td:nth-child(-n+5){text-align:left}tfoot td{font-weight:bold}"
    "th{background:#f4f4f4;position:sticky;top:0}"
)


def as_csv(report: AuditReport) -> str:
    """Return the lines as CSV with a heading."""
    written = io.StringIO()
    writer = csv.DictWriter(written, _HEADINGS, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: cell(v) for name, v in row.items()} for row in report.rows())
    return written.getvalue()


def as_html(report: AuditReport) -> str:
    """Return a self-contained page: no script, no font, no picture."""
    heading = "".join(f"<th>{name.replace('_', ' ')}</th>" for name in _HEADINGS)
    body = "".join(
        _line([*astuple(group), *astuple(report.groups[group])]) for group in sorted(report.groups)
    )
    total = _line(["total", "", "", "", "", *astuple(report.total())])
    span = "the beginning" if report.start <= 0 else iso_time(report.start)
    span += "" if math.isinf(report.end) else f" to {iso_time(report.end)}"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8><title>Shunter: what was served</title>"
        f"<style>{_STYLE}</style><h1>What was served</h1>"
        f"<p>Requests that ended, and tries that failed, from {span}. A request is in its envelope"
        " when it cost and took no more than was promised when it was sent to its pool.</p>"
        f"<table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody>"
        f"<tfoot>{total}</tfoot></table></html>\n"
    )


def _line(values: Sequence[Any]) -> str:
    cells = "".join(f"<td>{html.escape(_shown(value))}</td>" for value in values)
    return f"<tr>{cells}</tr>"


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.6f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
