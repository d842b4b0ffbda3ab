"""Batch windows: choose which held requests to release together, and when. Time is passed in."""

import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Literal

from policies.batching.fair_queue import Member, ShareOf, Turns
from policies.config.options import Option
from policies.config.policy import Policy
from policies.scoring.estimate import Estimate
from topics import Candidate, Envelope, Footprint, Profile
from topics.records.placement import Path

ReleaseReason = Literal["full", "slack", "window", "idle", "pool_available"]


@dataclass(frozen=True, slots=True)
class Target:
    """The current target of a group, with its cost and duration."""

    option: Option
    path: Path
    members_max: int
    tokens_max: int
    estimate: Estimate
    chance: float
    candidates: tuple[Candidate, ...]
    asked: int
    """Of the members it was found for, how many counted, from the first on."""
    is_crowded: bool = False
    """Nothing fits beside what runs there: to go now would wake a replica, or wait for a place."""
    idle_arrivals_per_s: float | None = None
    """Where nothing runs there, the rate at which the group grows; else None."""
    wait_until: float = 0.0
    """The cheaper hour at which to go, epoch seconds; 0: now. The estimate includes the wait."""
    instead: "Target | None" = None
    """Of one for a cheaper hour, the best to go to now; None if there is none."""
    footprint: Footprint | None = None
    """What the estimate takes by the prices of its hour, where they move."""

    def footprint_of(self, profile: Profile) -> Footprint | None:
        """Return what one member takes; it keeps the member's limit, as each member does."""
        found, limit_g = self.footprint, profile.max_gco2
        if found is None or found.gco2 is None or limit_g is None:
            return found
        return replace(found, gco2=min(found.gco2, limit_g))

    def promise(self, profile: Profile, now: float) -> Envelope:
        """Return the envelope promised to one member, latencies from its ``created_at``.

        The estimate is for the longest prompt with the longest reply, which may be no member's.
        Each member's own cost is within its limit, otherwise there would be no target
        (`policies.batching.release`).
        """
        elapsed_s = now - profile.created_at
        # The estimate is at no tier's price, since members may be of several.
        cost_usd = self.estimate.cost_usd * profile.price_factor
        limit_usd = profile.max_cost_usd
        return Envelope(
            cost_usd=cost_usd if limit_usd is None else min(cost_usd, limit_usd),
            ttft_s=elapsed_s + self.estimate.ttft_s,
            finish_s=elapsed_s + self.estimate.finish_s,
            tpot_s=self.estimate.tpot_s,
            chance=self.chance,
        )


@dataclass(frozen=True, slots=True)
class Release:
    """Members of one group that go together. ``slack_s`` is the time left before their last start.

    ``head`` are those that the target was found for, of ``waiting`` in all, in release order.
    """

    members: tuple[Member, ...]
    target: Target
    reason: ReleaseReason
    slack_s: float
    head: tuple[Member, ...]
    waiting: int

    @property
    def tokens(self) -> int:
        """Tokens of the released members, prompts and replies."""
        return sum(_tokens(member) for member in self.members)


@dataclass(frozen=True, slots=True)
class Expelled:
    """A member that leaves the hold without a pool, and the reason."""

    member: Member
    reason: Literal["deadline_passed", "pool_unavailable", "refused", "cancelled", "outside_bound"]
    target: Target | None = None
    """Of one whose deadline passed, where its group was last to go; None if nowhere."""

    @property
    def members(self) -> tuple[Member]:
        """The member, as a release has its members."""
        return (self.member,)


# A group is looked at no more often than this while nothing happens to it.
LOOK_S_MIN = 0.1

TargetOf = Callable[[Sequence[Member]], Target | None]


def _equal_share(_tenant: str) -> float:
    return 1.0


@dataclass(slots=True)
class _Window:
    members: dict[str, Member]
    turns: Turns
    due_at: float = 0.0
    tokens: int = 0
    target: Target | None = None
    patient_until: float = math.inf
    """Nobody's longest wait ends before."""


