"""The state changed by keys in `shunter top`."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from shunter.top.columns import CLASSES, FALLBACKS, HOLDS, POOLS, Column
from shunter.top.keyboard import END
from streams.live.snapshot import Snapshot

T = TypeVar("T")

SECTIONS: Mapping[str, Sequence[Column[Any]]] = {
    "pools": POOLS,
    "classes": CLASSES,
    "holds": HOLDS,
    "fallbacks": FALLBACKS,
}
# The initial sort column of each table; none keeps the given order.
FIRST_SORT = {"pools": "", "classes": "", "holds": "", "fallbacks": ""}
_NAMES: Mapping[str, Callable[[Any], str]] = {
    "pools": lambda p: f"{p.pool} {p.device} {p.region}",
    "classes": lambda c: str(c.task),
    "holds": lambda h: str(h.group),
    "fallbacks": lambda f: f"{f.request_id} {f.task} {f.from_pool} {f.to_pool} {f.reason}",
}
QUIT = frozenset({"q", "\x03"})
ENTER, ESCAPE, BACKSPACE, TAB = "\r", "\x1b", "\x7f", "\t"
FILTER_CHARACTERS_MAX = 40


@dataclass(slots=True)
class State:
    """The display of the tables. ``filter`` is searched in names, ignoring case."""

    active: str = "pools"
    is_zoomed: bool = False
    is_paused: bool = False
    is_typing: bool = False
    has_help: bool = False
    filter: str = ""
    sort: dict[str, str] = field(default_factory=lambda: dict(FIRST_SORT))
    reverse: dict[str, bool] = field(default_factory=dict)

    def press(self, key: str) -> bool:
        """Process a key; return whether it ends the view."""
        if key == END:
            return True
        if self.is_typing:
            self._type(key)
            return False
        if self.has_help:
            self.has_help = False
        elif key in _SECTION_OF:
            self.active = _SECTION_OF[key]
        elif key in _ACTIONS:
            _ACTIONS[key](self)
        return key in QUIT

    def rows(self, section: str, snapshot: Snapshot) -> list[Any]:
        """Return the rows of a table for display: filtered and sorted."""
        found: Mapping[str, Sequence[Any]] = {
            "pools": snapshot.pools,
            "classes": snapshot.classes,
            "holds": snapshot.holds.groups,
            "fallbacks": snapshot.fallbacks,
        }
        wanted, name = self.filter.lower(), _NAMES[section]
        rows = [row for row in found[section] if wanted in name(row).lower()]
        is_reversed = self.reverse.get(section, False)
        for column in SECTIONS[section]:
            if column.heading == self.sort[section] and column.value is not None:
                # Figures from the largest down, names from A on.
                is_figure = column.justify == "right" or column.heading == "busy"
                return sorted(rows, key=column.value, reverse=is_figure != is_reversed)
        return rows[::-1] if is_reversed else rows

    def _type(self, key: str) -> None:
        if key in {ENTER, "\n"}:
            self.is_typing = False
        elif key in {ESCAPE, "\x03"}:
            self.is_typing, self.filter = False, ""
        elif key in {BACKSPACE, "\b"}:
            self.filter = self.filter[:-1]
        elif key.isprintable() and len(self.filter) < FILTER_CHARACTERS_MAX:
            self.filter += key

    def sort_by_next(self) -> None:
        """Sort the active table by its next column; after the last, leave it unsorted."""
        columns = ["", *(c.heading for c in SECTIONS[self.active] if c.value is not None)]
        now = columns.index(self.sort[self.active])
        self.sort[self.active] = columns[(now + 1) % len(columns)]

    def turn_round(self) -> None:
        """Reverse the order of the active table."""
        self.reverse[self.active] = not self.reverse.get(self.active, False)

    def activate_next(self) -> None:
        """Choose the next table."""
        names = list(SECTIONS)
        self.active = names[(names.index(self.active) + 1) % len(names)]

    def pause(self) -> None:
        """Pause, or resume."""
        self.is_paused = not self.is_paused

    def zoom(self) -> None:
        """Show the active table alone, or all."""
        self.is_zoomed = not self.is_zoomed

    def begin_filter(self) -> None:
        """Take the following keys as a filter."""
        self.is_typing, self.filter = True, ""

    def show_all(self) -> None:
        """Show all rows of all tables."""
        self.filter, self.is_zoomed = "", False

    def show_help(self) -> None:
        """Show the keys."""
        self.has_help = True


_SECTION_OF = dict(zip("1234", SECTIONS, strict=True))
_ACTIONS: Mapping[str, Callable[[State], None]] = {
    "p": State.pause,
    " ": State.pause,
    "/": State.begin_filter,
    "?": State.show_help,
    "h": State.show_help,
    ESCAPE: State.show_all,
    ENTER: State.zoom,
    "\n": State.zoom,
    TAB: State.activate_next,
    "s": State.sort_by_next,
    "r": State.turn_round,
}
