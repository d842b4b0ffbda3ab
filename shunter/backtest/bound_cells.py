"""The work of the bound by cells of time: a burst's is done near it, and fills no quiet seconds.

A request's prompt and its decode steps are split among the cells in which they may be. Requests of
the same cells go together: a pool's programme has flows of what they need, not of each of them.
docs/bound.md derives the rows.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil, floor

from policies import Option
from shunter.backtest.bound_times import StepTimes, TokenTimes, context_tokens
from shunter.backtest.demand import Demand, latest_end_s, latest_first_token_s
from shunter.backtest.programme import Programme

# Beyond these many cells a span is taken to be the next of them wide, so that there are fewer.
WIDTHS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384)

Cells = tuple[int, int]
"""The first cell, and the one after the last."""


@dataclass(frozen=True, slots=True)
class Cell(StepTimes):
    """Variables of the iterations of a variant in a cell, those at its ends by their parts in it.

    Attributes:
        beside_s: what prompts take beside arithmetic and memory.
    """

    beside_s: int


@dataclass(slots=True)
class CellWork:
    """The work of an option in each cell of a window.

    Attributes:
        programme: gets the rows.
        option: what serves.
        start_s: the window's beginning.
        cell_s: the length of a cell.
        cells: the variables of each.
    """

    programme: Programme
    option: Option
    start_s: float
    cell_s: float
    cells: Sequence[Cell]
    _flows: dict[tuple[str, Cells], dict[int, float]] = field(default_factory=dict)
    _rows: dict[tuple[str, int], dict[int, float]] = field(default_factory=dict)

    @classmethod
    def new(
        cls, programme: Programme, option: Option, start_s: float, cell_s: float, count: int
    ) -> "CellWork":
        """Add the variables to a programme."""
        cells = [Cell(*(programme.variable() for _ in range(6))) for _ in range(count)]
        return cls(programme, option, start_s, cell_s, cells)

    def add(self, column: int, demand: Demand, *, is_apart: bool) -> None:
        """Have a request's work in the cells in which it may be.

        Args:
            column: the variable of its share here.
            demand: the request.
            is_apart: whether it has iterations of its own: a long one has no more steps than
                there are iterations while it may be under way.
        """
        times, came_at = TokenTimes.of(self.option), demand.profile.created_at
        prompt = self._span(came_at, latest_first_token_s(demand))
        self._need("prompt_s", prompt, column, times.prompt_compute_s(demand))
        self._need("beside_s", prompt, column, times.prompt_beside_s(demand))
        if not demand.steps:
            return
        prefill_s = self.option.roofline.prefill_s(demand.input_tokens)
        reply = self._span(came_at + prefill_s, latest_end_s(demand))
        self._need("steps", reply, column, demand.steps)
        self._need("read", reply, column, context_tokens(demand) / 1000)
        if is_apart:
            row = {cell.count: -1.0 for cell in self.cells[slice(*reply)]}
            self.programme.at_most.append((row | {column: float(demand.steps)}, 0.0))

    def finish(self, busy: Sequence[dict[int, float]]) -> None:
        """Add the rows of the cells.

        Args:
            busy: of each cell, the row that gets the iterations' time.
        """
        for (amount, (first, end)), row in self._flows.items():
            for at in range(first, end):
                flow = self.programme.variable()
                row[flow] = -1.0
                self._row(amount, at)[flow] = 1.0
            self.programme.equal.append((row, 0.0))
        for at, cell in enumerate(self.cells):
            for amount in ("steps", "read", "prompt_s", "beside_s"):
                row = self._rows.get((amount, at), {})
                self.programme.equal.append((row | {getattr(cell, amount): -1.0}, 0.0))
            cell.add_seconds(self.programme, self.option)
            self._limit_sharing(cell)
            busy[at][cell.seconds] = 1.0
            busy[at][cell.beside_s] = 1.0

    def _span(self, from_s: float, to_s: float) -> Cells:
        first = max(0, floor((from_s - self.start_s) / self.cell_s))
        width = max(1, ceil((to_s - self.start_s) / self.cell_s) - first)
        last = len(self.cells)
        if width > WIDTHS[-1]:
            return first, last
        return first, min(last, first + WIDTHS[bisect_left(WIDTHS, width)])

    def _need(self, amount: str, span: Cells, column: int, value: float) -> None:
        row = self._flows.setdefault((amount, span), {})
        row[column] = row.get(column, 0.0) + value

    def _row(self, amount: str, at: int) -> dict[int, float]:
        return self._rows.setdefault((amount, at), {})

    def _limit_sharing(self, cell: Cell) -> None:
        """Have no more in an iteration than there are places and memory for."""
        most = float(self.option.max_batch)
        places = {cell.count: -most, cell.steps: 1.0}
        room = {cell.count: -self.option.kv_capacity_tokens / 1000, cell.read: 1.0}
        self.programme.at_most += [(places, 0.0), (room, 0.0)]
