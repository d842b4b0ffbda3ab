"""The streaming of the bound: a device that decodes for a request is busy, however few share it.

Time is cut into windows, each a linear programme of its own, because a schedule's cost is the sum
of what its devices were busy in each. Within a window a request picks a pool and a moment for its
first token; while it is certainly under way there, the pool is busy. Some pools' work may be told
apart by cells of time besides (`shunter.backtest.bound_bursts`).
"""

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import floor

from policies import Option, Options
from shunter.backtest.bound_cells import CellWork
from shunter.backtest.bound_times import Served
from shunter.backtest.bound_work import add_work, token_usd
from shunter.backtest.demand import Demand, able, latest_end_s
from shunter.backtest.programme import Programme

WINDOW_S = 300.0
# The grain of moments and of busy time. Finer is tighter and slower.
CELL_S = 0.5
# The grain of work in pools whose work is told apart by time: cells of that length.
WORK_CELLS = 2
# Requests of a window whose moments are modelled, the longest; the others count by their work.
TIMED_MAX = 350
# Requests of a window that count at all, the longest: to leave one out only lowers the bound.
COUNTED_MAX = 3000
# A request that runs for this long is a matter of the pool's work, not of its moment.
UNDER_WAY_S_MAX = 12.0


def streaming_bound(demands: Sequence[Demand], options: Options) -> float:
    """Return the least cost in US dollars of requests that can't wait."""
    urgent = [d for d in demands if d.profile.ttft_s is not None]
    if not urgent:
        return 0.0
    windows = floor(max(d.profile.created_at for d in urgent) / WINDOW_S) + 1
    return sum(
        WindowCost(options, index * WINDOW_S, round(WINDOW_S / CELL_S)).solve(urgent)
        for index in range(windows)
    )


