"""The tables of the live view: their columns, and the width from which each is shown."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar

from rich.table import Table
from rich.text import Text

from shunter.top.figures import NONE, bar, count, counts, duration, mean, percent, rate, usd
from streams.live.snapshot import FallbackView, GroupView, PoolView, Workload
from topics.terminal_text import visible_line

T = TypeVar("T")

BAR = 6
# What is left of a long name before columns are left out for it.
NAME = 24


@dataclass(frozen=True, slots=True)
class Column(Generic[T]):
    """One column. ``value`` is the sort key of rows, if they can be sorted by it.

    It is shown on terminals of at least ``columns_min`` columns.
    """

    heading: str
    show: Callable[[T], str | Text]
    value: Callable[[T], Any] | None = None
    columns_min: int = 0
    justify: Literal["left", "right"] = "right"
    is_flexible: bool = False


def table(
    of: Sequence[Column[T]],
    rows: Sequence[T],
    width: int,
    *,
    title: Text | None = None,
    sorted_by: str = "",
) -> Table:
    """Return rows as a table, a line each, with its title in place of the first heading.

    The heading of the sort column is marked. If there is not room for all, only flexible columns
    shrink; of a table without any, columns of wider terminals are left out, and then names shrink.
    """
    made = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    drawn = [_drawn(column, rows, sorted_by, None if n else title) for n, column in enumerate(of)]
    has_flexible = any(each.column.is_flexible for each in drawn)
    if not has_flexible:
        drawn = _as_many_as_fit(drawn, width)
    # The last has no gap behind it.
    excess = sum(each.widest + 1 for each in drawn) - 1 - width
    for number, (column, heading, _, widest) in enumerate(drawn):
        gives_way = column.is_flexible if has_flexible else not number
        shown = max(heading.cell_len, widest - excess) if gives_way else widest
        made.add_column(
            heading,
            justify=column.justify,
            no_wrap=True,
            overflow="ellipsis",
            width=min(widest, shown),
        )
    for row in zip(*(each.cells for each in drawn), strict=True):
        made.add_row(*row)
    return made


class _Drawn(NamedTuple, Generic[T]):
    """A column as it is shown; ``widest`` is the width that nothing of it is cut at."""

    column: Column[T]
    heading: Text
    cells: list[Text]
    widest: int


def _drawn(column: Column[T], rows: Sequence[T], sorted_by: str, title: Text | None) -> _Drawn[T]:
    heading = Text("*" if column.heading == sorted_by else "")
    heading.append_text(Text(column.heading) if title is None else title)
    cells = [_text(column.show(row)) for row in rows]
    return _Drawn(column, heading, cells, max(each.cell_len for each in (heading, *cells)))


def _as_many_as_fit(drawn: Sequence[_Drawn[T]], width: int) -> list[_Drawn[T]]:
    """Return the columns without the last ones of the widest terminals, as far as they must go."""
    kept = list(drawn)
    longest = max(0, kept[0].widest - NAME)
    # The last has no gap behind it.
    while sum(each.widest + 1 for each in kept) - 1 - longest > width:
        at = max(range(len(kept)), key=lambda n: (kept[n].column.columns_min, n))
        if not kept[at].column.columns_min:
            break
        del kept[at]
    return kept


def _text(shown: str | Text) -> Text:
    text = Text(shown) if isinstance(shown, str) else shown
    # Escaped here: the longer text needs its room.
    plain = visible_line(text.plain)
    return text if plain == text.plain else Text(plain, text.style)


def columns(of: Sequence[Column[T]], *headings: str) -> list[Column[T]]:
    """Return the columns of these headings."""
    by_heading = {column.heading: column for column in of}
    return [by_heading[heading] for heading in headings]


def wide_enough(of: Sequence[Column[T]], width: int) -> list[Column[T]]:
    """Return the columns that fit a terminal's width."""
    return [column for column in of if column.columns_min <= width]


def _device(pool: PoolView) -> str:
    device = pool.device or NONE
    return f"{device}, assumed" if pool.assumed else device


def _busy(pool: PoolView) -> str | Text:
    if pool.state == "none":
        return Text("no worker", "red")
    if pool.state == "misfit":
        return Text("misfit", "bold red")
    if pool.state == "draining":
        return Text("draining", "yellow")
    if pool.busy is None:
        return NONE
    return f"{bar(pool.busy, BAR)} {pool.busy:>4.0%}"


def _circuit(pool: PoolView) -> str | Text:
    if pool.state == "none":
        return NONE
    found = (
        (f"{len(pool.circuits)} open", pool.circuits),
        (f"{len(pool.drifted)} drift", pool.drifted),
    )
    told = " ".join(words for words, variants in found if variants)
    return Text(told, "bold red") if told else "closed"


def _speed(pool: PoolView) -> str:
    if not pool.speed:
        return NONE
    low, high = (f"{end(pool.speed.values()):.2f}" for end in (min, max))
    return f"{low}x" if low == high else f"{low}-{high}x"


def _energy(pool: PoolView) -> str:
    return NONE if pool.wh_per_request is None else f"{pool.wh_per_request:.3g}"


def _cached(pool: PoolView) -> str:
    return NONE if pool.cached_share is None else percent(pool.cached_share)


