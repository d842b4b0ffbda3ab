"""The cheapest whole replicas that keep cuts, and are not covered by fleets that fail."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from policies import Fleet
from shunter.backtest.programme import Programme
from shunter.plan.market import (
    Counts,
    Market,
    devices_of,
    is_within,
    offers_of,
    replicas_max,
    site_limits,
)
from shunter.plan.span_work import Cut

SOLVER_S = 60.0


@dataclass(frozen=True)
class FailingFleet:
    """A fleet that fails, for all those that it covers."""

    counts: Counts
    needed: frozenset[str]
    """The pools that a fleet has to have to be covered."""

    def covers(self, counts: Counts) -> bool:
        """Return whether a fleet has no more of any pool, and each of the needed ones."""
        return is_within(counts, self.counts) and all(counts.get(name) for name in self.needed)


@dataclass
class CheapestFleet:
    """The programme of whole replicas: offers and sites of the market, cuts, fleets that fail.

    Args:
        fleet: the pools that may be rented.
        market: how many of them, at which prices.
        cuts: inequalities that each fleet keeps.
        failing: fleets that fail, with all that they cover.
    """

    fleet: Fleet
    market: Market
    cuts: list[Cut] = field(default_factory=list)
    failing: list[FailingFleet] = field(default_factory=list)
    bound_usd_per_hour: float = 0.0
    """No fleet that keeps all of this is cheaper; of the last solution, and never less."""

    def solve(self) -> dict[str, int]:
        """Return the replicas by pool, and take note of the bound.

        Raises:
            NoBoundError: scipy is missing, there is no such fleet, or none was found in time.
        """
        programme = Programme()
        rented = self._rent(programme)
        for cut in self.cuts:
            # In parts of what is wanted, since weights are of any size.
            unit = max(abs(cut.least), 1e-12)
            row = {c: -w / unit for pool, w in cut.weights.items() for c in rented[pool]}
            programme.at_most.append((row, -cut.least / unit))
        for each in self.failing:
            self._exclude(programme, rented, each)
        found = programme.solve_whole(SOLVER_S)
        self.bound_usd_per_hour = max(self.bound_usd_per_hour, found.bound)
        return {
            pool: round(sum(found.values[column] for column in columns))
            for pool, columns in rented.items()
        }

    def _exclude(
        self, programme: Programme, rented: Mapping[str, list[int]], failing: FailingFleet
    ) -> None:
        """Add rows that want more of some pool than this fleet has, or none of a needed one."""
        chosen = []
        for pool, columns in rented.items():
            most = replicas_max(pool, self.fleet, self.market)
            one_more = failing.counts.get(pool, 0) + 1
            if one_more <= most:
                chosen.append(more := programme.whole(0.0, 1.0))
                row = {more: float(one_more)} | dict.fromkeys(columns, -1.0)
                programme.at_most.append((row, 0.0))
            if pool in failing.needed:
                chosen.append(none := programme.whole(0.0, 1.0))
                row = {none: float(most)} | dict.fromkeys(columns, 1.0)
                programme.at_most.append((row, float(most)))
        programme.at_most.append((dict.fromkeys(chosen, -1.0), -1.0))

    def _rent(self, programme: Programme) -> dict[str, list[int]]:
        """Add a whole variable for each offer of each pool, under the limits of the sites."""
        rented: dict[str, list[int]] = {}
        for name, pool in self.fleet.pools.items():
            devices = devices_of(pool)
            rented[name] = [
                programme.whole(devices * offer.usd_per_hour, offer.replicas_max)
                for offer in offers_of(name, self.fleet, self.market)
            ]
            limit = float(replicas_max(name, self.fleet, self.market))
            programme.at_most.append((dict.fromkeys(rented[name], 1.0), limit))
        for weights, limit in site_limits(self.fleet, self.market):
            row = {column: weights[name] for name in weights for column in rented[name]}
            if row:
                programme.at_most.append((row, limit))
        return rented
