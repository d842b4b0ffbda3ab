"""The search of a plan: from the programme's fleet up until it holds, then down while it does."""

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil, inf
from typing import NamedTuple

from policies import Fleet
from shunter.plan.judge import (
    CORES,
    Case,
    FleetVerdict,
    Judge,
    OutOfTimeError,
    judge_here,
    judging,
)
from shunter.plan.market import Counts, Market, is_allowed, usd_per_hour
from shunter.plan.policy_bound import PolicyBound
from shunter.plan.spare_cores import SpareCores

FACTORS = (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0)
STEP_MAX = 16
# After the fleet has grown until it holds, the bound is raised until this part of the time is over,
# so that no replica is taken away which is known to be needed.
GROWN_SHARE = 0.75
# Between two multiples of the programme's fleet that differ by no more none is looked for.
NARROWED_TO = 0.2
# More than any trace has requests: what a fleet lacks that fails with nothing gone.
NOT_EVEN_USUALLY = 1_000_000_000

Key = tuple[tuple[str, int], ...]


class JudgedFleet(NamedTuple):
    """A fleet and its verdicts: of the usual case, and of the worst."""

    counts: dict[str, int]
    usd_per_hour: float
    usual: FleetVerdict
    worst_case: Case
    worst: FleetVerdict

    @property
    def is_kept(self) -> bool:
        """True if it keeps what is wanted in each case."""
        return self.usual.is_kept and self.worst.is_kept


class NoPlanError(Exception):
    """No fleet that may be rented keeps what is wanted; the message says what is missed."""