POOLS: Sequence[Column[PoolView]] = (
    Column("pool", lambda p: Text(p.pool, "bold"), lambda p: p.pool, justify="left"),
    Column("device", _device, lambda p: p.device or "", 105, "left"),
    Column("region", lambda p: p.region or NONE, lambda p: p.region or "", 150, "left"),
    Column("busy", _busy, lambda p: p.busy or 0.0, justify="left"),
    Column("runs", lambda p: count(p.running), lambda p: p.running),
    Column("slots", lambda p: count(p.slots), lambda p: p.slots, 115),
    Column("queued", lambda p: count(p.queued), lambda p: p.queued),
    Column("backlog", lambda p: duration(p.backlog_s), lambda p: p.backlog_s),
    Column("speed", _speed, lambda p: min(p.speed.values(), default=0.0)),
    Column("breaker", _circuit, lambda p: len(p.circuits) + len(p.drifted), justify="left"),
    Column("direct", lambda p: count(p.direct), lambda p: p.direct, 130),
    Column("batch", lambda p: count(p.batch), lambda p: p.batch, 130),
    Column("failed", lambda p: count(p.fallbacks), lambda p: p.fallbacks, 130),
    Column("req/s", lambda p: rate(p.per_s), lambda p: p.per_s),
    Column("$/h", lambda p: usd(p.usd_per_hour), lambda p: p.usd_per_hour),
    Column("cached", _cached, lambda p: p.cached_share or 0.0, 160),
    Column("Wh/req", _energy, lambda p: p.wh_per_request or 0.0, 125),
    Column("$ in all", lambda p: usd(p.total_usd), lambda p: p.total_usd, 140),
)


def _kept(share: float | None) -> Text:
    if share is None:
        return Text(NONE)
    return Text(percent(share), "green" if share >= 0.99 else "yellow" if share >= 0.9 else "red")


CLASSES: Sequence[Column[Workload]] = (
    Column("class", lambda c: Text(c.task, "bold"), lambda c: c.task, justify="left"),
    Column("ended/s", lambda c: rate(c.per_s), lambda c: c.per_s),
    Column("ended", lambda c: count(c.ended), lambda c: c.ended, 90),
    Column("SLO", lambda c: _kept(c.attainment), lambda c: -(c.attainment or 0.0)),
    Column("TTFT p50", lambda c: duration(c.ttft_p50_s), lambda c: c.ttft_p50_s or 0.0),
    Column("p99", lambda c: duration(c.ttft_p99_s), lambda c: c.ttft_p99_s or 0.0),
    Column("e2e p50", lambda c: duration(c.finish_p50_s), lambda c: c.finish_p50_s or 0.0),
    Column("e2e p99", lambda c: duration(c.finish_p99_s), lambda c: c.finish_p99_s or 0.0),
    Column("no answer", lambda c: count(c.without_answer), lambda c: c.without_answer),
    Column("in all", lambda c: count(c.total_ended), lambda c: c.total_ended, 110),
    Column("SLO in all", lambda c: percent(c.total_attainment), None, 110),
)


def group(hold: GroupView) -> Text:
    """Return the common properties of a batch group's members."""
    told = Text(hold.model, "bold")
    told.append(f" {hold.operation}", "not bold")
    if hold.prompt_tokens_max is not None:
        told.append(f" ≤{hold.prompt_tokens_max:,}", "not bold")
    if not hold.is_batch:
        told.append(" waits for a pool", "not bold")
    for name, value in hold.constraints.items():
        told.append(f" {name.replace('_', ' ')} {_words(value)}", "not bold dim")
    return told


def _words(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(f"{key} {each}" for key, each in value.items())
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _release(hold: GroupView) -> str | Text:
    if hold.release_in_s is None:
        return NONE
    if hold.release_in_s < 0:
        return Text(f"due {duration(-hold.release_in_s)}", "yellow")
    return f"in {duration(hold.release_in_s)}"


HOLDS: Sequence[Column[GroupView]] = (
    Column("held as", group, lambda h: h.group, justify="left", is_flexible=True),
    Column("held", lambda h: count(h.held), lambda h: h.held),
    Column("of a batch", lambda h: f"{bar(h.fill, BAR)} {h.fill:>4.0%}", None, justify="left"),
    Column("oldest", lambda h: duration(h.oldest_s), lambda h: h.oldest_s or 0.0),
    Column("goes", _release, lambda h: -(h.release_in_s or 1e9)),
    Column("batches", lambda h: count(h.batches), lambda h: h.batches),
    Column("mean", lambda h: mean(h.released, h.batches)),
    Column("because of", lambda h: counts(h.reasons), None, 120, "left"),
)


def _clock(fallback: FallbackView) -> str:
    return f"{datetime.fromtimestamp(fallback.at).astimezone():%H:%M:%S}"


FALLBACKS: Sequence[Column[FallbackView]] = (
    Column("fell back", _clock, lambda f: f.at, justify="left"),
    Column("request", lambda f: Text(f.request_id), justify="left", is_flexible=True),
    Column("class", lambda f: Text(f.task or NONE), None, 110, "left"),
    Column(
        "from → to",
        lambda f: Text(f"{f.from_pool} → {f.to_pool or '…'}"),
        lambda f: f.from_pool,
        justify="left",
    ),
    Column("reason", lambda f: Text(f.reason or NONE), lambda f: f.reason or "", justify="left"),
)
