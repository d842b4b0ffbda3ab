"""The report as a page: no script, no font, no picture from elsewhere."""

import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from shunter.savings.counterfactuals import OURS

_STYLE = (
    "body{font:15px/1.45 system-ui,sans-serif;margin:2.5em auto;max-width:64em;padding:0 1em;"
    "color:#1c2430}h1{margin-bottom:.1em}h2{margin-top:2em}table{border-collapse:collapse;"
    "width:100%}th,td{padding:.35em .7em;border-bottom:1px solid #e1e5ea;text-align:left;"
    "vertical-align:top}th{background:#f5f7f9;font-weight:600}.n{text-align:right;"
    "font-variant-numeric:tabular-nums}.big{font-size:2em;font-weight:600}.dim{color:#5b6773}"
    "code{background:#f2f4f6;padding:.1em .3em;border-radius:3px;font-size:.88em;"
    "overflow-wrap:anywhere}svg{width:100%;height:auto;margin:1.2em 0 .4em}"
    ".wide{overflow-x:auto}dt{font-weight:600;margin-top:1em}"
    "dd{margin:0 0 0 1em}"
)
_BAR, _OURS, _GRID = "#9fb3c8", "#1f7a8c", "#c8d0d8"
_LEFT, _WIDTH, _LINE = 330, 900, 26
"""Of a plot, in its own units: room for names, width, and height of a bar's line."""


def as_page(report: Mapping[str, Any]) -> str:
    """Return the report of ``savings``, with its ``span`` and ``trail``, as a page of HTML."""
    anchors = _Anchors()
    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>Shunter: what placement saved</title><style>{_STYLE}</style>",
        *_summary(report, anchors),
        *_policies(report, anchors),
        *_questions(report, anchors),
        *_paid(report, anchors),
        *_misses(report, anchors),
        *_limits(report),
        *anchors.section(),
        "</html>\n",
    ]
    return "".join(parts)


class _Anchors:
    """The sources of figures, which stand at the end of the page and are linked to."""

    def __init__(self) -> None:
        self._told: list[str] = []

    def of(
        self, title: str, evidence: Mapping[str, Any] | None, command: str
    ) -> Callable[[str], str]:
        """Return what links figures to their common evidence and command.

        Args:
            title: of the figures.
            evidence: the records behind them; None: they are of a replay.
            command: makes them again.
        """
        number = len(self._told) + 1
        lines = []
        if evidence is not None:
            spans = ", ".join(
                f"partition {number} from offset {first} to {last}"
                for number, (first, last) in evidence["offsets"].items()
            )
            lines.append(f"<dd>{evidence['records']:,} records of evidence: {_text(spans)}</dd>")
            lines += [f"<dd><code>{_text(each['command'])}</code></dd>" for each in
                      evidence["examples"]]  # fmt: skip
        lines.append(f"<dd>made again by <code>{_text(command)}</code></dd>")
        self._told.append(f"<dt id=e{number}>{number}. {_text(title)}</dt>{''.join(lines)}")
        return lambda text: f"<a href=#e{number}>{text}</a>" if text else ""

    def section(self) -> Iterator[str]:
        """Yield the section that the links lead to."""
        yield "<h2>Where each figure comes from</h2><dl>"
        yield from self._told
        yield "</dl>"


def _summary(report: Mapping[str, Any], anchors: _Anchors) -> Iterator[str]:
    paid, premium = report["paid"]["total"], report["policies"].get("shunter_premium")
    link = anchors.of("What was paid for all", paid["evidence"], paid["command"])
    yield "<h1>What placement saved</h1>"
    yield f"<p class=dim>{_text(report['span'])}, from the evidence at {_text(report['trail'])}</p>"
    yield f"<p><span class=big>{link(_usd(paid['paid_usd']))}</span> paid for"
    yield f" {link(format(paid['requests'], ','))} requests, of which"
    yield f" {link(format(paid['completed'], ','))} were answered;"
    yield f" {link(_share(paid['slo_attainment']))} met their SLO.</p>"
    if premium is not None:
        ours = report["policies"][OURS]
        share = premium["saved_usd"] / premium["cost_usd"] if premium["cost_usd"] else 0.0
        link = anchors.of("This policy beside premium GPUs alone", None, premium["command"])
        yield f"<p>Replayed, the same requests cost {link(_usd(ours['cost_usd']))} by this policy,"
        yield f" and {link(_usd(premium['cost_usd']))} on premium GPUs alone:"
        yield f" {link(f'{share:.0%}')} {'less' if share >= 0 else 'more'}"
        yield f"{_left(premium, ours)}.</p>"


def _left(other: Mapping[str, Any], ours: Mapping[str, Any]) -> str:
    """Return what has to be known of a cost that is of fewer answers."""
    more = other["unanswered"] - ours["unanswered"]
    return f", although premium GPUs leave {more:,} more of them unanswered" if more > 0 else ""


def _policies(report: Mapping[str, Any], anchors: _Anchors) -> Iterator[str]:
    policies, bound = report["policies"], report["lower_bound"]
    if not policies:
        yield "<h2>By other policies</h2><p>No request of that time can be replayed.</p>"
        return
    yield f"<h2>The same {report['replayed']:,} requests by other policies</h2>"
    bars = [(each["told"], each["cost_usd"], name == OURS) for name, each in policies.items()]
    yield _plot(bars, bound["usd"])
    rows = []
    for name, each in policies.items():
        link = anchors.of(each["told"], None, each["command"])
        figures = (
            _usd(each["cost_usd"]),
            "" if name == OURS else _usd(each["saved_usd"], signed=True),
            _share(each["slo_attainment"]),
            f"{each['unanswered']:,}",
        )
        rows.append((_text(each["told"]), *map(link, figures)))
    if bound["usd"] is not None:
        link = anchors.of("Lower bound", None, bound["command"])
        less = _usd(bound["usd"] - policies[OURS]["cost_usd"], signed=True)
        cost = link(_usd(bound["usd"]))
        rows.append(("Lower bound: no schedule costs less", cost, link(less), "", ""))
    yield _table(("policy", "cost", "against this one", "SLO met", "unanswered"), rows, 1)
    if bound["note"]:
        yield f"<p>There is no lower bound: {_text(bound['note'])}.</p>"


