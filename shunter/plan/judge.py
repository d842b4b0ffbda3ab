"""The judge of a plan: the backtest of its policy, on the fleet and on it with parts gone."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

from policies import compile_options
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.workload import Arrival, profiles_of
from policies.config.options import SECONDS_PER_HOUR
from shunter.backtest.demand import Demand
from shunter.backtest.parallel_runs import adopt, adopted, cores, forked
from shunter.backtest.suite import ScoredRun, Setting, run_one, shunter
from shunter.plan.capacity import least_usd, may_miss, servable_without
from shunter.plan.market import Counts, Market, fleet_of, rent

# A trace of more requests is replayed in its busiest stretch first, of so many seconds.
LONG, STRETCH_S = 8_000, 40.0
# A fleet fails clearly where so many times as many requests miss as may, and so many more: what a
# replica does by chance, since other requests meet, is less than that.
CLEARLY, AND_MORE = 2, 10

CORES = cores()

Case = tuple[str, ...]
"""Pools that are unavailable together, from the first request on; none in the usual case."""


class FleetVerdict(NamedTuple):
    """The backtest's verdict on a fleet in one case.

    Attributes:
        attainment: share of the requests that were answered within their SLO and deadline.
        by_task: the same by class.
        lacking: requests beyond those that may miss, of all and of each class.
        missed: of the classes that miss too much, which objective most requests missed: `ttft`,
            `tpot` or `deadline`.
        broken: sends that broke a constraint.
        busy_usd: price of the time that its devices were busy, and of tokens.
        tokens_usd_per_hour: what pools that are paid by tokens were paid, on average.
        is_whole: whether the whole trace was replayed. Else too many had missed before: shares are
            of the requests until then, and what is lacking is as if it went on so.
    """

    attainment: float
    by_task: dict[str, float]
    lacking: int
    missed: dict[str, str]
    broken: int
    busy_usd: float
    tokens_usd_per_hour: float = 0.0
    is_whole: bool = True

    @property
    def is_kept(self) -> bool:
        """True if all and each class attain what is wanted, and no constraint is broken."""
        return self.lacking == 0 and self.broken == 0


class OutOfTimeError(Exception):
    """A replay took longer than it may."""


class Judge:
    """Replays a trace on fleets.

    A long trace is replayed in its busiest stretch first, and in whole if no more miss there than
    may in all. A replay ends where too many have missed.

    Args:
        setting: trace, the fleet whose pools may be rented, policy and reality.
        market: what may be rented.
        attainment: share of all requests to be answered within their SLO and deadline.
        by_class: the same of each class.
    """

    def __init__(
        self, setting: Setting, market: Market, attainment: float, by_class: float
    ) -> None:
        self.setting = setting
        self.market = market
        self.wanted = attainment, by_class
        self._asked: dict[Case, dict[str, str]] = {}
        self._stretch = busiest(setting) if len(setting.arrivals) > LONG else []

    def judge(self, counts: Counts, case: Case, ends_at: float = math.inf) -> FleetVerdict:
        """Return the verdict on a fleet.

        Requests that only the pools that are gone could serve don't count.

        Raises:
            OutOfTimeError: it took longer than until `ends_at` (`time.monotonic`).
        """
        asked, left = self._asked_in(case), _left(counts, case)
        if not left:
            tasks = sorted(set(asked.values()))
            unanswered = dict.fromkeys(tasks, "deadline")
            return FleetVerdict(0.0, dict.fromkeys(tasks, 0.0), len(asked), unanswered, 0, 0.0)
        if self._stretch:
            verdict = self._replayed(
                left, Tally(asked, *self.wanted, ends_at=ends_at), self._stretch
            )
            if not verdict.is_kept:
                return verdict
        tally = Tally(asked, *self.wanted, ends_at=ends_at)
        return self._replayed(left, tally, self.setting.arrivals)

    def fails_clearly(self, counts: Counts, case: Case, ends_at: float = math.inf) -> bool:
        """Return whether twice as many requests of the whole trace miss as may, and ten more.

        A long trace, too, is replayed from its beginning: a stretch of it, by itself, meets a pool
        that has seen nothing yet, and may miss more than the whole.

        Raises:
            OutOfTimeError: it took longer than until `ends_at` (`time.monotonic`).
        """
        asked, left = self._asked_in(case), _left(counts, case)
        if not left:
            return bool(asked)
        tally = Tally(asked, *self.wanted, clearly=True, ends_at=ends_at)
        self._run(left, tally, self.setting.arrivals)
        return tally.is_over

    def _replayed(self, left: Counts, tally: "Tally", arrivals: Sequence[Arrival]) -> FleetVerdict:
        scored = self._run(left, tally, arrivals)
        kept = Counter(each.profile.task for each in tally.ended if each.attained)
        seen = Counter(each.profile.task for each in tally.ended)
        return FleetVerdict(
            kept.total() / len(tally.ended) if tally.ended else 1.0,
            {task: kept[task] / count for task, count in sorted(seen.items())},
            tally.lacking,
            {task: _objective(tally.ended, task) for task in tally.lacking_classes},
            int(scored.scores["constraint_violations"]),
            scored.scores["cost_usd"],
            scored.scores["tokens_usd"] * SECONDS_PER_HOUR / self._trace_s,
            tally.is_whole,
        )

    def _run(self, left: Counts, tally: "Tally", arrivals: Sequence[Arrival]) -> ScoredRun:
        """Replay these requests on a fleet, and count all that they come to."""
        setting = replace(self._setting_of(left), arrivals=arrivals)
        options = compile_options(setting.fleet)
        scored = run_one("plan", setting, options, shunter(setting, options), tally)
        if not tally.is_over:
            tally.end(scored.run.outcomes)
        return scored

    @property
    def _trace_s(self) -> float:
        return max(1.0, *(each.arrival_s for each in self.setting.arrivals))

    def _setting_of(self, counts: Counts) -> Setting:
        fleet = self.setting.fleet
        interrupted = {
            name: rent(name, count, fleet, self.market).interruptions_per_hour
            for name, count in counts.items()
        }
        known = self.setting.reality.preemptions_per_hour
        rates = known | {name: rate for name, rate in interrupted.items() if rate}
        reality = self.setting.reality.model_copy(update={"preemptions_per_hour": rates})
        return replace(self.setting, fleet=fleet_of(counts, fleet, self.market), reality=reality)

    def _asked_in(self, case: Case) -> dict[str, str]:
        if case not in self._asked:
            self._asked[case] = servable_without(self.setting, case)
        return self._asked[case]


class Tally:
    """A count of requests that have ended, until more have missed than may.

    Args:
        asked: the class of each request that counts, by its id.
        attainment: share of all of them to be answered within their SLO and deadline.
        by_class: the same of each class.
        clearly: whether a fleet fails only where it fails clearly.
        ends_at: when to end at the latest, of `time.monotonic`.
    """

    def __init__(
        self,
        asked: Mapping[str, str],
        attainment: float,
        by_class: float,
        *,
        clearly: bool = False,
        ends_at: float = math.inf,
    ) -> None:
        self.ended: list[ReplayOutcome] = []
        self._ends_at = ends_at
        self._asked = asked
        self._counts = Counter(asked.values())
        times, more = (CLEARLY, AND_MORE) if clearly else (1, 0)
        self._may = times * may_miss(len(asked), attainment) + more
        self._may_of = {
            task: times * may_miss(n, by_class) + more for task, n in self._counts.items()
        }
        self._missed: Counter[str] = Counter()

    def __call__(self, outcome: ReplayOutcome) -> bool:
        """Count a request, and return whether too many have missed.

        Raises:
            OutOfTimeError: the time is over.
        """
        if time.monotonic() > self._ends_at:
            raise OutOfTimeError
        task = self._asked.get(outcome.profile.id)
        if task is None:
            return False
        self.ended.append(outcome)
        if outcome.attained:
            return False
        self._missed[task] += 1
        return self.is_over

    @property
    def is_over(self) -> bool:
        """True if too many have missed."""
        too_many = any(n > self._may_of[task] for task, n in self._missed.items())
        return too_many or self._missed.total() > self._may

    @property
    def is_whole(self) -> bool:
        """True if all requests have ended."""
        return len(self.ended) == len(self._asked)

    @property
    def lacking(self) -> int:
        """Requests that miss beyond those that may; of the whole trace, if it goes on so."""
        of_classes = sum(max(0, n - self._may_of[task]) for task, n in self._missed.items())
        found = max(self._missed.total() - self._may, of_classes, 0)
        if not found or self.is_whole:
            return found
        part = len(self._asked) / len(self.ended)
        return max(found, round(part * self._missed.total()) - self._may)

    def end(self, outcomes: Iterable[ReplayOutcome]) -> None:
        """Count what has not ended at a replay's end as missed."""
        known = {outcome.profile.id for outcome in self.ended}
        for outcome in outcomes:
            if outcome.profile.id not in known:
                self(outcome)

    @property
    def lacking_classes(self) -> list[str]:
        """The classes that miss too much; if none does by itself, all that miss."""
        if not self.lacking:
            return []
        over = sorted(task for task, n in self._missed.items() if n > self._may_of[task])
        return over or sorted(self._missed)


