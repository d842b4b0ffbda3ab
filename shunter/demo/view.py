"""The live view of a demo, for a terminal of 80 columns or more."""

import time
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from policies import Fleet, Policy
from shunter.demo.watch import PoolWatch, Watch

DRAWN_EVERY_S = 0.25
LOAD_WIDTH = 10
WINDOW_WIDTH = 24


class View:
    """Progress, load per pool, windows filling, and money, drawn in place."""

    def __init__(self, console: Console, fleet: Fleet, policy: Policy) -> None:
        self._console = console
        self._fleet = fleet
        self._members_max = policy.windows.members_max
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
        """Draw the view anew, a few times a second."""
        now = time.monotonic()
        if now - self._drawn_at >= DRAWN_EVERY_S:
            self._drawn_at = now
            self._live.update(self._drawn(watch, now - self._began_at), refresh=True)

    def close(self) -> None:
        """Take the view away; what is printed from now on stays."""
        self._live.stop()

    def _drawn(self, watch: Watch, elapsed_s: float) -> RenderableType:
        return Group(
            "",
            _progress(watch, elapsed_s),
            "",
            self._pools(watch),
            "",
            self._windows(watch),
            "",
            _money(watch),
        )

    def _pools(self, watch: Watch) -> Table:
        table = _table("pool", "device")
        table.add_column("load", width=LOAD_WIDTH)
        for heading in ("runs", "queued", "direct", "batch", "spent $"):
            table.add_column(heading, justify="right", no_wrap=True)
        for name, pool in watch.pools.items():
            table.add_row(name, self._fleet.pools[name].device, *self._load(pool))
        return table

    def _load(self, pool: PoolWatch) -> tuple[RenderableType, ...]:
        ends = (f"{pool.direct:,}", f"{pool.batch:,}", f"{pool.cost_usd:.4f}")
        status = pool.status
        if status is None or status.state != "up":
            return (Text("starts" if status is None else status.state, "dim"), "", "", *ends)
        # Beside all the slots of a pool its load would not show; a full batch fills the bar.
        shown = min(status.running, self._members_max)
        bar = ProgressBar(self._members_max, shown, width=LOAD_WIDTH)
        return (bar, f"{status.running:,}", f"{status.queued:,}", *ends)

    def _windows(self, watch: Watch) -> Table:
        table = _table("waits for a batch")
        table.add_column("held", justify="right")
        table.add_column(f"to a full one ({self._members_max})", width=WINDOW_WIDTH)
        for heading in ("batches", "mean size"):
            table.add_column(heading, justify="right")
        for task, window in sorted(watch.windows.items()):
            mean = f"{window.released / window.batches:.1f}" if window.batches else ""
            filled = min(window.held, self._members_max)
            bar = ProgressBar(
                self._members_max, filled, width=WINDOW_WIDTH, complete_style="yellow"
            )
            table.add_row(task, f"{window.held:,}", bar, f"{window.batches:,}", mean)
        if not watch.windows:
            table.add_row("nothing yet")
        return table


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
    for label, count in (("published", watch.published), ("results", len(watch.finished))):
        bar = ProgressBar(watch.total, count, width=40)
        grid.add_row(label, bar, f"{count:,} of {watch.total:,}")
    grid.add_row("time", f"{elapsed_s:.0f} s", "")
    return grid


def _money(watch: Watch) -> Text:
    line = Text("money  ", style="bold")
    line.append(f"${watch.cost_usd:.4f}", style="not bold green")
    premium = watch.cost_all_premium_usd
    line.append(f" spent; the same requests on premium GPUs: ${premium:.4f}", style="not bold")
    if words := saving(watch.cost_usd, premium):
        line.append(f" ({words})", style="not bold")
    return line


def _table(*labels: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    for label in labels:
        table.add_column(label, no_wrap=True)
    return table
