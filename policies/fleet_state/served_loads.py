"""Loads of the pools that serve one model, as its decisions ask for them."""

from collections.abc import Mapping
from typing import Any

from policies.config.options import ModelOptions
from policies.fleet_state.candidate_load import OptionState, PoolLoad, standing_in


class ServedLoads:
    """Loads, and the standing of each option under them, of the pools that serve one model.

    A load changes with a heartbeat and with work that is sent to its pool, so that from one
    decision to the next that of one pool does.

    Attributes:
        serving: the options.
        loads: of their pools, those that are known; never changed in place.
        standings: of the options, in their order.
        rows: of the pools, in their order, what evidence has of each.
        unwritten: number of each pool whose row is of an earlier load.
    """

    __slots__ = ("_all", "_known", "_places", "loads", "rows", "serving", "standings", "unwritten")

    def __init__(self, serving: ModelOptions, loads: Mapping[str, PoolLoad]) -> None:
        self.serving = serving
        self.loads: dict[str, PoolLoad] = {}
        self.standings: list[OptionState] = [standing_in({}, option) for option in serving.options]
        self.rows: list[Any] = [None] * len(serving.numbering.pools)
        self.unwritten = dict(serving.numbering.pools)
        self._all = loads
        self._places: dict[str, list[int]] = {}
        for at, option in enumerate(serving.options):
            self._places.setdefault(option.pool, []).append(at)
        # Of each pool its load, and what that keeps of itself while it stays the same.
        self._known: dict[str, tuple[PoolLoad | None, object]] = dict.fromkeys(
            self._places, (None, None)
        )

    def refresh(self) -> None:
        """Take the loads that have changed."""
        for number, (pool, (known, rows)) in enumerate(self._known.items()):
            load = self._all.get(pool)
            if load is known and (load is None or load.rows is rows):
                continue
            if load is not known:
                self.loads = {name: self._all[name] for name in self._places if name in self._all}
            self.unwritten[pool] = number
            self._known[pool] = (load, None if load is None else load.rows)
            for at in self._places[pool]:
                self.standings[at] = standing_in(self.loads, self.serving.options[at])