def busiest(setting: Setting) -> list[Arrival]:
    """Return the requests of the stretch of a trace with the most work, from its beginning on."""
    fleet, policy = setting.fleet, setting.policy
    options, weights = compile_options(fleet), Counter[int]()
    for profile, arrival in zip(
        profiles_of(setting.arrivals, fleet, policy), setting.arrivals, strict=True
    ):
        demand = Demand.of(profile, arrival.output_tokens, policy.floor_of(profile))
        if profile.ttft_s is not None:
            usd = least_usd(demand, options)
            at = int(arrival.arrival_s / (STRETCH_S / 2))
            weights.update({at: usd, at - 1: usd})
    begin_s = max(weights, key=weights.__getitem__, default=0) * STRETCH_S / 2
    return [
        replace(arrival, arrival_s=arrival.arrival_s - begin_s)
        for arrival in setting.arrivals
        if begin_s <= arrival.arrival_s <= begin_s + STRETCH_S
    ]


def _left(counts: Counts, case: Case) -> dict[str, int]:
    return {name: count for name, count in counts.items() if count and name not in case}


def _objective(outcomes: Sequence[ReplayOutcome], task: str) -> str:
    """Return the objective that most of a class's requests missed."""
    mine = [each for each in outcomes if each.profile.task == task]
    counts = {
        "ttft": sum(each.missed_ttft for each in mine),
        "tpot": sum(each.missed_tpot for each in mine),
        "deadline": sum(not each.met_deadline for each in mine),
    }
    return max(counts, key=lambda name: counts[name])


@contextmanager
def judging(judge: Judge) -> Iterator[ProcessPoolExecutor]:
    """Give processes, one for each core, that have the trace without a copy."""
    with forked(CORES, adopt, judge) as processes:
        yield processes


def judge_here(counts: Counts, case: Case, ends_at: float = math.inf) -> FleetVerdict:
    """Return the verdict of this process's judge, by then."""
    return _here().judge(counts, case, ends_at)


def fails_here(counts: Counts, case: Case, ends_at: float) -> bool:
    """Return whether a fleet fails clearly by then, by this process's judge."""
    return _here().fails_clearly(counts, case, ends_at)


def _here() -> Judge:
    judge: Judge = adopted()
    return judge
