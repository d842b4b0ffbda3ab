"""The shadow: what a second policy would do, in the same situation and with no effect."""

from collections.abc import Sequence

from policies.batching.fair_queue import Member
from policies.config.options import Options
from policies.config.policy import Policy
from policies.fleet_state.view import FleetView
from policies.placement.placer import Placer
from policies.scoring.situation import Situation, situation
from topics import Profile, Shadow


def beside(options: Options, policy: Policy, view: FleetView) -> Situation:
    """Return the situation of a second policy, which sees the load that the live one makes.

    Its arrivals are its own, since its groups may be others; it begins with its own prior.
    """
    return Situation(options, policy, view, situation(options, policy).arrivals)


def decide_beside(profile: Profile, here: Situation, now: float) -> Shadow:
    """Return what the second policy would do with a request, and count the arrival for it.

    Args:
        profile: of the request, tagged under the second policy.
        here: its situation.
        now: epoch seconds.
    """
    decision = Placer(here).decide(profile, now).decision
    promised, version = decision.promised, here.policy.version
    if promised is None:
        return Shadow(version, decision.action, decision.reason)
    chosen = decision.candidates[0]
    return Shadow(
        version,
        decision.action,
        decision.reason,
        chosen.pool,
        chosen.model_variant,
        promised.cost_usd,
        promised.chance,
    )


def release_beside(members: Sequence[Member], here: Situation, now: float) -> Shadow:
    """Return where the second policy would send members that the live one releases now.

    They go together, at the moment and with the SLOs that the live policy gave them: what differs
    is where, at what cost. Without a place in a live pool the second policy would let them wait.

    Args:
        members: that go, in the order they go.
        here: its situation.
        now: epoch seconds.
    """
    version, target = here.policy.version, Placer(here).target(members, now)
    if target is None:
        return Shadow(version, "hold", "pool_unavailable")
    promised = target.promise(members[0].profile, now)
    return Shadow(
        version,
        "place",
        "released",
        target.option.pool,
        target.option.variant,
        promised.cost_usd,
        promised.chance,
    )