@dataclass(slots=True)
class WindowCost:
    """A span of time, and the programme of the requests that come in it and can't wait.

    Attributes:
        options: the fleet.
        start_s: when it begins.
        cells: how many of `CELL_S` it has.
        by_time: the pools whose work is told apart by time; of the others, by the window alone.
        counted_max: the most requests that count, the longest.
        under_way_s_max: those that run for longer on a pool are not timed there.
    """

    options: Options
    start_s: float
    cells: int
    by_time: Collection[str] = ()
    counted_max: int = COUNTED_MAX
    under_way_s_max: float = UNDER_WAY_S_MAX
    programme: Programme = field(default_factory=Programme)
    busy: dict[str, list[int]] = field(default_factory=dict)

    @property
    def end_s(self) -> float:
        """Its end, in seconds since the trace began."""
        return self.start_s + self.cells * CELL_S

    def solve(self, urgent: Sequence[Demand]) -> float:
        """Return the least cost of this window."""
        here = [d for d in urgent if self.start_s <= d.profile.created_at < self.end_s]
        if not here:
            return 0.0
        for pool, choices in self.options.by_pool.items():
            limit_s = CELL_S * choices[0].replicas
            self.busy[pool] = [
                self.programme.variable(usd_per_s, limit_s)
                for usd_per_s in self._prices(choices[0])
            ]
        ranked = sorted(here, key=self._shortest_s, reverse=True)
        timed = {d.profile.id for d in ranked[:TIMED_MAX] if self._shortest_s(d) > CELL_S}
        served: dict[tuple[str, str], list[tuple[int, Demand]]] = {}
        for demand in ranked[: self.counted_max]:
            self._add(demand, served, is_timed=demand.profile.id in timed)
        rest = {key: mine for key, mine in served.items() if key[0] not in self.by_time}
        add_work(self.programme, self.options, rest, self.busy)
        for pool in self.by_time:
            self._add_by_time(pool, served, timed)
        # Many short rows: the interior-point method takes half the time of the simplex here.
        return self.programme.solve("highs-ipm")

    def _add_by_time(
        self, pool: str, served: Mapping[tuple[str, str], Served], timed: Container[str]
    ) -> None:
        """Make a pool busy in each cell for as long as what is done then takes."""
        cells = [self.busy[pool][at : at + WORK_CELLS] for at in range(0, self.cells, WORK_CELLS)]
        rows = [dict.fromkeys(each, -1.0) for each in cells]
        for option in self.options.by_pool[pool]:
            if mine := served.get((pool, option.variant)):
                work = CellWork.new(
                    self.programme, option, self.start_s, CELL_S * WORK_CELLS, len(cells)
                )
                for column, demand in mine:
                    work.add(column, demand, is_apart=demand.profile.id in timed)
                work.finish(rows)
        self.programme.at_most += [(row, 0.0) for row in rows]

    def _prices(self, option: Option) -> list[float]:
        """Return the lowest price of a pool in each cell."""
        cells, tariff, begin = self.cells, option.tariff, self.start_s
        if tariff is None:
            return [option.usd_per_s] * cells
        if next(tariff.changes(begin, self.end_s), None) is None:
            return [option.usd_per_s * tariff.factor(begin, begin)] * cells
        return [
            option.usd_per_s * min(tariff.factors(begin + CELL_S * n, begin + CELL_S * (n + 1)))
            for n in range(cells)
        ]

    def _shortest_s(self, demand: Demand) -> float:
        decodes = [_decode_s(demand, option) for option in able(demand, self.options)]
        return min(decodes, default=0.0)

    def _add(
        self,
        demand: Demand,
        served: dict[tuple[str, str], list[tuple[int, Demand]]],
        *,
        is_timed: bool,
    ) -> None:
        choices = list(able(demand, self.options))
        # A choice whose work may fall outside this window is free here.
        mine: dict[int, float] = {}
        for option in choices:
            moments = list(self._moments(demand, option)) if is_timed else []
            is_inside = latest_end_s(demand) <= self.end_s
            whole = self.programme.variable(token_usd(demand, option))
            if is_inside:
                served.setdefault((option.pool, option.variant), []).append((whole, demand))
            mine[whole] = 1.0
            if moments:
                self._cover(whole, option, moments)
        if mine:
            self.programme.equal.append((mine, 1.0))

    def _cover(self, whole: int, option: Option, moments: Sequence[tuple[float, float]]) -> None:
        """Split a choice among its moments; each keeps the pool busy in the cells it covers."""
        split = {whole: -1.0}
        covered: dict[int, dict[int, float]] = {}
        for from_s, to_s in moments:
            column = self.programme.variable()
            split[column] = 1.0
            for cell, overlap_s in self._cells(from_s, to_s):
                covered.setdefault(cell, {})[column] = overlap_s
        self.programme.equal.append((split, 0.0))
        for cell, row in covered.items():
            row[self.busy[option.pool][cell]] = -1.0
            self.programme.at_most.append((row, 0.0))

    def _moments(self, demand: Demand, option: Option) -> Iterator[tuple[float, float]]:
        """Yield when the request is certainly running, for each slot of its first token."""
        profile, decode_s = demand.profile, _decode_s(demand, option)
        if profile.ttft_s is None or decode_s > self.under_way_s_max:
            return
        prefill_s = option.roofline.prefill_s(demand.input_tokens)
        first_s, last_s = profile.created_at + prefill_s, profile.created_at + profile.ttft_s
        while first_s <= last_s:
            next_s = min(first_s + CELL_S, last_s)
            yield next_s - prefill_s, first_s + decode_s
            first_s += CELL_S

    def _cells(self, from_s: float, to_s: float) -> Iterator[tuple[int, float]]:
        first = max(0, floor((from_s - self.start_s) / CELL_S))
        for cell in range(first, self.cells):
            cell_s = self.start_s + cell * CELL_S
            overlap_s = min(to_s, cell_s + CELL_S) - max(from_s, cell_s)
            if overlap_s <= 0:
                return
            yield cell, overlap_s


def _decode_s(demand: Demand, option: Option) -> float:
    """Return the least time from the first token to the last: alone on the device."""
    if not demand.steps:
        return 0.0
    return option.roofline.decode_s(demand.output_tokens, 1, demand.input_tokens)
