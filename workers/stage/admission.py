"""Admission of a request where it was placed: fleet or policy may have changed meanwhile."""

from collections.abc import Mapping

from policies import Option, Policy, bind
from policies.scoring.constraints import EXPLANATIONS, refusal
from workers.backends.base import CallError
from workers.stage.routed_request import RoutedRequest

# Refusals that a bound of the policy may cause.
_BOUND_CODES = frozenset({"region", "precision", "pool_not_allowed", "label"})


def outside(
    routed: RoutedRequest, served: Mapping[str, Option], policy: Policy | None
) -> CallError | None:
    """Return why a request may not run on its variant by fleet and policy in force; else None."""
    placement = routed.placement
    if (option := served.get(routed.variant)) is None:
        message = f"{placement.pool} does not serve {routed.variant!r} any more"
        return CallError("variant_not_served", message, retry="elsewhere")
    placed = (placement.device, placement.region, placement.precision)
    here = (option.device, option.region, option.precision)
    if placed != here:
        message = f"placed at {', '.join(placed)}, and {option.pool} is {', '.join(here)}"
        return CallError("not_as_placed", message, retry="elsewhere")
    return None if policy is None else _outside_policy(routed, option, policy)


def _outside_policy(routed: RoutedRequest, option: Option, policy: Policy) -> CallError | None:
    is_never = policy.is_never(option)
    if is_never or option.quality < policy.floor_of(routed.profile):
        code = "never" if is_never else "quality"
        return CallError(code, f"{option.pool} {EXPLANATIONS[code]}", retry="elsewhere")
    if not policy.binds:
        return None
    bound = bind(routed.profile, policy)
    refused = refusal(bound, option)
    if refused not in _BOUND_CODES:
        return None
    rules = ", ".join(bound.bound_by)
    message = f"{rules} of the policy in force lets it not run in {option.pool} ({refused})"
    return CallError("outside_bound", message, retry="elsewhere")
