"""Cores that judge nothing for the search raise the bound under the policy meanwhile."""

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Any

from shunter.plan.judge import CORES, Case, FleetVerdict, OutOfTimeError, fails_here
from shunter.plan.market import Counts
from shunter.plan.policy_bound import PolicyBound


@dataclass
class SpareCores:
    """Processes of a search, of which those that have nothing to do replay fleets for its bound.

    Args:
        processes: as many as there are cores.
        bound: to be raised; None for a search without.
        ends_at: of the clock `time.monotonic`: replays for the bound end there, without a result.
        told: gets a line for people when the bound has risen.
    """

    processes: ProcessPoolExecutor
    bound: PolicyBound | None
    ends_at: float
    told: Callable[[str], object]
    _beside: dict[Future[bool], Counts] = field(default_factory=dict)
    _told_usd: float = 0.0

    def __post_init__(self) -> None:
        if self.bound is not None:
            self._told_usd = round(self.bound.usd_per_hour, 2)

    def map(
        self,
        judged: Callable[[Counts, Case], FleetVerdict],
        fleets: Iterable[Counts],
        cases: Iterable[Case],
    ) -> list[FleetVerdict]:
        """Return the verdicts of these fleets, each in its case.

        Raises:
            OutOfTimeError: one took longer than it may.
        """
        mine = [
            self.processes.submit(judged, counts, case)
            for counts, case in zip(fleets, cases, strict=True)
        ]
        self._wait(mine, None)
        return [each.result() for each in mine]

    def raise_bound(self, until: float) -> None:
        """Replay fleets for the bound alone, until then or until no cheaper one may hold."""
        self._wait([], until)

    def _wait(self, mine: Sequence[Future[FleetVerdict]], until: float | None) -> None:
        """Wait for these, or until then, and keep the other cores busy."""
        while True:
            left = [each for each in mine if not each.done()]
            if until is None and not left:
                return
            if until is not None and time.monotonic() > until:
                return
            self._fill(CORES - len(left))
            if not left and not self._beside:
                return
            timeout = None if until is None else max(0.0, until - time.monotonic())
            pending: list[Future[Any]] = [*left, *self._beside]
            wait(pending, timeout, FIRST_COMPLETED)
            self._learn()

    def _fill(self, free: int) -> None:
        while self.bound is not None and len(self._beside) < free:
            if time.monotonic() > self.ends_at or (found := self.bound.next_case()) is None:
                return
            counts, case = found
            self._beside[self.processes.submit(fails_here, counts, case, self.ends_at)] = counts

    def _learn(self) -> None:
        if self.bound is None:
            return
        for future in [each for each in self._beside if each.done()]:
            counts = self._beside.pop(future)
            try:
                is_failing = future.result()
            except OutOfTimeError:
                continue
            self.bound.learn(counts, is_failing=is_failing)
        if (usd := round(self.bound.usd_per_hour, 2)) > self._told_usd:
            self._told_usd = usd
            self.told(f"under this policy ${usd:.2f} an hour or more")
