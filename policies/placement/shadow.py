"""The shadow: decisions of a second policy in the same situation, without effect."""

from collections.abc import Sequence

from policies.batching.fair_queue import Member
from policies.config.options import Options
from policies.config.policy import Policy
from policies.fleet_state.view import FleetView
from policies.placement.placer import Placer
from policies.scoring.bindings import bind
from policies.scoring.situation import Situation, situation
from topics import Profile, Shadow


def beside(options: Options, policy: Policy, view: FleetView) -> Situation:
    """Return the situation of a second policy, which sees the load of the live one.

    It counts its own arrivals, since its groups may differ; it begins with its own prior.
    """
    return Situation(options, policy, view, situation(options, policy).arrivals)


def decide_beside(profile: Profile, here: Situation, now: float) -> Shadow:
    """Return the second policy's decision on a request, and count the arrival for it.

    Args:
        profile: profile of the request, tagged under the second policy.
        here: the second policy's situation.
        now: epoch seconds.
    """
    decision = Placer(here).decide(bind(profile, here.policy), now).decision
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
    """Return the second policy's target for members that the live one releases now.

    They go together, at the time and with the SLOs that the live policy gave them; only target and
    cost differ. Without a place in a live pool the second policy would let them wait.

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
