"""The story of a request, formatted for a terminal."""

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from streams.live.story import Grid, StoryStep, tell
from topics import Evidence
from topics.terminal_text import visible, visible_line

INDENT = 2
LABEL_WIDTH = 10
STYLES = {
    "placed": "cyan",
    "held": "yellow",
    "released": "cyan",
    "executed": "green",
    "fell_back": "magenta",
    "duplicate": "yellow",
    "quoted": "cyan",
    "cancel_requested": "yellow",
    "cancelled": "yellow",
}
BAD_STYLE = "red"


def story(evidence: Sequence[Evidence]) -> RenderableType:
    """Return the steps of one request, earliest first, as a renderable for 80 columns or more."""
    if not evidence:
        return Text("no evidence")
    found = tell(evidence)
    parts: list[RenderableType] = [
        Text(visible_line(f"request {found.request_id}"), style="bold"),
        _facts(found.facts),
    ]
    for step in found.steps:
        parts += ["", _heading(step)]
        parts += [Padding(detail, (0, 0, 0, INDENT)) for detail in _details(step)]
    if found.versions:
        parts += ["", _facts([("versions", found.versions)])]
    return Group(*parts)


def _heading(step: StoryStep) -> Text:
    line = Text(f"{step.clock}  +{step.since_s:.3f} s  ", style="dim")
    line.append(step.step, style=f"not dim bold {STYLES.get(step.step, BAD_STYLE)}")
    if step.reason:
        words = f" ({step.words})" if step.words else ""
        line.append(f": {step.reason}{words}", style="not dim")
    return line


def _details(step: StoryStep) -> Iterator[RenderableType]:
    yield _facts(step.facts)
    if step.envelopes is not None:
        table = _grid(step.envelopes)
        table.columns[0].min_width = LABEL_WIDTH + 1
        for row in step.envelopes.rows:
            table.add_row(*map(Text, row))
        yield table
    if step.candidates is not None:
        yield _candidates(step.candidates)
    yield _facts(step.origin)


def _facts(facts: Iterable[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 1))
    # One width for all, so that values align across blocks.
    grid.add_column(min_width=LABEL_WIDTH, style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in facts:
        grid.add_row(label, Text(visible(value)))
    return grid


def _candidates(grid: Grid) -> Table:
    table = _grid(Grid(("", *grid.headings), grid.labels + 1, ()))
    for index, row in enumerate(grid.rows):
        is_chosen = index == grid.chosen
        table.add_row("→" if is_chosen else "", *map(Text, row), style="bold" if is_chosen else "")
    return table


def _grid(grid: Grid) -> Table:
    """Return an empty table with the headings of a grid."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for label in grid.headings[: grid.labels]:
        table.add_column(label, overflow="fold")
    for figure in grid.headings[grid.labels :]:
        table.add_column(figure, justify="right", no_wrap=True)
    return table
