"""The release: choose the target of a group of held requests when it goes (late binding)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

from policies.batching.fair_queue import Member
from policies.batching.windows import Target
from policies.config.options import Option, Options
from policies.config.order import ranks_of
from policies.config.plugins import priced_by, refused_by
from policies.config.policy import Policy
from policies.fleet_state.candidate_load import OptionState, PoolLoad, standing_in
from policies.quality.sampling import minds_drift
from policies.scoring.candidates import Offers, SecondTries, choose
from policies.scoring.constraints import certain_tokens, refusal
from policies.scoring.estimate import (
    Estimate,
    batch_limit,
    candidate,
    chance,
    estimate,
    room,
    scarcity,
    spread_of,
)
from policies.scoring.hours import (
    chance_kept,
    expected_footprint,
    is_within_gco2,
    later_start,
    price_factor,
    shifted,
)
from topics import LatencyError, Profile
from topics.records.placement import Path

# Fewer than these, or than a quarter of a replica's places, are no batch: better to wait for more
# room.
ROOM_MIN = 8


def find_target(
    members: Sequence[Member],
    loads: Mapping[str, PoolLoad],
    arrivals_per_s: float,
    options: Options,
    policy: Policy,
    now: float,
) -> Target | None:
    """Return the target of these members now, or None if no live pool can take them.

    Every constraint treats them alike (policies.batching.groups). So the longest member decides
    what fits, the longest prompt with the longest reply the duration, and the earliest deadline
    the finish; each must be within the cost that they allow. The cheapest option that finishes in
    time wins, else the best chance. Requests that may share a batch go one by one if no pool with
    a batch lane can take them; then only the first counts.

    Args:
        members: members of one group, in release order.
        loads: loads by pool.
        arrivals_per_s: arrival rate of their group.
        options: options of the fleet.
        policy: the policy in force.
        now: epoch seconds.
    """
    first = members[0].profile
    paths: tuple[Path, ...] = ("batch", "direct") if first.batchable else ("direct",)
    for path in paths:
        asked = members if path == "batch" else members[:1]
        targets = _targets(_Asked(asked, loads, arrivals_per_s, policy, now), path, options)
        if targets:
            left_s = min(m.profile.deadline for m in asked) - now
            return _best(targets, first, left_s, loads, policy)
    return None


@dataclass(frozen=True, slots=True)
class _Asked:
    """A search for a target: its members, and what is the same for each option."""

    members: Sequence[Member]
    loads: Mapping[str, PoolLoad]
    arrivals_per_s: float
    policy: Policy
    now: float


def _targets(asked: _Asked, path: Path, options: Options) -> list[Target]:
    members, policy = asked.members, asked.policy
    longest = max((m.profile for m in members), key=lambda p: p.tokens)
    prompts = max(m.profile.prompts for m in members)
    slowest = replace(
        longest,
        input_tokens=prompts * max(m.profile.prompt_tokens for m in members),
        prompts=prompts,
        replies=max(m.profile.replies for m in members),
        output_tokens=max(m.profile.output_tokens for m in members),
        output_tokens_high=max(m.profile.output_tokens_high or 0 for m in members) or None,
        price_factor=1.0,
    )
    # The estimate of a reply may make another one the longest.
    fullest = max((m.profile for m in members), key=certain_tokens)
    rules, windows, floor = policy.rules, policy.windows, policy.floor_of(fullest)
    targets = []
    for option in options.by_model.get(longest.model, ()):
        if path not in option.lanes or refusal(fullest, option, floor) is not None:
            continue
        # The same for all of them, else they were of different groups.
        if refused_by(rules, longest, option) is not None or policy.is_never(option):
            continue
        standing = standing_in(asked.loads, option)
        if standing.obstacle or (standing.has_drifted and minds_drift(longest, policy)):
            continue
        # What goes direct goes alone; its companions of the moment are not a batch.
        members_max = windows.members_max if path == "batch" else 1
        limit = batch_limit(longest, option, members_max)
        is_crowded = False
        # What may not wait for room takes what the device has.
        if path == "batch" and windows.room_wait_s > 0:
            free = room(standing, longest.answers)
            is_crowded = free < min(limit, ROOM_MIN, max(1, option.max_batch // 4))
            limit = limit if is_crowded else min(limit, free)
            is_crowded = is_crowded or _is_behind(asked.loads[option.pool], windows.backlog_s_max)
        ask = _Ask(standing, policy, min(limit, len(members)), asked.now, asked.now)
        if ask.is_within_limits(members):
            target = _target(members, ask, slowest, path, limit)
            is_awaited = path == "batch" and standing.is_idle
            rate_per_s = asked.arrivals_per_s if is_awaited else None
            targets.append(replace(target, is_crowded=is_crowded, idle_arrivals_per_s=rate_per_s))
        if option.tariff is not None and path == "batch":
            start = _later_start(members, ask, slowest)
            then = ask if start is None else replace(ask, start=start)
            if start is not None and then.is_within_limits(members):
                target = _target(members, then, slowest, path, limit)
                targets.append(replace(target, wait_until=start))
    return targets


def _is_behind(load: PoolLoad, backlog_s_max: float | None) -> bool:
    """Return True if more prompts wait than should on replicas that urgent requests fill."""
    return backlog_s_max is not None and load.is_filled and load.backlog_s > backlog_s_max


def _later_start(members: Sequence[Member], ask: "_Ask", slowest: Profile) -> float | None:
    """Return the cheapest hour to come within the patience of all members, see `later_start`."""
    policy = ask.policy
    waiting = [(m.profile, m.held_at + policy.patience_s(m.profile)) for m in members]
    return later_start(ask.option, ask.estimate(slowest), 0.0, slowest, waiting, policy, ask.start)


def _best(
    targets: Sequence[Target],
    first: Profile,
    left_s: float,
    loads: Mapping[str, PoolLoad],
    policy: Policy,
) -> Target:
    offers = _offers(targets, loads, policy)
    second_tries = SecondTries(offers, left_s, policy.retry_cost_weight)
    if policy.rules:
        _score(offers, second_tries, first, policy)
    ranks = ranks_of(policy.order, [target.option for target in targets])
    chosen = choose(offers, first.target_chance, None if policy.rules else second_tries, ranks)
    best = targets[chosen]
    if best.wait_until:
        sooner = [target for target in targets if not target.wait_until]
        instead = _best(sooner, first, left_s, loads, policy) if sooner else None
        best = replace(best, instead=instead)
    ranked = [best, *(t for at, t in enumerate(targets) if at != chosen)]
    return replace(best, candidates=tuple(c for target in ranked for c in target.candidates))


def _offers(targets: Sequence[Target], loads: Mapping[str, PoolLoad], policy: Policy) -> Offers:
    standings = [standing_in(loads, target.option) for target in targets]
    return Offers(
        [(s, target.path, 1, 0.0, 0) for s, target in zip(standings, targets, strict=True)],
        [target.estimate for target in targets],
        [target.chance for target in targets],
        [
            target.estimate.cost_usd * scarcity(standing, policy)
            for standing, target in zip(standings, targets, strict=True)
        ],
    )


def _score(offers: Offers, second_tries: SecondTries, first: Profile, policy: Policy) -> None:
    """Give each offer the price of the extensions."""
    for at, (visit, figures) in enumerate(zip(offers.visits, offers.figures, strict=True)):
        price_usd = offers.prices_usd[at] + second_tries.usd(visit, figures)
        found = priced_by(policy.rules, first, visit[0].option, price_usd)
        # What a scorer has no price for is the last resort of those who wait.
        offers.prices_usd[at] = inf if isinstance(found, str) else found


@dataclass(frozen=True, slots=True)
class _Ask:
    standing: OptionState
    policy: Policy
    members: int
    now: float
    start: float
    """When the members would go: now, or at a cheaper hour."""

    @property
    def option(self) -> Option:
        return self.standing.option

    @property
    def errors(self) -> tuple[LatencyError | None, LatencyError | None]:
        return self.standing.learned[:2]

    def estimate(self, profile: Profile) -> Estimate:
        """Return the estimate by the prices of its hour; times count from now."""
        found = estimate(
            profile,
            self.standing,
            transport_s=self.policy.estimates.transport_s,
            members=self.members,
        )
        if self.option.tariff is None:
            return found
        if self.start > self.now:
            found = Estimate(*shifted(found, self.start - self.now))
        begin, end = self.now + found.ttft_s, self.now + found.finish_s
        factor = price_factor(self.option, begin, end, self.now)
        return found._replace(cost_usd=found.cost_usd * factor)

    def is_within_limits(self, members: Sequence[Member]) -> bool:
        """Return whether each member keeps its limits of cost and emissions, alike for all."""
        limit_usd = members[0].profile.max_cost_usd
        limit_g = members[0].profile.max_gco2
        if limit_usd is None and limit_g is None:
            return True
        for member in members:
            found = self.estimate(member.profile)
            if limit_usd is not None and found.cost_usd > limit_usd:
                return False
            if limit_g is not None and not is_within_gco2(
                self.option, found, member.profile, limit_g, self.now
            ):
                return False
        return True


def _target(
    members: Sequence[Member], ask: _Ask, slowest: Profile, path: Path, limit: int
) -> Target:
    option, found = ask.option, ask.estimate(slowest)
    urgent = min((m.profile for m in members), key=lambda p: p.deadline)
    elapsed_s, wait_s = ask.now - urgent.created_at, ask.start - ask.now
    # Errors are of direct requests: what a batch is promised is what its slowest member needs.
    errors = ask.errors if path == "direct" else (None, None)
    # The wait for an hour is certain: only what comes after it may take longer than expected.
    after = found if not wait_s else Estimate(*shifted(found, -wait_s))
    spread = spread_of(ask.standing, ask.policy)
    likely = chance(urgent, after, elapsed_s + wait_s, spread, *errors)
    if option.interruptions_per_s:
        likely *= chance_kept(option, after.finish_s)
    offer = candidate(option, path, found, likely, elapsed_s)
    return Target(
        *(option, path, limit, option.kv_capacity_tokens, found, likely, (offer,), len(members)),
        footprint=expected_footprint(option, found, slowest, ask.now),
    )
