"""The page for a regulator: what served each tenant and where, what went wrong, the proofs."""

import html
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shunter.audit.findings import Findings
from shunter.audit.period import EvidencePeriod
from shunter.audit.report import COST_TOLERANCE
from streams.evidence.projection import EvidenceStep
from topics.iso_time import iso_time
from topics.records.evidence import ENDS

HEADS_MAX = 1000
# What verification does not show; docs/evidence.md has who is believed for what.
NOT_SHOWN = (
    "that the machine of a worker did what the worker says of it",
    "that nobody holds a signing key who should not",
    "texts of requests and answers: they are not in the trail, and are not in this page",
)
_STYLE = (
    "body{font:14px sans-serif;margin:2em;color:#222;max-width:70em}"
    "table{border-collapse:collapse;margin-bottom:1em}"
    "th,td{padding:.3em .7em;border-bottom:1px solid #ddd;text-align:left}th{background:#f4f4f4}"
    "td.n{text-align:right}.bad{color:#a00}.good{color:#060}code{font-size:12px}"
)


@dataclass(slots=True)
class TenantAccount:
    """A tenant's account by the trail.

    ``served`` counts answers by region, pool, device and precision; ``exceptions`` by what and why.
    """

    records: int = 0
    requests: int = 0
    served: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    exceptions: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(slots=True)
class RegulatorReport(EvidencePeriod):
    """Accounts of the tenants from ``start`` to ``end``, epoch seconds."""

    tenants: dict[str, TenantAccount] = field(default_factory=dict)

    def add(self, value: bytes) -> None:
        """Count a piece of evidence."""
        step = self.step_of(value)
        if step is None:
            return
        account = self.tenants.setdefault(step.tenant or "", TenantAccount())
        account.records += 1
        account.requests += step.step in ENDS
        if step.step == "executed":
            self._served(account, step)
        elif step.step in ENDS or step.step in {"fell_back", "dead_lettered", "duplicate"}:
            account.exceptions[step.step.replace("_", " "), step.reason or ""] += 1

    @staticmethod
    def _served(account: TenantAccount, step: EvidenceStep) -> None:
        place = step.placement
        if place is not None:
            account.served[place.region, place.pool, place.device, place.precision] += 1
        promised, got = step.promised, step.got
        if promised is not None and got is not None:
            if got.finish_s > promised.finish_s:
                account.exceptions["served later than promised", ""] += 1
            if got.cost_usd > promised.cost_usd + COST_TOLERANCE:
                account.exceptions["served at more cost than promised", ""] += 1


def as_page(report: RegulatorReport, findings: Findings, trail: str, keys: str | None) -> str:
    """Return a self-contained page: no script, no font, no picture.

    Args:
        report: of the evidence of the trail.
        findings: of its verification, all of it.
        trail: its place, for people.
        keys: where the keys come from that were believed; None for the trail itself.
    """
    span = "the beginning" if report.start <= 0 else iso_time(report.start)
    span += "" if math.isinf(report.end) else f" to {iso_time(report.end)}"
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Shunter: account of tenants",
        f"</title><style>{_STYLE}</style><h1>Account of tenants</h1>",
        f"<p>From the signed evidence at {_shown(trail)}, from {span}. A record without a tenant",
        " is of a request that could not be read, or of a cancellation.</p>",
        *_checked(findings, keys),
        *(_tenant(name, report.tenants[name]) for name in sorted(report.tenants)),
        *_proofs(findings),
        "</html>\n",
    ]
    return "".join(parts)


def _checked(findings: Findings, keys: str | None) -> Iterable[str]:
    """Yield what was checked, and what was not."""
    yield "<h2>What was checked</h2>"
    if findings.is_good:
        yield "<p class=good>No problem was found.</p>"
    else:
        counts = ", ".join(f"{count} {kind}" for kind, count in findings.counts.most_common())
        yield f"<p class=bad>Problems were found; this page can't be relied on: {counts}.</p>"
    believed = f"those that {keys} names" if keys else "those that the trail itself publishes"
    yield _table(
        ("what", "how much"),
        (
            ("records held against their signed roots", findings.records),
            ("signed roots, each against its key and the one before", findings.roots),
            ("requests whose steps were held against each other", findings.requests),
            ("requests not ended yet", findings.open),
            ("records newer than the last root, not checked", findings.fresh),
            ("keys believed", believed),
        ),
    )
    for told, lines in (
        ("Checked:", findings.checked),
        ("Not checked, or not shown by this:", (*findings.notes, *findings.unchecked, *NOT_SHOWN)),
    ):
        yield f"<p>{told}</p><ul>{''.join(f'<li>{_shown(text)}' for text in lines)}</ul>"


def _tenant(name: str, account: TenantAccount) -> str:
    served = [(*where, count) for where, count in sorted(account.served.items())]
    wrong = [(*what, count) for what, count in sorted(account.exceptions.items())]
    return (
        f"<h2>Tenant {_shown(name) or '(none)'}</h2>"
        f"<p>{account.records:,} records of evidence, {account.requests:,} requests that ended.</p>"
        + _table(("region", "pool", "hardware", "precision", "answers"), served)
        + _table(("exception", "reason", "times"), wrong)
    )


def _proofs(findings: Findings) -> Iterable[str]:
    heads = sorted(findings.heads.items())
    yield "<h2>Proofs</h2><p>Each record stands under a signed root of one of these chains, and"
    yield " each root names the one before: the last of each stands for all."
    yield " <code>shunter audit proof ID</code> proves one request to who has the keys.</p>"
    rows = [
        (chain, head.sequence + 1, iso_time(head.at), head.digest)
        for chain, head in heads[:HEADS_MAX]
    ]
    yield _table(("chain", "roots", "last at", "SHA-256 of its statement"), rows)
    if len(heads) > HEADS_MAX:
        yield f"<p>{len(heads) - HEADS_MAX} more chains are not listed.</p>"


def _table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    if not body:
        return f"<p>No {headings[0]}.</p>"
    heading = "".join(f"<th>{each}</th>" for each in headings)
    return f"<table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, int):
        return f"<td class=n>{value:,}</td>"
    return f"<td>{_shown(value)}</td>"


def _shown(value: object) -> str:
    return html.escape(str(value))