def _questions(report: Mapping[str, Any], anchors: _Anchors) -> Iterator[str]:
    if report["questions"]:
        yield "<h2>What waiting earned and constraints cost</h2>"
        rows = [
            (
                _text(each["told"]),
                anchors.of(each["told"], None, each["command"])(_usd(each["usd"])),
            )
            for each in report["questions"].values()
        ]
        yield _table(("in replays", "US dollars"), rows, 1)


def _paid(report: Mapping[str, Any], anchors: _Anchors) -> Iterator[str]:
    yield "<h2>What was paid</h2>"
    for by in ("class", "pool", "tenant"):
        bills = report["paid"][by]
        yield _plot([(name, bill["paid_usd"], True) for name, bill in bills.items()], None)
        rows = []
        for name, bill in bills.items():
            figures = (
                f"{bill['requests']:,}",
                f"{bill['completed']:,}",
                f"{bill['input_tokens'] + bill['output_tokens']:,}",
                _usd(bill["paid_usd"]),
                _share(bill["slo_attainment"]),
            )
            link = anchors.of(f"{by} {name}", bill["evidence"], bill["command"])
            rows.append((_text(name), *map(link, figures)))
        yield _table((by, "requests", "answered", "tokens", "paid", "SLO met"), rows, 1)


def _misses(report: Mapping[str, Any], anchors: _Anchors) -> Iterator[str]:
    yield "<h2>Where SLOs were missed, and why</h2>"
    if not report["misses"]:
        yield "<p>None was missed.</p>"
        return
    rows = [
        (
            _text(each["class"]),
            _text(each["objective"]),
            _text(each["why"]),
            anchors.of(
                f"{each['class']}, {each['objective']}: {each['why']}",
                each["evidence"],
                each["command"],
            )(f"{each['requests']:,}"),
        )
        for each in report["misses"]
    ]
    yield _table(("class", "objective", "why", "requests"), rows, 3)


def _limits(report: Mapping[str, Any]) -> Iterator[str]:
    yield "<h2>What this doesn't tell</h2><ul>"
    told = list(report["notes"])
    told += [f"{count:,} left out of replays: {why}." for why, count in report["left_out"].items()]
    if report["open"]:
        told.append(f"{report['open']:,} requests had no end by then, and are not counted.")
    if report["unanswered"]:
        told.append(
            f"{report['unanswered']:,} got no answer; in replays theirs has the expected length."
        )
    if report["assumed_pools"]:
        pools = ", ".join(report["assumed_pools"])
        told.append(f"Replays rest on assumed figures of devices that nobody measured: {pools}.")
    yield "".join(f"<li>{_text(each)}</li>" for each in told)
    yield "</ul>"


def _plot(bars: Sequence[tuple[str, float, bool]], bound: float | None) -> str:
    """Return horizontal bars of US dollars, with a line at the bound."""
    most = max([usd for _, usd, _ in bars] + [bound or 0.0], default=0.0)
    if most <= 0:
        return ""
    scale = (_WIDTH - _LEFT - 90) / most
    height = _LINE * len(bars) + 22
    parts = [f"<svg viewBox='0 0 {_WIDTH} {height}' role=img font-size=13>"]
    for number, (name, usd, is_ours) in enumerate(bars):
        y, long = _LINE * number + 4, max(1.0, usd * scale)
        parts.append(
            f"<text x={_LEFT - 8} y={y + 14} text-anchor=end>{_text(_short(name))}</text>"
            f"<rect x={_LEFT} y={y} width={long:.1f} height={_LINE - 8} rx=2"
            f" fill='{_OURS if is_ours else _BAR}'/>"
            f"<text x={_LEFT + long + 6:.1f} y={y + 14}>{_usd(usd)}</text>"
        )
    if bound is not None:
        x = _LEFT + bound * scale
        parts.append(
            f"<line x1={x:.1f} x2={x:.1f} y1=0 y2={height - 16} stroke='black'"
            " stroke-dasharray='4'/>"
            f"<text x={x:.1f} y={height - 4} text-anchor=middle>lower bound</text>"
        )
    return "".join([*parts, "</svg>"])


def _short(name: str) -> str:
    return name if len(name) <= 46 else name[:45] + "…"


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int) -> str:
    def kind(column: int) -> str:
        return " class=n" if column >= numbers_from else ""

    heading = "".join(f"<th{kind(n)}>{_text(each)}</th>" for n, each in enumerate(headings))
    body = "".join(
        f"<tr>{''.join(f'<td{kind(n)}>{cell}</td>' for n, cell in enumerate(row))}</tr>"
        for row in rows
    )
    table = f"<table><thead><tr>{heading}</tr></thead><tbody>{body}</tbody></table>"
    return f"<div class=wide>{table}</div>"


def _usd(usd: float, *, signed: bool = False) -> str:
    digits = 2 if abs(usd) >= 100 else 4
    sign = "-" if usd < 0 else "+" if signed else ""
    return f"{sign}${abs(usd):,.{digits}f}"


def _share(share: float | None) -> str:
    return "" if share is None else f"{share:.2%}"


def _text(text: str) -> str:
    return html.escape(text)
