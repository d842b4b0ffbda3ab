"""Admission: limit a tenant's use of the system by its rate and by its share."""

import math
from dataclasses import replace

from policies.config.options import Option
from policies.config.policy import Policy
from policies.fleet_state.candidate_load import standing_of
from policies.placement.decide import Decision
from policies.placement.inputs import Inputs
from policies.scoring.estimate import chance, estimate, spread_of
from topics import Profile
from topics.bounded_dict import BoundedDict

# Seconds over which what was spent on a tenant loses its weight.
MEMORY_S = 10.0
# How often it is counted who takes part, in seconds.
COUNT_EVERY_S = 1.0
# A tenant with less than this part of all that was spent lately takes no part.
LEAST_PART = 0.001
# A rate is counted over so long, so that a burst of as much is no excess.
WINDOW_S = 10.0
# Tenants are named by clients: of more than these the ones not seen for longest are forgotten.
TENANTS_MAX = 10_000


class Rates:
    """Requests of each tenant, counted in windows of their arrival time.

    A token bucket would not work: a router reads its partitions one after the other, so after an
    outage the times of a backlog go back and forth.

    A tenant's rate is for all partitions of the ingest topic; a router that owns part of them
    grants that part of the rate.
    """

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._counts: BoundedDict[tuple[str, int], int] = BoundedDict(TENANTS_MAX)

    def wait_s(self, tenant: str, at: float, part: float) -> float:
        """Admit one request of a tenant and return 0, or return the seconds until one may come.

        Args:
            tenant: the request's tenant.
            at: its arrival, epoch seconds.
            part: this router's part of the ingest partitions; above 0.
        """
        rate = self.policy.limits_of(tenant).rate_per_s
        if rate is None:
            return 0.0
        window_s = max(WINDOW_S, 1.0 / (rate * part))
        number = int(at // window_s)
        count = self._counts.get((tenant, number), 0)
        # Half a request more, so that rounding takes none away.
        is_full = count + 0.5 > rate * part * window_s
        self._counts.put((tenant, number), count if is_full else count + 1)
        return (number + 1) * window_s - at if is_full else 0.0


class Shares:
    """Recent cost of each tenant, in US dollars divided by its share."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self._spent: BoundedDict[str, tuple[float, float]] = BoundedDict(TENANTS_MAX)
        self._all = (0.0, 0.0)
        self._taking_part = 0
        self._counted_at = -math.inf

    def spend(self, tenant: str, cost_usd: float, now: float) -> None:
        """Count the cost of a placement of a tenant's request."""
        weighted_usd = cost_usd / self.policy.limits_of(tenant).share
        mine = self._spent.get(tenant)
        if mine is None:
            self._taking_part += 1
            mine = (0.0, now)
        self._spent.put(tenant, (_left(mine, now) + weighted_usd, now))
        self._all = (_left(self._all, now) + weighted_usd, now)

    def is_exceeded(self, tenant: str, now: float) -> bool:
        """Return True if a tenant's recent cost exceeds the average of the others.

        A tenant that is alone may take all.
        """
        mine_usd = _left(self._spent.get(tenant, (0.0, now)), now)
        all_usd = _left(self._all, now)
        others = self._count(now, all_usd) - 1
        return others > 0 and mine_usd * others > all_usd - mine_usd

    def _count(self, now: float, all_usd: float) -> int:
        if not 0.0 <= now - self._counted_at < COUNT_EVERY_S:
            least_usd = LEAST_PART * all_usd
            self._taking_part = sum(_left(spent, now) > least_usd for spent in self._spent.values())
            self._counted_at = now
        return self._taking_part


def share_out(
    decision: Decision,
    profile: Profile,
    inputs: Inputs,
    policy: Policy,
    shares: Shares,
    now: float,
) -> Decision:
    """Return the decision, or a rejection if capacity is not enough for all.

    A request is rejected if no pool is likely to serve it in time, though an empty one would be,
    and its tenant has had more than its share. Tenants that have had less are still placed; so a
    tenant that sends a hundred times as much as another crowds out only itself. A request that was
    accepted once is not rejected at a later attempt.
    """
    promised, option = decision.promised, decision.option
    if decision.action != "place" or promised is None or option is None or profile.attempt > 1:
        return decision
    in_time = (promised.chance or 0.0) >= profile.target_chance
    if in_time or not shares.is_exceeded(profile.tenant, now):
        return decision
    if not _is_crowded_out(profile, option, inputs, policy, now):
        return decision
    return Decision(
        "reject",
        decision.candidates,
        "over_share",
        message=f"no pool is likely to serve this in time, and tenant {profile.tenant!r} has had"
        " more than its share lately; try again later, or ask for a larger share",
    )


def _is_crowded_out(
    profile: Profile, option: Option, inputs: Inputs, policy: Policy, now: float
) -> bool:
    """Return True if only other work keeps a request from meeting its SLO at the best place."""
    load = inputs.loads[option.pool]
    empty = replace(load, running=0, queued=0, backlog_s=0.0, round_s=0.0, running_by_variant={})
    transport_s = policy.estimates.transport_s
    standing = standing_of(option, empty)
    found = estimate(profile, standing, transport_s=transport_s)
    elapsed_s = now - profile.created_at
    likely = chance(profile, found, elapsed_s, spread_of(standing, policy))
    return likely >= profile.target_chance


def _left(spent: tuple[float, float], now: float) -> float:
    amount, at = spent
    if now <= at:
        return amount
    return amount * math.exp((at - now) / MEMORY_S)
