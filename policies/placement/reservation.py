"""Reservations: what a request that is accepted may use, as far as that is known."""

from dataclasses import replace

from policies.config.options import Option, Options
from policies.config.policy import Policy
from policies.config.prices import nano_of
from policies.fleet_state.candidate_load import standing_in
from policies.placement.books import BudgetExceeded
from policies.placement.decide import Decision
from policies.placement.inputs import Inputs
from policies.scoring.constraints import has_lane, refusal
from policies.scoring.estimate import estimate
from policies.scoring.hours import device_wh
from topics import Profile
from topics.iso_time import iso_time
from topics.records.money import Amounts


def amounts_of(
    profile: Profile,
    decision: Decision,
    inputs: Inputs,
    options: Options,
    policy: Policy,
    output_tokens_max: int | None,
) -> Amounts:
    """Return what to keep for a request: one, its tokens, and its price and energy where it goes.

    The reply counts by the client's limit, else by a length that similar ones seldom exceed. What
    waits is priced as if it were served alone, and where no pool is alive yet as at the dearest
    that may serve it. Where prices move, it is the dearest until the deadline. Energy counts for
    requests that have a budget of it.

    Args:
        profile: of the request.
        decision: to place or hold it.
        inputs: of the decision.
        options: of the fleet.
        policy: in force.
        output_tokens_max: limit on the reply in the request's body.
    """
    reply = output_tokens_max or max(profile.output_tokens, profile.output_tokens_high or 0)
    if not profile.output_tokens:
        reply = 0
    longest = replace(profile, output_tokens=reply, output_tokens_high=None)
    targets = _targets(profile, decision, options, policy)
    usd = max(
        (_usd(longest, option, inputs, policy) * _dearest(option, profile) for option in targets),
        default=0.0,
    )
    wh = 0.0
    if profile.counts_energy:
        wh = max((_wh(longest, option, inputs, policy) for option in targets), default=0.0)
    return Amounts(1, longest.tokens, nano_of(usd), nano_of(wh))


def _usd(profile: Profile, option: Option, inputs: Inputs, policy: Policy) -> float:
    standing = standing_in(inputs.loads, option)
    return estimate(profile, standing, policy.estimates.transport_s).cost_usd


def _wh(profile: Profile, option: Option, inputs: Inputs, policy: Policy) -> float:
    """Return the watt hours of the device time that a request adds to an option."""
    # At a dollar a second the cost is the device time.
    by_time = replace(option, usd_per_s=1.0, rates=None)
    device_s = _usd(replace(profile, price_factor=1.0), by_time, inputs, policy)
    return device_wh(option, device_s) or 0.0


def _dearest(option: Option, profile: Profile) -> float:
    """Return the highest price of an option until the deadline, in times the declared one."""
    if option.tariff is None:
        return 1.0
    return max(option.tariff.factors(profile.routed_at, profile.deadline))


def beyond_budget(decision: Decision, beyond: BudgetExceeded) -> Decision:
    """Return the rejection of a request that a budget has no room for."""
    whose = f"the budget in {beyond.unit} of {beyond.rule}"
    if beyond.rule == "default_tenant" or beyond.rule.startswith("classes."):
        whose += f" for {beyond.owner!r}"
    if beyond.retry_at is None:
        message = f"{whose} is less for {beyond.window_s:g} s than this request may use"
    else:
        message = (
            f"{whose} has no room for this request before its window of {beyond.window_s:g} s"
            f" ends; try again at {iso_time(beyond.retry_at)}"
        )
    return Decision(
        "reject", decision.candidates, "budget", message=message, retry_at=beyond.retry_at
    )


def _targets(
    profile: Profile, decision: Decision, options: Options, policy: Policy
) -> list[Option]:
    if decision.option is not None:
        return [decision.option]
    if decision.promised is not None:
        best = decision.candidates[0]
        return [options.of(best.pool, best.model_variant)]
    floor = policy.floor_of(profile)
    return [
        option
        for option in options.by_model.get(profile.model, ())
        if refusal(profile, option, floor) is None
        and has_lane(profile, option)
        and not policy.is_never(option)
    ]