class Windows:
    """All windows of one partition of the hold.

    A group is examined when due: after each arrival that may fill it, at the end of its slack or
    window and halfway there, and every ``retry_s`` while no pool can take it.
    """

    def __init__(
        self,
        *,
        members_max: int,
        margin_s: float,
        retry_s: float = 0.25,
        room_wait_s: float = 0.0,
        share_of: ShareOf = _equal_share,
    ) -> None:
        self._members_max = members_max
        self._margin_s = margin_s
        self._room_wait_s = room_wait_s
        self._retry_s = retry_s
        self._share_of = share_of
        self._windows: dict[str, _Window] = {}
        self._groups: dict[str, str] = {}
        self._tasks: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self._groups)

    def find(self, request_id: str) -> Member | None:
        """Return the member with this id; None if it isn't held."""
        group = self._groups.get(request_id)
        return None if group is None else self._windows[group].members[request_id]

    def members(self) -> Iterable[Member]:
        """Return every member held, group by group."""
        return (m for window in self._windows.values() for m in window.members.values())

    def groups(self) -> Iterable[Collection[Member]]:
        """Return the members of each group."""
        return [window.members.values() for window in self._windows.values()]

    def sizes(self) -> dict[str, int]:
        """Return the number of members of each group."""
        return {group: len(window.members) for group, window in self._windows.items()}

    def tasks(self) -> Mapping[str, int]:
        """Return the number of members of each class; 0 if a class has none left."""
        return self._tasks

    def oldest(self) -> dict[str, float]:
        """Return the time at which the oldest member of each group was held, epoch seconds."""
        return {g: next(iter(w.members.values())).held_at for g, w in self._windows.items()}

    def add(self, member: Member) -> None:
        """Hold a request. A held one with the same id is replaced."""
        name = member.profile.id
        if name in self._groups:
            self.remove(name)
        window = self._windows.get(member.group)
        if window is None:
            members: dict[str, Member] = {}
            window = self._windows[member.group] = _Window(members, Turns(members, self._share_of))
        window.members[name] = member
        window.turns.add(member)
        window.tokens += _tokens(member)
        window.patient_until = min(window.patient_until, _patient_until(member))
        self._tasks[member.profile.task] += 1
        self._groups[name] = member.group
        window.due_at = min(window.due_at, self._due_at(window, member))

    def remove(self, request_id: str) -> Member | None:
        """Remove and return a request that was released or cancelled; None if it isn't held."""
        group = self._groups.pop(request_id, None)
        if group is None:
            return None
        window = self._windows[group]
        member = window.members.pop(request_id)
        window.tokens -= _tokens(member)
        self._tasks[member.profile.task] -= 1
        window.turns.remove()
        if not window.members:
            del self._windows[group]
        return member

    def next_due_at(self) -> float:
        """Return when a group must be examined next, epoch seconds; inf if none is held."""
        return min((window.due_at for window in self._windows.values()), default=math.inf)

    def due(
        self, now: float, target_of: TargetOf, without: Collection[str] = ()
    ) -> Iterator[Release | Expelled]:
        """Yield what to release and what to expel now.

        This removes nothing: the caller removes what it has committed, after it has read all it
        wants. It may stop early; the rest stays due.

        Args:
            now: epoch seconds.
            target_of: returns the target of members in release order, None if no pool can take
                them. Called again after each release, so that it can count it.
            without: ids of members to skip, since they end otherwise.
        """
        for window in list(self._windows.values()):
            if window.due_at > now:
                continue
            passed = window.turns.passed(now)
            yield from (
                Expelled(member, "deadline_passed", window.target)
                for member in passed
                if member.profile.id not in without
            )
            absent = {member.profile.id for member in passed}
            absent.update(name for name in without if name in window.members)
            waiting = (m for m in window.turns if m.profile.id not in absent)
            count = len(window.members) - len(absent)
            yield from self._release(window, waiting, count, now, target_of)

    def _release(
        self,
        window: _Window,
        waiting: Iterator[Member],
        count: int,
        now: float,
        target_of: TargetOf,
    ) -> Iterator[Release | Expelled]:
        head: list[Member] = []
        while count:
            # No more than these can go together. With 10,000 waiting for a pool, to look at all of
            # them for each release takes 4 s per 1,000 releases.
            head += islice(waiting, self._members_max - len(head))
            target = window.target = target_of(head)
            if target is None:
                if window.patient_until <= now:
                    window.patient_until = min(map(_patient_until, window.members.values()))
                    for member in chain(head, waiting):
                        if _patient_until(member) <= now:
                            yield Expelled(member, "pool_unavailable")
                window.due_at = now + self._retry_s
                return
            release = self.judge(head, count, target, now)
            if not isinstance(release, Release):
                window.due_at = release
                return
            yield release
            head = head[len(release.members) :]
            count -= len(release.members)

    def judge(
        self, head: Sequence[Member], waiting: int, target: Target, now: float
    ) -> Release | float:
        """Return the release of the first members, or when to examine them again.

        Args:
            head: the first waiting members, in release order.
            waiting: number of waiting members.
            target: current target of the head.
            now: epoch seconds.
        """
        if target.wait_until > now:
            if self._may_wait_for_hour(head[: target.asked], waiting, target, now):
                return min(target.wait_until, now + max(LOOK_S_MIN, (target.wait_until - now) / 2))
            if target.instead is None:
                return now + self._retry_s
            target = target.instead
        head = head[: target.asked]
        batch, is_full = self._fill(head, target)
        last_start = self._last_start(head, target)
        if target.is_crowded and self._may_wait(head, waiting / len(batch), target, now):
            return now + self._retry_s
        window_end = min(m.held_at + m.profile.window_s for m in head)
        reason = _reason(head[0], now, last_start, window_end, is_full=is_full)
        left_s = min(last_start, window_end) - now
        if reason is None and _is_vain(target, left_s, head[0].profile.window_s):
            reason = "idle"
        if reason is None:
            # More company or more load makes the batch take longer, which moves its last start.
            ends_at = min(last_start, window_end)
            return min(ends_at, now + max(LOOK_S_MIN, (ends_at - now) / 2))
        slack_s = last_start - now
        return Release(tuple(batch), target, reason, slack_s, tuple(head), waiting)

    def _fill(self, waiting: Sequence[Member], target: Target) -> tuple[Sequence[Member], bool]:
        """Return the members of the next batch, and whether the device is then full."""
        members_max = min(self._members_max, target.members_max)
        tokens = 0
        for count, member in enumerate(waiting):
            tokens += _tokens(member)
            if count == members_max or (count and tokens > target.tokens_max):
                return waiting[:count], True
        return waiting, len(waiting) >= members_max or tokens >= target.tokens_max

    def _last_start(self, members: Iterable[Member], target: Target) -> float:
        earliest = min(m.profile.deadline for m in members)
        return earliest - target.estimate.latest_s - self._margin_s

    def _may_wait(self, head: Sequence[Member], batches: float, target: Target, now: float) -> bool:
        """Return True if all waiting members would be in time, in batches from now on."""
        first = head[0]
        if not first.profile.batchable or now >= first.held_at + self._room_wait_s:
            return False
        earliest = min(m.profile.deadline for m in head)
        found = target.estimate
        # As in the hour below: each replica of the pool takes one after the other.
        rounds = (batches - 1) / target.option.replicas
        ends_at = now + rounds * found.finish_s + found.latest_s
        return ends_at + self._margin_s < earliest

    def _may_wait_for_hour(
        self, head: Sequence[Member], waiting: int, target: Target, now: float
    ) -> bool:
        """Return True if all waiting members would be in time, in batches from the hour on."""
        batch, _ = self._fill(head, target)
        found, wait_s = target.estimate, target.wait_until - now
        rounds = max(0, math.ceil(waiting / len(batch)) - 1) / target.option.replicas
        ends_at = now + rounds * (found.finish_s - wait_s) + found.latest_s
        return ends_at + self._margin_s < min(m.profile.deadline for m in head)

    def _due_at(self, window: _Window, member: Member) -> float:
        target = window.target
        if target is None:
            # At once, where nobody has looked yet; else when it is looked for a pool again.
            return window.due_at
        if target.wait_until:
            # A full batch waits for its hour like others, unless one comes that can't.
            return min(self._last_start([member], target.instead or target), target.wait_until)
        is_full = len(window.members) >= min(self._members_max, target.members_max)
        if is_full or window.tokens >= target.tokens_max or not member.profile.batchable:
            return 0.0
        return min(self._last_start([member], target), member.held_at + member.profile.window_s)


def windows_of(policy: Policy) -> Windows:
    """Return empty windows with a policy's limits and its shares of tenants."""
    limits = policy.windows
    return Windows(
        members_max=limits.members_max,
        margin_s=limits.margin_s,
        room_wait_s=limits.room_wait_s,
        share_of=lambda tenant: policy.limits_of(tenant).share,
    )


def _patient_until(member: Member) -> float:
    return member.held_at + member.profile.longest_wait_s


def _tokens(member: Member) -> int:
    return member.profile.tokens


def _reason(
    first: Member, now: float, last_start: float, window_end: float, *, is_full: bool
) -> ReleaseReason | None:
    if not first.profile.batchable:
        # It waited only for a pool, and here is one.
        return "pool_available"
    if is_full:
        return "full"
    if last_start <= now:
        return "slack"
    if window_end <= now:
        return "window"
    return None


def _is_vain(target: Target, left_s: float, window_s: float) -> bool:
    """Return True if waiting gains nothing: the pool is idle, and no more arrivals are expected.

    Towards a window's end no group expects arrivals, so its end may as well be awaited.
    """
    rate_per_s = target.idle_arrivals_per_s
    return rate_per_s is not None and rate_per_s * left_s < 1.0 and left_s >= window_s / 2
