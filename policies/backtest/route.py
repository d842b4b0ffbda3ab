"""Routes: policies under test in a backtest, with Shunter's own code first."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from policies.backtest.accounts import ReplayAccounts
from policies.backtest.workload import Tagger
from policies.batching.fair_queue import Member
from policies.batching.groups import group_in
from policies.batching.windows import Expelled, Release, Target, windows_of
from policies.config.options import Option, Options
from policies.config.policy import Policy
from policies.placement.admission import Shares
from policies.placement.decide import Decision
from policies.placement.placer import Placer
from policies.scoring.situation import Situation, situation
from topics import Candidate, Envelope, PoolStatus, Profile
from topics.records.money import Amounts
from topics.records.placement import Path


@dataclass(frozen=True, slots=True)
class Send:
    """A request goes to a pool.

    ``candidates`` are those of its decisions since its last arrival, the newest first, if kept.
    """

    profile: Profile
    option: Option
    path: Path
    batch_id: str | None = None
    promised: Envelope | None = None
    candidates: Sequence[Candidate] = ()


@dataclass(frozen=True, slots=True)
class Unserved:
    """A request ends without an answer: ``rejected`` or ``expired``, with the reason code."""

    profile: Profile
    reason: str
    expired: bool = False


class Route(Protocol):
    """A policy under test. It sees what a router sees: requests, heartbeats and the time."""

    def hear(self, status: PoolStatus, now: float) -> None:
        """Take a heartbeat in."""

    def arrive(self, profile: Profile, now: float) -> Send | Unserved | None:
        """Decide on a request; return None if it waits."""

    def due_at(self) -> float:
        """Return when `release` must be called next; inf while nothing waits."""

    def release(self, now: float) -> Iterator[Send | Unserved]:
        """Yield requests that wait no longer."""

    def settle(self, profile: Profile, used: Amounts) -> None:
        """Take note of a request's end, and of what all its tries used."""


class Shunter:
    """The router and the batcher without Kafka: the same decisions, the same windows."""

    def __init__(
        self, options: Options, policy: Policy, tag: Tagger, *, keeps_candidates: bool = False
    ) -> None:
        self.situation: Situation = situation(options, policy)
        self._placer = Placer(self.situation, Shares(policy))
        self.accounts = ReplayAccounts(options, policy)
        self._tag = tag
        self._keeps_candidates = keeps_candidates
        self._windows = windows_of(policy)
        self._held = 0
        self._seen: dict[str, Sequence[Candidate]] = {}

    def hear(self, status: PoolStatus, now: float) -> None:
        """Take a heartbeat in."""
        self.situation.view.report(status)

    def tagged(self, profile: Profile, now: float) -> Profile:
        """Return a request as it is decided on when it comes."""
        return self._tag(profile.id, self.situation.view.lengths)

    def decided(self, profile: Profile, decision: Decision, now: float) -> None:
        """Take note of a decision, where a kind of route wants to."""

    def arrive(self, profile: Profile, now: float) -> Send | Unserved | None:
        """Decide on a request as `streams.router.stage.Router` does."""
        here = self.situation
        if profile.attempt == 1:
            profile = self.tagged(profile, now)
        decision, inputs = self._placer.decide(profile, now)
        if profile.attempt == 1:
            decision, profile = self.accounts.reserve(profile, decision, inputs, now)
        self.decided(profile, decision, now)
        if decision.option is not None:
            self._placer.count_placed(profile, decision, now)
            seen: Sequence[Candidate] = decision.candidates if self._keeps_candidates else ()
            return Send(profile, decision.option, "direct", None, decision.promised, seen)
        if decision.action == "hold":
            # A router names the group; the batcher works it out again from the profile.
            group = group_in(profile, here.options, here.policy)
            self._windows.add(Member(profile, group, now, self._held))
            if self._keeps_candidates:
                self._seen[profile.id] = decision.candidates
            self._held += 1
            return None
        return Unserved(profile, decision.reason, expired=decision.action == "expire")

    def settle(self, profile: Profile, used: Amounts) -> None:
        """Settle what its budgets keep for a request, as the transaction of its end does."""
        self.accounts.settle(profile, used)

    def due_at(self) -> float:
        """Return when a window is due."""
        return self._windows.next_due_at()

    def release(self, now: float) -> Iterator[Send | Unserved]:
        """Release as `streams.batcher.stage.Batcher` does."""
        ends: list[Release | Expelled] = []

        def target(members: Sequence[Member]) -> Target | None:
            return self._placer.target(members, now)

        for end in self._windows.due(now, target):
            ends.append(end)
            if isinstance(end, Release):
                self._placer.count_released(end, now)
        for end in ends:
            if isinstance(end, Release):
                yield from self._send(end, now)
            else:
                self._windows.remove(end.member.profile.id)
                expired = end.reason == "deadline_passed"
                yield Unserved(end.member.profile, end.reason, expired=expired)

    def _send(self, release: Release, now: float) -> Iterator[Send]:
        target = release.target
        batch_id = str(release.members[0].offset) if target.path == "batch" else None
        for member in release.members:
            self._windows.remove(member.profile.id)
            promised = target.promise(member.profile, now)
            seen: tuple[Candidate, ...] = ()
            if self._keeps_candidates:
                seen = (*target.candidates, *self._seen.pop(member.profile.id))
            yield Send(member.profile, target.option, target.path, batch_id, promised, seen)


@dataclass(slots=True)
class _Batch:
    members: list[Profile]
    due_at: float


class FixedDelay:
    """Batches one variant's requests within a fixed delay, for rules that batch blindly."""

    def __init__(self, delay_s: float, members_max: int) -> None:
        self._delay_s = delay_s
        self._members_max = members_max
        self._batches: dict[tuple[str, str], tuple[Option, _Batch]] = {}
        self._count = 0

    def add(self, profile: Profile, option: Option, now: float) -> None:
        """Let a request wait."""
        key = (option.pool, option.variant)
        _, batch = self._batches.setdefault(key, (option, _Batch([], now + self._delay_s)))
        batch.members.append(profile)
        if len(batch.members) >= min(self._members_max, option.max_batch):
            batch.due_at = now

    def due_at(self) -> float:
        """Return when the first batch is due."""
        return min((batch.due_at for _, batch in self._batches.values()), default=math.inf)

    def release(self, now: float) -> Iterator[Send]:
        """Yield the members of each batch that is due."""
        due = [key for key, (_, batch) in self._batches.items() if batch.due_at <= now]
        for key in due:
            option, batch = self._batches.pop(key)
            self._count += 1
            for profile in batch.members:
                yield Send(profile, option, "batch", str(self._count))
