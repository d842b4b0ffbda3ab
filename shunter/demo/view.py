"""The live view of a demo, for a terminal of 80 columns or more."""

import time
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from shunter.demo.watch import Watch
from shunter.top.columns import HOLDS, POOLS, Column, columns, table
from shunter.top.figures import count, mean, usd
from streams.live import snapshot_of
from streams.live.snapshot import GroupView, PoolView

# A drawing takes 6 ms, which the system shares with us.
DRAWN_EVERY_S = 0.5
GROUPS_SHOWN = 8

# The totals of a run, where `shunter top` has the last minute.
_POOLS: Sequence[Column[PoolView]] = (
    *columns(POOLS, "pool", "device", "busy", "runs", "queued"),
    Column("direct", lambda p: count(p.total_direct)),
    Column("batch", lambda p: count(p.total_batch)),
    Column("spent", lambda p: usd(p.total_usd)),
)
_HOLDS: Sequence[Column[GroupView]] = (
    *columns(HOLDS, "held as", "held", "of a batch", "goes"),
    Column("batches", lambda h: count(h.total_batches)),
    Column("mean size", lambda h: mean(h.total_released, h.total_batches)),
)


class View:
    """Progress, load per pool, filling batches, and money, drawn in place."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._began_at = time.monotonic()
        self._drawn_at = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()

    def say(self, message: str) -> None:
        """Print a line above the view."""
        self._console.print(message, markup=False, highlight=False)

    def update(self, watch: Watch) -> None:
        """Redraw the view, a few times a second."""
        now = time.monotonic()
        if now - self._drawn_at >= DRAWN_EVERY_S:
            self._drawn_at = now
            self._live.update(self._drawn(watch, now - self._began_at), refresh=True)

    def close(self) -> None:
        """Remove the view; later output stays."""
        self._live.stop()

    def _drawn(self, watch: Watch, elapsed_s: float) -> RenderableType:
        now = snapshot_of(watch.live, time.time())
        groups = now.holds.groups[:GROUPS_SHOWN]
        width = self._console.width
        return Group(
            "",
            _progress(watch, elapsed_s),
            "",
            table(_POOLS, now.pools, width),
            "",
            table(_HOLDS, groups, width) if groups else Text("nothing waits for a batch", "dim"),
            "",
            _money(watch),
            _page(watch),
        )


def saving(cost_usd: float, premium_usd: float) -> str:
    """Return what a cost is, beside another, in words."""
    if premium_usd <= 0:
        return ""
    share = 1 - cost_usd / premium_usd
    return f"{abs(share):.0%} {'less' if share >= 0 else 'more'}"


def _progress(watch: Watch, elapsed_s: float) -> Table:
    grid = Table.grid(padding=(0, 1))
    for style in ("bold", "", ""):
        grid.add_column(style=style)
    for label, done in (("published", watch.published), ("results", len(watch.finished))):
        bar = ProgressBar(watch.total, done, width=40)
        grid.add_row(label, bar, f"{done:,} of {watch.total:,}")
    grid.add_row("time", f"{elapsed_s:.0f} s", "")
    return grid


def _page(watch: Watch) -> Text:
    return Text("page   ", style="bold").append(watch.page or "none", style="not bold")


def _money(watch: Watch) -> Text:
    line = Text("money  ", style="bold")
    line.append(f"${watch.cost_usd:.4f}", style="not bold green")
    premium = watch.cost_all_premium_usd
    line.append(f" spent; the same on premium GPUs: ${premium:.4f}", style="not bold")
    if words := saving(watch.cost_usd, premium):
        line.append(f" ({words})", style="not bold")
    return line
