"""The placer: decides in a situation, and counts its decisions there.

Router, batcher and backtest use it, so that the backtest tests the running code.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import inf, nextafter
from typing import NamedTuple

from policies.batching.fair_queue import Member
from policies.batching.groups import group_in
from policies.batching.release import find_target
from policies.batching.windows import Release, Target
from policies.placement.admission import Shares, share_out
from policies.placement.decide import Decision, codes_by_pool, decide
from policies.placement.inputs import Inputs, inputs_of
from policies.scoring.situation import Situation
from topics import Profile


class Placed(NamedTuple):
    """A decision and its inputs besides policy and fleet."""

    decision: Decision
    inputs: Inputs


class Placer:
    """Decides on requests and releases in one situation, which may be replaced by another."""

    def __init__(self, situation: Situation, shares: Shares | None = None) -> None:
        self.situation = situation
        self._shares = shares

    def take(self, situation: Situation) -> None:
        """Continue in another situation."""
        self.situation = situation
        if self._shares is not None:
            self._shares.policy = situation.policy

    def decide(self, profile: Profile, now: float) -> Placed:
        """Return the decision on a request, and count its arrival.

        The loads of the inputs change when a placement is counted: record them before.
        """
        here = self.situation
        here.view.work_off(now)
        group = group_in(profile, here.options, here.policy)
        inputs = inputs_of(profile, here, now, group)
        decision = decide(profile, inputs, here.options, here.policy, now)
        # A second run takes nothing of its tenant's share.
        if self._shares is not None and not profile.is_background:
            decision = share_out(decision, profile, inputs, here.policy, self._shares, now)
        # What goes at once is company that others might have waited for.
        if decision.group is not None or (profile.batchable and decision.option is not None):
            here.arrivals.observe(group, now)
        return Placed(decision, inputs)

    def count_placed(self, profile: Profile, decision: Decision, now: float) -> None:
        """Add a placed request to the load of its pool and to its tenant's share."""
        option, estimate = decision.option, decision.estimate
        if option is None or estimate is None:
            raise ValueError("a decision that places nothing")
        self.situation.view.add_sent(
            option, estimate.device_s, profile.answers, profile.tokens, now
        )
        self.situation.view.sessions.remember(profile, option, now)
        if self._shares is not None and not profile.is_background:
            self._shares.spend(profile.tenant, estimate.cost_usd, now)

    def target(self, members: Sequence[Member], now: float) -> Target | None:
        """Return the target of a group's members now; None if no live pool takes them."""
        here = self.situation
        here.view.work_off(now)
        # A window is there because its first member came: what comes besides is company.
        first_at = min(member.held_at for member in members)
        rate_per_s = here.arrivals.rate_besides(members[0].group, first_at, now)
        return find_target(members, here.view.loads(), rate_per_s, here.options, here.policy, now)

    def refusals(self, profile: Profile, now: float) -> dict[str, str]:
        """Return the reason code of each pool that doesn't take a request now; count nothing.

        Of one whose deadline has passed, as if it had a moment left. No company is expected: it has
        waited for that.
        """
        here, profile = self.situation, replace(profile, window_s=0.0)
        if now >= profile.deadline:
            profile = replace(profile, deadline=nextafter(now, inf))
        found = decide(profile, inputs_of(profile, here, now), here.options, here.policy, now)
        by_pool = codes_by_pool(here.options, ((c.pool, c.refused or "") for c in found.candidates))
        taking = {c.pool for c in found.candidates if c.refused is None}
        return {pool: code for pool, code in by_pool.items() if pool not in taking}

    def count_released(self, release: Release, now: float) -> None:
        """Add a release to the load of its pool."""
        size, target = len(release.members), release.target
        answers = sum(member.profile.answers for member in release.members)
        device_s = target.estimate.device_s * size
        view = self.situation.view
        view.add_sent(target.option, device_s, answers, release.tokens, now, requests=size)
