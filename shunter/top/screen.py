"""The screen of `shunter top`: the essentials in 80 columns and 24 lines, more in more."""

from collections.abc import Mapping
from datetime import datetime

from rich.console import Group, RenderableType
from rich.text import Text

from shunter.top.columns import table, wide_enough
from shunter.top.figures import count, counts, percent, rate, usd
from shunter.top.state import SECTIONS, State
from streams.live.snapshot import Snapshot

# A warning appears without any worker's heartbeat for this long.
SILENT_S = 10.0
# And once no broker has answered for this long, before its workers would count as gone.
UNANSWERED_S = 2.0
WIDE = 100
KEYS = "q quit  p pause  / filter  Tab table  s sort  r reverse  Enter zoom  ? help"
HELP = """
q        quit                           p, Space  pause, and go on
/        filter all tables by a word    Esc       show everything again
Tab, 1-4 choose a table, marked ▸       Enter     show that table alone
s        sort it by the next column     r         turn its order round

A column that is sorted by has a * before its name.
busy     device time of what was completed, over that of the pool's replicas
speed    predicted over measured device time: 2x is twice as fast as predicted
breaker  model variants whose circuit is not closed: nothing is sent to them;
         and those whose answers have drifted from a reference: nothing is
         sent that minds it
SLO      completed by the deadline, with TTFT and TPOT as wanted; cancelled
         ones left out
goes     when the group's window ends; earlier if full, or its slack runs out
spent    of busy device time; "on premium" is for the same tokens on the
         cheapest premium GPU that might have served each, shared by as many
         requests at a time

Any key leads back."""
HEAD_LINES = 3
FOOT_LINES = 1
# Each table gets this many rows before any gets more, if it has them.
ROWS_MIN, ROWS_FEW = 2, 8


def screen(
    snapshot: Snapshot,
    state: State,
    width: int,
    height: int | None,
    *,
    where: str = "",
    warning: str = "",
) -> RenderableType:
    """Return the whole screen for a terminal; ``height`` None is unlimited.

    Args:
        snapshot: the data.
        state: the display state.
        width: columns.
        height: lines.
        where: topics and brokers shown.
        warning: the warning, in a line.
    """
    parts: list[RenderableType] = [
        _title(snapshot, state, width, where),
        *_summary(snapshot, width),
    ]
    if state.has_help:
        parts.append(Text(HELP, no_wrap=True, overflow="ellipsis"))
    else:
        names = [state.active] if state.is_zoomed else list(SECTIONS)
        found = {name: state.rows(name, snapshot) for name in names}
        room = None if height is None else height - HEAD_LINES - FOOT_LINES
        shown = _shares({name: len(rows) for name, rows in found.items()}, room)
        for name, rows in found.items():
            columns = wide_enough(SECTIONS[name], width)
            title = _heading(name, state, len(rows), shown[name])
            if rows:
                some = rows[: shown[name]]
                sorted_by = state.sort[name]
                parts.append(table(columns, some, width, title=title, sorted_by=sorted_by))
            else:
                parts.append(title)
    if height is not None:
        parts.append(_foot(state, warning))
    return Group(*parts)


def _title(snapshot: Snapshot, state: State, width: int, where: str) -> Text:
    at = datetime.fromtimestamp(snapshot.at).astimezone()
    line = Text("shunter top", "bold", no_wrap=True, overflow="ellipsis")
    line.append(f"  {at:%H:%M:%S}  last {snapshot.window.s:.0f} s  {where}  ", "not bold dim")
    if state.is_paused:
        line.append("PAUSED", "reverse")
    elif not snapshot.is_current:
        line.append("reads the topics …", "yellow")
    elif snapshot.unanswered_s > UNANSWERED_S:
        line.append(f"Kafka is away: pools as {snapshot.unanswered_s:.0f} s ago", "bold red")
    elif snapshot.silent_s is None or snapshot.silent_s > SILENT_S:
        silence = "nothing yet" if snapshot.silent_s is None else f"{snapshot.silent_s:.0f} s"
        line.append(f"no news from Kafka: {silence}", "bold red")
    line.truncate(width, overflow="ellipsis")
    return line


def _summary(snapshot: Snapshot, width: int) -> list[Text]:
    ended, money, total = snapshot.ended, snapshot.money, snapshot.money_total
    flow = Text(no_wrap=True, overflow="ellipsis")
    flow.append(f"{rate(ended.per_s)}", "bold").append(" ended/s  ")
    flow.append(f"{count(snapshot.holds.held)}", "bold").append(" held  ")
    flow.append(counts(ended.statuses))
    if refusals := {**ended.refusals, **ended.dead_letters}:
        flow.append(f"; {counts(refusals)}", "yellow")
    spent = Text(no_wrap=True, overflow="ellipsis")
    spent.append(f"{usd(money.usd_per_hour)}/h", "bold").append(" spent, ")
    if money.compared:
        spent.append(f"{usd(money.premium_estimate_usd_per_hour)}/h", "bold")
        spent.append(" on premium GPUs")
    else:
        spent.append("nothing to compare with premium GPUs")
    if money.saving is not None:
        word = "less" if money.saving >= 0 else "more"
        spent.append(f": {percent(abs(money.saving))} {word}", "green" if word == "less" else "red")
    if width >= WIDE and total.compared:
        alike = f"{usd(total.compared_usd)}, {usd(total.premium_estimate_usd)}"
        requests = f"{count(total.compared)} of {count(snapshot.ended_total.requests)}"
        spent.append(f"; in all {alike} for {requests}", "dim")
    return [flow, spent]


def _heading(name: str, state: State, rows: int, shown: int) -> Text:
    mark = "▸" if name == state.active else " "
    line = Text(f"{mark}{name.upper()}", "not dim bold", no_wrap=True, overflow="ellipsis")
    if not rows:
        line.append(f" none{' of that name' if state.filter else ''}", "not bold dim")
    elif shown < rows:
        line.append(f" {shown}/{rows}", "not bold dim")
    return line


def _shares(wanted: Mapping[str, int], room: int | None) -> dict[str, int]:
    """Return the number of rows shown of each table, plus a line each for its headings.

    If there is not room for all, each has its first few; the last tables shrink first.
    """
    if room is None:
        return dict(wanted)
    left = max(0, room - len(wanted))
    shown = dict.fromkeys(wanted, 0)
    for most in (ROWS_MIN, ROWS_FEW, max(wanted.values(), default=0)):
        for name, rows in wanted.items():
            more = min(min(rows, most) - shown[name], left)
            shown[name] += more
            left -= more
    return shown


def _foot(state: State, warning: str) -> Text:
    if state.is_typing:
        return Text(f"filter: {state.filter}▏  Enter keeps it, Esc clears it", "bold")
    if warning:
        return Text(warning, "yellow", no_wrap=True, overflow="ellipsis")
    shown = f"only “{state.filter}”, Esc shows all  {KEYS}" if state.filter else KEYS
    return Text(shown, "dim", no_wrap=True, overflow="ellipsis")