@dataclass
class FleetSearch:
    """Looks for the cheapest fleet that a judge lets pass.

    Args:
        judge: the judge.
        cases: what may be gone, besides the usual case.
        seconds: time for it all; a fleet that was found by then is returned.
        told: gets a line for people at each step.
        bound: under the policy, which cores without anything else to do raise.
    """

    judge: Judge
    cases: Sequence[Case]
    seconds: float
    told: Callable[[str], object]
    bound: PolicyBound | None = None
    seen: dict[Key, JudgedFleet] = field(default_factory=dict)
    _failed: Counter[Case] = field(default_factory=Counter)
    _ends_at: float = 0.0

    def run(self, start: Counts, others: Sequence[Counts] = ()) -> JudgedFleet:
        """Return the cheapest fleet that was found.

        Args:
            start: the programme's fleet.
            others: fleets to begin with that hold elsewhere.

        Raises:
            NoPlanError: none was found.
        """
        began = time.monotonic()
        self._ends_at = began + self.seconds
        with judging(self.judge) as pool:
            processes = SpareCores(pool, self.bound, self._ends_at, self.told)
            held = [each for each in self._judged(processes, map(dict, others)) if each.is_kept]
            try:
                held.append(self._grown(processes, dict(start)))
            except NoPlanError:
                if not held:
                    raise
            best = min(held, key=_rank)
            if self.bound is None:
                return self._shrunk(processes, best)
            # What is known to fail needs no replay to be no smaller plan.
            self.bound.plan = best.counts
            processes.raise_bound(began + GROWN_SHARE * self.seconds)
            best = self._shrunk(processes, best)
            self.bound.plan = best.counts
            processes.raise_bound(self._ends_at)
            if self.bound.open_fleet is None:
                return best
            # The cheapest fleet that is left may hold.
            opened = list(self._holding(processes, [dict(self.bound.open_fleet)]))
            better = [each for each in opened if _rank(each) < _rank(best)]
            return self._shrunk(processes, better[0]) if better else best

    @property
    def is_cut_short(self) -> bool:
        """True once the time is over: with more of it the search goes on."""
        return time.monotonic() > self._ends_at

    @property
    def fleet(self) -> Fleet:
        """The fleet whose pools may be rented."""
        return self.judge.setting.fleet

    @property
    def market(self) -> Market:
        """The market of replicas that may be rented."""
        return self.judge.market

    def _grown(self, processes: SpareCores, counts: dict[str, int]) -> JudgedFleet:
        """Add replicas until the fleet holds: each time where a dollar mends the most.

        The programme knows of work and not of moments, so several times its fleet is tried first.
        A pool grows by half, so that a large fleet takes few steps; what is too much is taken away
        afterwards.
        """
        scaled = [{n: ceil(factor * count) for n, count in counts.items()} for factor in FACTORS]
        allowed = [each for each in scaled if is_allowed(each, self.fleet, self.market)] or [counts]
        started: list[JudgedFleet] = []
        # As many at once as there are cores: what is judged beyond the first that holds is lost.
        for at in range(0, len(allowed), CORES):
            started += self._judged(processes, allowed[at : at + CORES])
            if started[-1].is_kept or time.monotonic() > self._ends_at:
                break
        if any(each.is_kept for each in started):
            return self._narrowed(processes, counts, FACTORS[: len(started)])
        here = min(started, key=_lack)
        step = 1
        while not here.is_kept:
            larger = [
                more
                for name in self.fleet.pools
                if is_allowed(
                    more := here.counts | {name: _grown_count(here.counts.get(name, 0), step)},
                    self.fleet,
                    self.market,
                )
            ]
            if not larger or time.monotonic() > self._ends_at:
                raise NoPlanError(
                    _missed(here, "no time is left" if larger else "there is no more")
                )
            judged = self._judged(processes, larger)
            best = max(judged, key=lambda each: _gain(here, each))
            if _lack(best) >= _lack(here):
                # Where no single replica mends anything, several of a kind may.
                step *= 2
                if step > STEP_MAX:
                    here, step = self._without_one(processes, here), 1
                continue
            here, step = best, 1
            if missed := _lack(here) % NOT_EVEN_USUALLY:
                self.told(f"${here.usd_per_hour:.2f} an hour: {missed} requests too many missed")
        return here

    def _without_one(self, processes: SpareCores, here: JudgedFleet) -> JudgedFleet:
        """Return the best fleet with one pool less: work may gather where it misses.

        Raises:
            NoPlanError: none is nearer to holding.
        """
        fewer = [{n: c for n, c in here.counts.items() if n != name} for name in here.counts]
        judged = self._judged(processes, [counts for counts in fewer if counts])
        best = min(judged, key=_lack, default=here)
        if _lack(best) >= _lack(here):
            raise NoPlanError(_missed(here, "neither more nor less of any pool mends anything"))
        return best

    def _narrowed(
        self, processes: SpareCores, counts: Counts, factors: Sequence[float]
    ) -> JudgedFleet:
        """Return the least multiple that holds, between the first of these that does and its last.

        As many between are judged at once as there are cores. One neighbour less is looked for
        afterwards, of which each may take a whole replay.
        """

        def judged(several: Sequence[float]) -> list[JudgedFleet]:
            scaled = [
                {n: ceil(factor * count) for n, count in counts.items()} for factor in several
            ]
            return self._judged(processes, scaled)

        verdicts = judged(factors)
        best = next(each for each in verdicts if each.is_kept)
        high = factors[verdicts.index(best)]
        low = max((factor for factor in factors if factor < high), default=0.0)
        while high - low > NARROWED_TO and time.monotonic() < self._ends_at:
            between = [low + (high - low) * n / (CORES + 1) for n in range(1, CORES + 1)]
            for factor, each in zip(between, judged(between), strict=True):
                if each.is_kept:
                    high, best = factor, each
                    break
                low = factor
        return best

    def _shrunk(self, processes: SpareCores, here: JudgedFleet) -> JudgedFleet:
        """Take replicas away, or swap one for a cheaper one, while the fleet holds.

        One that costs nothing is taken away, too, where it does nothing.
        """
        while time.monotonic() < self._ends_at:
            self.told(f"${here.usd_per_hour:.2f} an hour holds: {_counts(here.counts)}")
            # What is paid by tokens is known when a fleet was judged.
            likely = [
                (_rounded(usd_per_hour(other, self.fleet, self.market)), sum(other.values()), other)
                for other in self._neighbours(here.counts)
                if is_allowed(other, self.fleet, self.market) and not self._is_known_to_fail(other)
            ]
            cheaper = sorted((e for e in likely if e[:2] < _rank(here)), key=lambda e: e[:2])
            holding = self._holding(processes, [other for *_, other in cheaper])
            better = next((found for found in holding if _rank(found) < _rank(here)), None)
            if better is None:
                return here
            here = better
        return here

    def _is_known_to_fail(self, counts: Counts) -> bool:
        return self.bound is not None and self.bound.excludes(counts)

    def _neighbours(self, counts: Counts) -> Iterator[dict[str, int]]:
        for name, count in counts.items():
            for less in {1, count // 2, count}:
                if not 0 < less <= count:
                    continue
                fewer = {**counts, name: count - less}
                yield fewer
                if less == 1:
                    for other in self.fleet.pools:
                        if other != name:
                            yield {**fewer, other: fewer.get(other, 0) + 1}
                            yield {**fewer, other: fewer.get(other, 0) + 2}

    def _holding(
        self, processes: SpareCores, fleets: Sequence[dict[str, int]]
    ) -> Iterator[JudgedFleet]:
        """Yield those that hold, looking at a few at a time, until the time is over."""
        for at in range(0, len(fleets), CORES):
            some, ends_at = fleets[at : at + CORES], self._ends_at
            try:
                judged = self._judged(processes, some, until_one_fails=True, ends_at=ends_at)
            except OutOfTimeError:
                return
            yield from (each for each in judged if each.is_kept)

    def _judged(
        self,
        processes: SpareCores,
        fleets: Iterable[dict[str, int]],
        *,
        until_one_fails: bool = False,
        ends_at: float = inf,
    ) -> list[JudgedFleet]:
        """Judge fleets, first in the usual case, and in the others only where that is kept.

        With ``until_one_fails`` case by case, first those that failed most often: what one has
        failed needs no other. A case that takes nothing from a fleet is its usual one, less what
        nobody there could serve.

        Raises:
            OutOfTimeError: one took longer than until `ends_at`.
        """
        judge = partial(judge_here, ends_at=ends_at)
        found = [{n: c for n, c in counts.items() if c} for counts in fleets]
        new = [*{_key(each): each for each in found if _key(each) not in self.seen}.values()]
        usual = list(processes.map(judge, new, [()] * len(new)))
        by_fleet: dict[Key, list[tuple[Case, FleetVerdict]]] = {
            _key(counts): [((), verdict)] for counts, verdict in zip(new, usual, strict=True)
        }
        often = sorted(self.cases, key=lambda case: -self._failed[case])
        for cases in [[case] for case in often] if until_one_fails else [often]:
            pairs = [
                (counts, case)
                for counts in new
                if all(verdict.is_kept for _, verdict in by_fleet[_key(counts)])
                for case in cases
                if not counts.keys().isdisjoint(case)
            ]
            verdicts = processes.map(judge, *zip(*pairs, strict=True)) if pairs else ()
            for (counts, case), verdict in zip(pairs, verdicts, strict=True):
                by_fleet[_key(counts)].append((case, verdict))
                self._failed[case] += not verdict.is_kept
        for counts, verdict in zip(new, usual, strict=True):
            cases_of = by_fleet[_key(counts)]
            worst_case, worst = max(
                cases_of, key=lambda each: (each[1].lacking, -each[1].attainment)
            )
            price = usd_per_hour(counts, self.fleet, self.market) + verdict.tokens_usd_per_hour
            self.seen[_key(counts)] = JudgedFleet(counts, price, verdict, worst_case, worst)
        return [self.seen[_key(counts)] for counts in found]


def binding(search: FleetSearch, best: JudgedFleet) -> dict[str, dict[str, str]]:
    """Return what a replica less of each pool would miss: the objective, by class.

    Of the fleets that were judged; a pool that is missing here was swapped for others only.
    """
    found = {}
    for name, count in best.counts.items():
        fewer = {n: c for n, c in {**best.counts, name: count - 1}.items() if c}
        judged = search.seen.get(_key(fewer))
        if judged is not None and not judged.is_kept:
            found[name] = (judged.usual if not judged.usual.is_kept else judged.worst).missed
    return found


def curve(seen: Iterable[JudgedFleet]) -> list[JudgedFleet]:
    """Return the fleets that no cheaper one matches in attainment, the cheapest first.

    Those whose replay ended early have no attainment of the whole trace; no pools are no fleet.
    """
    best: list[JudgedFleet] = []
    whole = (judged for judged in seen if judged.counts and judged.usual.is_whole)
    for each in sorted(whole, key=lambda j: (j.usd_per_hour, -j.usual.attainment)):
        if not best or each.usual.attainment > best[-1].usual.attainment:
            best.append(each)
    return best


def _grown_count(count: int, step: int) -> int:
    return count + max(step, count // 2)


def _rank(judged: JudgedFleet) -> tuple[float, int]:
    """Return what the better of two fleets has less of: price, and of one price replicas."""
    return _rounded(judged.usd_per_hour), sum(judged.counts.values())


def _rounded(usd: float) -> float:
    # The sum of the same prices in another order is the same price.
    return round(usd, 9)


def _key(counts: Counts) -> Key:
    return tuple(sorted(counts.items()))


def _lack(judged: JudgedFleet) -> int:
    """Return how far a fleet is from holding. One that fails in the usual case is never nearer."""
    if not judged.usual.is_kept:
        return NOT_EVEN_USUALLY + judged.usual.lacking + judged.usual.broken
    return judged.worst.lacking + judged.worst.broken


def _gain(here: JudgedFleet, other: JudgedFleet) -> float:
    price = other.usd_per_hour - here.usd_per_hour
    return (_lack(here) - _lack(other)) / max(price, 1e-6)


def _missed(here: JudgedFleet, why: str) -> str:
    verdict = here.usual if not here.usual.is_kept else here.worst
    gone = f" with {', '.join(here.worst_case)} gone" if here.worst_case else ""
    classes = ", ".join(f"{task} {share:.1%}" for task, share in verdict.by_task.items())
    return (
        f"no fleet was found that keeps it: at ${here.usd_per_hour:.2f} an hour"
        f" ({_counts(here.counts)}){gone} the classes attain {classes}; {why}"
    )


def _counts(counts: Counts) -> str:
    return ", ".join(f"{count} x {name}" for name, count in counts.items() if count)
