"""The decision: (request, inputs, now) to placement, hold or refusal, with its reasons."""

from dataclasses import replace
from typing import Literal

from policies.batching.groups import group_in
from policies.config.options import Option, Options
from policies.config.plugins import Extension, priced_by, refused_by
from policies.config.policy import Policy
from policies.fleet_state.candidate_load import Standing, standing_in
from policies.fleet_state.sessions import Credit
from policies.placement.inputs import Inputs
from policies.scoring.candidates import Offer, SecondTries, choose
from policies.scoring.constraints import PASSING, explain, has_lane, refusal
from policies.scoring.estimate import Estimate, batch_limit, candidate, chance, estimate, scarcity
from topics import Candidate, Envelope, Profile
from topics.records.frozen import dataclass
from topics.records.placement import CandidatePath

Action = Literal["place", "hold", "reject", "expire"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The action for a request, and every candidate considered.

    Attributes:
        action: the action.
        candidates: all of them, the chosen one first.
        option: the hardware chosen, for ``place``.
        promised: the envelope of the chosen candidate, for ``place`` and ``hold``.
        estimate: the same from the moment of the decision, for ``place``.
        group: the batch group, for ``hold``.
        reason: stable code of the reason for the action.
        message: one sentence for people, for ``reject`` and ``expire``.
        refusals: per pool, the reason code.
    """

    action: Action
    candidates: tuple[Candidate, ...]
    reason: str
    option: Option | None = None
    promised: Envelope | None = None
    estimate: Estimate | None = None
    group: str | None = None
    message: str | None = None
    refusals: dict[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Question:
    """Values common to every candidate of a request. ``rate_per_s`` is that of its group."""

    profile: Profile
    policy: Policy
    elapsed_s: float
    rate_per_s: float
    transport_s: float
    spread: float
    credit: Credit | None
    scarce_from: float


def decide(
    profile: Profile, inputs: Inputs, options: Options, policy: Policy, now: float
) -> Decision:
    """Return the decision on a request; the same arguments give the same one on any machine.

    Hard constraints come first. Each option that passes is a candidate to go to now and, for a
    request that may wait, a candidate to wait for: a batch of the size that the group's arrivals
    would fill within its window. The lowest price wins among those whose chance of meeting the
    SLO reaches the class's target; if none does, the best chance. The price includes the scarcity
    of places and the expected cost of a failure (`policies.scoring.candidates`).

    Args:
        profile: profile of the request.
        inputs: known load and arrivals, as its evidence has them.
        options: options of the fleet.
        policy: the policy in force.
        now: epoch seconds.
    """
    if now >= profile.deadline:
        late_s = now - profile.deadline
        return Decision(
            "expire",
            (),
            "deadline_passed",
            message=f"the deadline passed {late_s:.1f} s before the request was routed",
        )
    assumed = policy.estimates
    ask = _Question(
        profile,
        policy,
        now - profile.created_at,
        inputs.arrivals_per_s,
        assumed.transport_s,
        assumed.spread,
        inputs.credit,
        policy.scarcity.from_share,
    )
    rules = policy.rules
    offers: list[Offer] = []
    refused: list[Candidate] = []
    for option in options.by_model.get(profile.model, ()):
        standing = standing_in(inputs.loads, option)
        code = _refusal(profile, standing, rules)
        if code is None:
            lanes, limit_usd = option.lanes, profile.max_cost_usd
            found = [_now(ask, standing)] if "direct" in lanes else []
            if profile.batchable and "batch" in lanes:
                found.append(_hold(ask, standing))
            if limit_usd is not None:
                found = [o for o in found if o.estimate.cost_usd <= limit_usd]
            code = None if found else "max_cost"
            offers += found
        if code is not None:
            refused.append(_refused(option, code))
    second_tries = SecondTries(offers, profile.deadline - now, policy.retry_cost_weight)
    if rules:
        # After what must hold, which is held against the cost as it is.
        offers, unpriced = _scored(offers, second_tries, profile, rules)
        refused += unpriced
    if not offers:
        return _unplaced(profile, options, policy, refused)
    best = choose(offers, profile.target_chance, None if rules else second_tries)
    candidates = (best.candidate, *(o.candidate for o in offers if o is not best), *refused)
    reason = _why(best, offers, second_tries, profile, policy)
    promised = _promised(best)
    if best.candidate.path == "hold":
        group = group_in(profile, options, policy)
        return Decision("hold", candidates, reason, promised=promised, group=group)
    option = best.standing.option
    return Decision("place", candidates, reason, option, promised, estimate=best.estimate)


def _promised(best: Offer) -> Envelope:
    return Envelope(
        cost_usd=best.estimate.cost_usd,
        ttft_s=best.candidate.ttft_s,
        finish_s=best.candidate.finish_s or 0.0,
        tpot_s=best.estimate.tpot_s,
        chance=best.candidate.chance,
    )


def _refusal(profile: Profile, standing: Standing, rules: tuple[Extension, ...]) -> str | None:
    option = standing.option
    code: str | None = refusal(profile, option)
    if code is None and not has_lane(profile, option):
        code = "lane"
    if code is None and rules:
        code = refused_by(rules, profile, option)
    return standing.obstacle if code is None else code


def _scored(
    offers: list[Offer],
    second_tries: SecondTries,
    profile: Profile,
    rules: tuple[Extension, ...],
) -> tuple[list[Offer], list[Candidate]]:
    """Return the offers at the prices of the extensions, and those without a price."""
    scored, refused = [], {}
    for offer in offers:
        option = offer.standing.option
        price_usd = offer.price_usd + second_tries.usd(offer)
        found = priced_by(rules, profile, option, price_usd)
        if isinstance(found, str):
            refused[option.pool, option.variant] = _refused(option, found)
        else:
            scored.append(replace(offer, price_usd=found))
    kept = [o for o in scored if (o.candidate.pool, o.candidate.model_variant) not in refused]
    return kept, list(refused.values())


def _now(ask: _Question, standing: Standing) -> Offer:
    credit, option, cached_tokens = ask.credit, standing.option, 0
    if credit and credit.pool == option.pool and credit.variant == option.variant:
        cached_tokens = int(credit.tokens * standing.learned.reuse)
    found = estimate(ask.profile, standing, ask.transport_s, cached_tokens=cached_tokens)
    return _price(ask, standing, "direct", found)


def _hold(ask: _Question, standing: Standing) -> Offer:
    profile, rate_per_s = ask.profile, ask.rate_per_s
    limit = batch_limit(profile, standing.option, ask.policy.windows.members_max)
    others = min(limit - 1, int(rate_per_s * profile.window_s))
    # Without company it waits for the whole window.
    wait_s = min(profile.window_s, others / rate_per_s) if others else profile.window_s
    found = estimate(profile, standing, ask.transport_s, 1 + others, wait_s)
    return _price(ask, standing, "hold", found)


def _price(ask: _Question, standing: Standing, path: CandidatePath, found: Estimate) -> Offer:
    elapsed_s, (ttft_error, tpot_error, _) = ask.elapsed_s, standing.learned
    spread = max(ask.spread, standing.option.error)
    likely = chance(ask.profile, found, elapsed_s, spread, ttft_error, tpot_error)
    shown = candidate(standing.option, path, found, likely, elapsed_s)
    price_usd = found.cost_usd
    if standing.fullness > ask.scarce_from:
        price_usd *= scarcity(standing, ask.policy)
    return Offer(shown, standing, found, price_usd)


def _refused(option: Option, code: str) -> Candidate:
    return Candidate(
        pool=option.pool,
        model_variant=option.variant,
        precision=option.precision,
        region=option.region,
        path="direct",
        refused=code,
    )


def _why(
    best: Offer,
    offers: list[Offer],
    second_tries: SecondTries,
    profile: Profile,
    policy: Policy,
) -> str:
    if len(offers) == 1:
        return "only_candidate"
    target_chance = profile.target_chance
    if (best.candidate.chance or 0.0) < target_chance:
        return "best_chance"
    cost_usd = best.estimate.cost_usd
    cheaper = [
        o
        for o in offers
        if o.estimate.cost_usd < cost_usd and (o.candidate.chance or 0.0) >= target_chance
    ]
    if cheaper:
        seen = (best, *cheaper)
        expected_usd = [second_tries.expected_usd(o) for o in seen]
        usd = [
            o.estimate.cost_usd * scarcity(o.standing, policy) + second_tries.usd(o) for o in seen
        ]
        if usd[0] > min(usd):
            return "preferred_by_extension"
        is_by_failures = expected_usd[0] == min(expected_usd)
        return "cheapest_with_failures" if is_by_failures else "leaves_scarce_places"
    if best.candidate.path == "hold":
        return "waiting_is_cheapest"
    return "cheapest_in_time"


def _unplaced(
    profile: Profile, options: Options, policy: Policy, refused: list[Candidate]
) -> Decision:
    """Return a hold if time may help: a pool without a worker, or a failing one, is no refusal."""
    candidates = tuple(refused)
    passing = {candidate.refused for candidate in refused} & PASSING
    if passing:
        reason = "pool_unavailable" if "pool_unavailable" in passing else "circuit_open"
        return Decision("hold", candidates, reason, group=group_in(profile, options, policy))
    refusals = per_pool_refusals(options, candidates)
    if profile.model not in options.models:
        known = ", ".join(sorted(options.models))
        message = f"model {profile.model!r} is not declared in the fleet: {known}"
        return Decision("reject", candidates, "unknown_model", message=message, refusals=refusals)
    message = explain(list(refusals.items()))
    return Decision("reject", candidates, "no_pool", message=message, refusals=refusals)


def per_pool_refusals(options: Options, candidates: tuple[Candidate, ...]) -> dict[str, str]:
    """Return a reason code for each pool of the fleet."""
    refusals = dict.fromkeys(options.by_pool, "model_not_served")
    refusals.update({c.pool: c.refused for c in candidates if c.refused is not None})
    return refusals
