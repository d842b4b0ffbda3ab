"""The judge of a plan: the backtest of its policy, on the fleet and on it with parts gone."""

import multiprocessing
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from math import floor
from typing import NamedTuple

from policies import compile_options
from policies.backtest.outcome import ReplayOutcome
from policies.config.options import SECONDS_PER_HOUR
from shunter.backtest.parallel_runs import calm_garbage_collector
from shunter.backtest.suite import Setting, run_one, shunter
from shunter.plan.capacity import servable_without
from shunter.plan.market import Counts, Market, fleet_of, rent

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
    """

    attainment: float
    by_task: dict[str, float]
    lacking: int
    missed: dict[str, str]
    broken: int
    busy_usd: float
    tokens_usd_per_hour: float = 0.0

    @property
    def is_kept(self) -> bool:
        """True if all and each class attain what is wanted, and no constraint is broken."""
        return self.lacking == 0 and self.broken == 0


class Judge:
    """Replays a trace on fleets.

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
        self.attainment = attainment
        self.by_class = by_class
        self._wanted: dict[Case, set[str]] = {}

    def judge(self, counts: Counts, case: Case) -> FleetVerdict:
        """Return the verdict on a fleet.

        Requests that only the pools that are gone could serve don't count.
        """
        wanted = self._wanted_in(case)
        left = {name: count for name, count in counts.items() if count and name not in case}
        if not left:
            return FleetVerdict(0.0, {}, len(wanted), {}, 0, 0.0)
        setting = self._setting_of(left)
        options = compile_options(setting.fleet)
        scored = run_one("plan", setting, options, shunter(setting, options))
        outcomes = [each for each in scored.run.outcomes if each.profile.id in wanted]
        return self._verdict(outcomes, scored.scores)

    def _verdict(self, outcomes: Sequence[ReplayOutcome], scores: dict[str, float]) -> FleetVerdict:
        asked = Counter(each.profile.task for each in outcomes)
        kept = Counter(each.profile.task for each in outcomes if each.attained)
        lacking = {
            task: lack
            for task, count in sorted(asked.items())
            if (lack := _lack(count, kept[task], self.by_class))
        }
        of_all = _lack(len(outcomes), kept.total(), self.attainment)
        if of_all and not lacking:
            lacking = {task: 0 for task, count in asked.items() if kept[task] < count}
        return FleetVerdict(
            kept.total() / len(outcomes) if outcomes else 1.0,
            {task: kept[task] / count for task, count in sorted(asked.items())},
            max(of_all, sum(lacking.values())),
            {task: _objective(outcomes, task) for task in lacking},
            int(scores["constraint_violations"]),
            scores["cost_usd"],
            scores["tokens_usd"] * SECONDS_PER_HOUR / self._trace_s,
        )

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

    def _wanted_in(self, case: Case) -> set[str]:
        if case not in self._wanted:
            self._wanted[case] = servable_without(self.setting, case)
        return self._wanted[case]


def _lack(asked: int, kept: int, attainment: float) -> int:
    # A hundredth of 2,000 is a little more than 20 in floating point.
    may_miss = floor((1 - attainment) * asked + 1e-6)
    return max(0, asked - may_miss - kept)


def _objective(outcomes: Sequence[ReplayOutcome], task: str) -> str:
    """Return the objective that most of a class's requests missed."""
    mine = [each for each in outcomes if each.profile.task == task]
    counts = {
        "ttft": sum(each.missed_ttft for each in mine),
        "tpot": sum(each.missed_tpot for each in mine),
        "deadline": sum(not each.met_deadline for each in mine),
    }
    return max(counts, key=lambda name: counts[name])


# Set in a process that judges for another.
_judge: Judge | None = None


@contextmanager
def judging(judge: Judge) -> Iterator[ProcessPoolExecutor]:
    """Give processes, one for each core, that have the trace without a copy."""
    calm_garbage_collector()
    context = multiprocessing.get_context("fork")
    with ProcessPoolExecutor(
        os.cpu_count(), context, initializer=_adopt, initargs=(judge,)
    ) as processes:
        yield processes


def judge_here(counts: Counts, case: Case) -> FleetVerdict:
    """Return the verdict of this process's judge."""
    if _judge is None:
        raise RuntimeError("not a process of `judging`")
    return _judge.judge(counts, case)


def _adopt(judge: Judge) -> None:
    global _judge  # noqa: PLW0603 - of this process alone
    _judge = judge
