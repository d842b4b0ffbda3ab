"""The bound of a plan under its policy: no cheaper fleet keeps what is wanted in the replay.

The cuts of spans (`shunter.plan.span_work`) hold for any schedule, one that knows all beforehand
too. What a policy makes of a fleet, its replay tells. So the cheapest fleet that keeps all cuts is
replayed, with more of the cheap pools beside it. Where that fails clearly, so does each fleet of
the same dear pools that has no more of any pool; none of these counts further, and the next
cheapest is replayed: Benders' decomposition by logic, with cuts from a simulation (J. N. Hooker and
G. Ottosson, Logic-based Benders decomposition, Mathematical Programming 96, 2003).

That takes for granted that a replica more of a pool does no harm, nor one of a cheap pool, or less
than "clearly" allows for. A dear pool that a fleet doesn't have does: requests go there, and what
the policy promises of it has been held against nothing yet.
"""

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import inf
from typing import NamedTuple

from policies import Fleet
from shunter.backtest.programme import NoBoundError
from shunter.plan.cheapest_fleet import CheapestFleet, FailingFleet
from shunter.plan.judge import Case
from shunter.plan.market import Counts, Market, is_within, replicas_max, usd_per_hour
from shunter.plan.span_work import Cut

# Pools whose replica costs no more than this part of the bound are cheap: a fleet is replayed with
# as many of them as the budget buys, so that few replays tell of many fleets.
CHEAP = 0.1
# With so much of them a fleet may hold: then it is replayed with a quarter of that, and at last
# with none.
FEWER, LEAST_PART = 4, 0.01
# Before a plan is known its budget is so many times what the cuts ask for.
BUDGET = 1.5
# A fleet is cheaper than the plan by more than the solver's tolerance.
CHEAPER = 1e-3


class _Asked(NamedTuple):
    """A fleet that is replayed, with more of the cheap pools, in a case."""

    counts: Counts
    larger: FailingFleet
    case: Case


@dataclass
class PolicyBound:
    """The fleets that fail clearly, and the cheapest that may hold yet.

    Args:
        fleet: the pools that may be rented.
        market: how many of them, at which prices.
        cases: what may be gone, besides the usual case.
        cuts: what each fleet keeps, whatever its policy.
    """

    fleet: Fleet
    market: Market
    cases: Sequence[Case]
    cuts: Sequence[Cut]
    plan: Counts | None = None
    """The cheapest fleet known to hold."""
    open_fleet: Counts | None = None
    """The cheapest that is known not to fail clearly: the bound is its price at most."""
    _programme: CheapestFleet = field(init=False)
    _under_way: list[_Asked] = field(default_factory=list)
    _enough: list[Counts] = field(default_factory=list)
    _borne: list[tuple[Counts, Case]] = field(default_factory=list)
    _failed: Counter[Case] = field(default_factory=Counter)
    _cheapest: Counts | None = None
    _is_stuck: bool = False

    def __post_init__(self) -> None:
        self._programme = CheapestFleet(self.fleet, self.market, list(self.cuts))

    @property
    def usd_per_hour(self) -> float:
        """No fleet that is cheaper keeps what is wanted, as far as is known."""
        self._solve()
        return self._programme.bound_usd_per_hour

    @property
    def failing(self) -> Sequence[FailingFleet]:
        """The fleets that failed clearly, each for all that it covers."""
        return self._programme.failing

    def excludes(self, counts: Counts) -> bool:
        """Return whether a fleet is covered by one that failed."""
        return any(failed.covers(counts) for failed in self.failing)

    def next_case(self) -> tuple[Counts, Case] | None:
        """Return a fleet to replay, and the case; None where none is cheaper than the plan.

        It is the cheapest that may hold, as if all those under way failed, with more beside it. One
        that may hold by itself is asked for in case after case.
        """
        counts = self._cheapest_beside()
        if counts is None:
            return None
        known = [self._usd(each) for each in (self.plan, self.open_fleet) if each is not None]
        if self._usd(counts) > min(known, default=inf) - CHEAPER:
            return None
        larger = self._larger(counts)
        case = next(
            (case for case in self._cases(larger) if (larger, case) not in self._borne), None
        )
        if case is None:
            self.open_fleet = counts
            return None
        self._under_way.append(_Asked(counts, self.covering(larger), case))
        return larger, case

    def covering(self, counts: Counts) -> FailingFleet:
        """Return a fleet as one that, if it fails, does so for all of the same dear pools."""
        has = (name for name, count in counts.items() if count)
        return FailingFleet(counts, frozenset(name for name in has if not self._is_cheap(name)))

    def learn(self, larger: Counts, *, is_failing: bool) -> None:
        """Take note of how a fleet that was asked for did."""
        at = [asked.larger.counts for asked in self._under_way].index(larger)
        asked = self._under_way.pop(at)
        if is_failing:
            self._programme.failing.append(asked.larger)
            self._failed[asked.case] += 1
            self._cheapest = None
        elif asked.counts == larger:
            self._borne.append((larger, asked.case))
        else:
            self._enough.append(larger)

    def _solve(self) -> Counts | None:
        """Return the cheapest fleet that may hold; None where none was found."""
        if self._cheapest is None and not self._is_stuck:
            try:
                self._cheapest = _rented(self._programme)
            except NoBoundError:
                # The bound so far is one of this, too.
                self._is_stuck = True
        return self._cheapest

    def _cheapest_beside(self) -> Counts | None:
        """Return the same as if all that are under way failed."""
        counts = self._solve()
        if counts is None or not self._under_way:
            return counts
        under_way = [asked.larger for asked in self._under_way]
        try:
            return _rented(replace(self._programme, failing=[*self.failing, *under_way]))
        except NoBoundError:
            return None

    def _larger(self, counts: Counts) -> Counts:
        """Return a fleet with more of the cheap pools, but not as much as is known to be enough."""
        part, enough = 1.0, [*self._enough, *([self.plan] if self.plan else [])]
        while part > LEAST_PART:
            larger = dict(counts)
            for name in self.fleet.pools:
                if self._is_cheap(name):
                    more = counts.get(name, 0) + self._bought(name, part * self._budget)
                    larger[name] = min(more, replicas_max(name, self.fleet, self.market))
            if not any(is_within(each, larger) for each in enough):
                return {name: count for name, count in larger.items() if count}
            part /= FEWER
        return counts

    @property
    def _budget(self) -> float:
        if self.plan is not None:
            return self._usd(self.plan)
        return BUDGET * self.usd_per_hour

    def _is_cheap(self, name: str) -> bool:
        return self._bought(name, CHEAP * self.usd_per_hour) > 0

    def _bought(self, name: str, usd: float) -> int:
        """Return how many replicas of a pool so much buys."""
        most = replicas_max(name, self.fleet, self.market)
        return bisect_right(range(1, most + 1), usd, key=lambda count: self._usd({name: count}))

    def _cases(self, counts: Counts) -> list[Case]:
        """Return the cases that take something from a fleet; if none does, the usual one.

        First those in which most fleets have failed, and those that take the dearest part.
        """
        taking = [case for case in self.cases if not counts.keys().isdisjoint(case)]
        return sorted(
            taking or [()],
            key=lambda case: (
                -self._failed[case],
                -self._usd({n: c for n, c in counts.items() if n in case}),
            ),
        )

    def _usd(self, counts: Counts) -> float:
        return usd_per_hour(counts, self.fleet, self.market)


def _rented(programme: CheapestFleet) -> Counts:
    return {name: count for name, count in programme.solve().items() if count}
