"""The decision: (request, inputs, now) to placement, hold or refusal, with its reasons."""

from collections.abc import Iterable, Sequence
from typing import Literal

from policies.batching.groups import group_in
from policies.config.options import ModelOptions, Option, Options
from policies.config.order import rank, ranks_of
from policies.config.plugins import Extension, priced_by, refused_by
from policies.config.policy import Policy
from policies.fleet_state.candidate_load import OptionState
from policies.fleet_state.sessions import Credit
from policies.placement.inputs import Inputs
from policies.quality.sampling import minds_drift
from policies.scoring.candidates import (
    COST,
    NO_OFFERS,
    Candidates,
    Offers,
    Refused,
    SecondTries,
    choose,
    place_of,
)
from policies.scoring.constraints import explain, furthest, model_refusals
from policies.scoring.estimate import (
    Estimate,
    Visit,
    batch_limit,
    chances,
    count_cached,
    estimates,
    scarcity,
)
from policies.scoring.hours import by_time, expected_footprint, is_within_gco2
from policies.scoring.promises import promised_chances
from topics import Candidate, Envelope, Footprint, Profile
from topics.records.frozen import dataclass
from topics.records.refusal_codes import PASSING

Action = Literal["place", "hold", "reject", "expire"]


@dataclass(frozen=True, slots=True)
class Decision:
    """The action for a request, and every candidate considered.

    Attributes:
        action: the action.
        candidates: all of them, the chosen one first; records are made when one is asked for.
        option: the hardware chosen, for ``place``.
        promised: the envelope of the chosen candidate, for ``place`` and ``hold``.
        estimate: the same from the moment of the decision, for ``place``.
        group: the batch group, for ``hold``.
        reason: stable code of the reason for the action.
        message: one sentence for people, for ``reject`` and ``expire``.
        refusals: per pool, the reason code.
        retry_at: when a rejected request may be accepted, epoch seconds; None if unknown.
        footprint: of the chosen candidate, where the fleet declares what moves with time.
    """

    action: Action
    candidates: Sequence[Candidate]
    reason: str
    option: Option | None = None
    promised: Envelope | None = None
    estimate: Estimate | None = None
    group: str | None = None
    message: str | None = None
    refusals: dict[str, str] | None = None
    retry_at: float | None = None
    footprint: Footprint | None = None


def decide(
    profile: Profile, inputs: Inputs, options: Options, policy: Policy, now: float
) -> Decision:
    """Return the decision on a request; the same arguments give the same one on any machine.

    Hard constraints come first. Each option that passes is a candidate to go to now and, for a
    request that may wait, a candidate to wait for: a batch of the size that the group's arrivals
    would fill within its window. The lowest price wins among those whose chance of meeting the
    SLO reaches the class's target; if none does, the best chance. The price includes the scarcity
    of places and the expected cost of a failure (`policies.scoring.candidates`). Where prices move
    with time, each is that of its hour, and cheaper hours to come are candidates too
    (`policies.scoring.hours`).

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
    model = options.serving.get(profile.model)
    if model is None:
        return _unplaced(profile, options, policy, (), now - profile.created_at)
    serving, standings = model.options, inputs.standings(model)
    codes, able = _codes(profile, model, standings, policy), standings
    if any(codes):
        able = [s for s, code in zip(standings, codes, strict=True) if code is None]
    offers = _offers(profile, _visits(profile, inputs, able, policy), policy, now, inputs.credit)
    if model.moves:
        offers = by_time(offers, profile, inputs.arrivals_per_s, policy, now)
    if profile.max_cost_usd is not None or profile.max_gco2 is not None:
        offers, codes = _within_limits(offers, profile, standings, codes, now)
    refused: list[Refused] = []
    if any(codes):
        refused = [(o, code) for o, code in zip(serving, codes, strict=True) if code]
    second_tries = SecondTries(offers, profile.deadline - now, policy.retry_cost_weight)
    rules, elapsed_s = policy.rules, now - profile.created_at
    if rules:
        # After what must hold, which is held against the cost as it is.
        offers, unpriced = _scored(offers, second_tries, profile, rules)
        refused += unpriced
    if not offers:
        return _unplaced(profile, options, policy, refused, elapsed_s)
    ranks = ranks_of(policy.order, [v[0].option for v in offers.visits])
    best = choose(offers, profile.target_chance, None if rules else second_tries, ranks)
    reason, message = _why(offers, best, second_tries, profile, policy), None
    if ranks is not None and (led := _led(offers, best, ranks, serving, policy, profile)):
        reason, message = led
    candidates = Candidates(offers, best, refused, elapsed_s, model)
    promised = _promised(offers, best, elapsed_s)
    option, figures, is_held = offers.option(best), offers.figures[best], offers.is_held(best)
    return Decision(
        "hold" if is_held else "place",
        candidates,
        reason,
        option=None if is_held else option,
        promised=promised,
        estimate=None if is_held else Estimate(*figures),
        group=group_in(profile, options, policy) if is_held else None,
        message=message,
        footprint=expected_footprint(option, figures, profile, now) if model.moves else None,
    )


def _promised(offers: Offers, best: int, elapsed_s: float) -> Envelope:
    cost_usd, ttft_s, tpot_s, finish_s, *_ = offers.figures[best]
    chance = offers.chances[best]
    return Envelope(cost_usd, elapsed_s + ttft_s, elapsed_s + finish_s, tpot_s, chance)


def _codes(
    profile: Profile, model: ModelOptions, standings: Sequence[OptionState], policy: Policy
) -> Sequence[str | None]:
    """Return the reason code of each option that may not serve the request now, else None.

    Nothing if all may.
    """
    rules, codes = policy.rules, model_refusals(profile, model, policy.floor_of(profile))
    if not (rules or policy.never or any(s.obstacle or s.has_drifted for s in standings)):
        return codes if any(codes) else ()
    if rules:
        codes = [
            code or refused_by(rules, profile, standing.option)
            for code, standing in zip(codes, standings, strict=True)
        ]
    if policy.never:
        codes = [
            code or ("never" if policy.is_never(standing.option) else None)
            for code, standing in zip(codes, standings, strict=True)
        ]
    codes = [code or standing.obstacle for code, standing in zip(codes, standings, strict=True)]
    if any(s.has_drifted for s in standings) and minds_drift(profile, policy):
        return [
            code or ("drifted" if standing.has_drifted else None)
            for code, standing in zip(codes, standings, strict=True)
        ]
    return codes


def _within_limits(
    offers: Offers,
    profile: Profile,
    standings: Sequence[OptionState],
    codes: Sequence[str | None],
    now: float,
) -> tuple[Offers, Sequence[str | None]]:
    """Return the offers within the request's limits of cost and emissions, and all codes."""
    limit_usd, limit_g = profile.max_cost_usd, profile.max_gco2
    if limit_usd is not None:
        kept = [at for at, figures in enumerate(offers.figures) if figures[COST] <= limit_usd]
        offers, codes = _within(offers, kept, "max_cost", standings, codes)
    if limit_g is not None:
        kept = [
            at
            for at, figures in enumerate(offers.figures)
            if is_within_gco2(offers.option(at), figures, profile, limit_g, now)
        ]
        offers, codes = _within(offers, kept, "max_gco2", standings, codes)
    return offers, codes


def _within(
    offers: Offers,
    kept: Sequence[int],
    limit: str,
    standings: Sequence[OptionState],
    codes: Sequence[str | None],
) -> tuple[Offers, list[str | None]]:
    """Return the offers within a limit, and the codes with those of options that have none."""
    able = {offers.place(at) for at in kept}
    codes = codes or [None] * len(standings)
    found = [
        limit if code is None and place_of(standing.option) not in able else code
        for code, standing in zip(codes, standings, strict=True)
    ]
    return offers.only(kept), found


def _visits(
    profile: Profile, inputs: Inputs, standings: Sequence[OptionState], policy: Policy
) -> list[Visit]:
    """Return the ways to use these: to go to each now, and to wait for company there."""
    if not profile.batchable and inputs.credit is None:
        return [(standing, "direct", 1, 0.0, 0) for standing in standings]
    visits: list[Visit] = []
    for standing in standings:
        lanes = standing.option.lanes
        # A second run waits wherever it can.
        if "direct" in lanes and not (profile.is_background and "batch" in lanes):
            cached_tokens = _cached_tokens(inputs.credit, standing)
            visits.append((standing, "direct", 1, 0.0, cached_tokens))
        if profile.batchable and "batch" in standing.option.lanes:
            visits.append(_hold(profile, inputs.arrivals_per_s, standing, policy))
    return visits


def _cached_tokens(credit: Credit | None, standing: OptionState) -> int:
    option = standing.option
    if credit is None or credit.pool != option.pool or credit.variant != option.variant:
        return 0
    return int(credit.tokens * standing.learned.reuse)


def _hold(profile: Profile, rate_per_s: float, standing: OptionState, policy: Policy) -> Visit:
    limit = batch_limit(profile, standing.option, policy.windows.members_max)
    others = min(limit - 1, int(rate_per_s * profile.window_s))
    # Without company it waits for the whole window.
    wait_s = min(profile.window_s, others / rate_per_s) if others else profile.window_s
    return standing, "hold", 1 + others, wait_s, 0


def _offers(
    profile: Profile, visits: list[Visit], policy: Policy, now: float, credit: Credit | None
) -> Offers:
    """Return the visits with their estimates, chances and prices."""
    scarce_from, spread = policy.scarcity.from_share, policy.estimates.spread
    figures = estimates(profile, visits, policy.estimates.transport_s)
    standings = [visit[0] for visit in visits]
    learned = [standing.learned for standing in standings]
    spreads = [spread] * len(standings)
    for at, standing in enumerate(standings):
        # As `spread_of` has it.
        if standing.error > spread:
            spreads[at] = standing.error
    if profile.quote is None:
        elapsed_s = now - profile.created_at
        likely = chances(profile, figures, learned, elapsed_s, spreads)
        if credit is not None:
            count_cached(profile, visits, figures, likely, spreads, elapsed_s, credit.tokens)
    else:
        likely = promised_chances(profile, visits, figures, policy, now)
    prices_usd = [each[COST] for each in figures]
    for at, standing in enumerate(standings):
        if standing.fullness > scarce_from:
            prices_usd[at] *= scarcity(standing, policy)
    return Offers(visits, figures, likely, prices_usd)


def _scored(
    offers: Offers,
    second_tries: SecondTries,
    profile: Profile,
    rules: tuple[Extension, ...],
) -> tuple[Offers, list[Refused]]:
    """Return the offers at the prices of the extensions, and the options without a price."""
    refused: dict[tuple[str, str], Refused] = {}
    for at, visit in enumerate(offers.visits):
        option = visit[0].option
        price_usd = offers.prices_usd[at] + second_tries.usd(visit, offers.figures[at])
        found = priced_by(rules, profile, option, price_usd)
        if isinstance(found, str):
            refused[place_of(option)] = (option, found)
        else:
            offers.prices_usd[at] = found
    kept = [at for at in range(len(offers)) if offers.place(at) not in refused]
    return offers.only(kept), list(refused.values())


def _led(
    offers: Offers,
    best: int,
    ranks: Sequence[int],
    serving: Sequence[Option],
    policy: Policy,
    profile: Profile,
) -> tuple[str, str] | None:
    """Return reason and message where the policy's order decided, else None."""
    if offers.chances[best] < profile.target_chance:
        return None
    here, name = ranks[best], "pools of no group"
    if here < len(policy.order):
        name = policy.order[here].name
    if any(rank(policy.order, option) < here for option in serving if not policy.is_never(option)):
        return "next_in_order", f"order: {name}, since none before it is likely to be in time"
    usd, target = offers.prices_usd, profile.target_chance
    passed_over = any(
        ranks[at] > here and usd[at] < usd[best] and offers.chances[at] >= target
        for at in range(len(offers))
    )
    return ("first_in_order", f"order: {name}, before its price") if passed_over else None


def _why(
    offers: Offers, best: int, second_tries: SecondTries, profile: Profile, policy: Policy
) -> str:
    if len(offers) == 1:
        return "only_candidate"
    chances, figures, target_chance = offers.chances, offers.figures, profile.target_chance
    if chances[best] < target_chance:
        return "best_chance"
    cost_usd = figures[best][COST]
    cheaper = [
        at
        for at, each in enumerate(figures)
        if each[COST] < cost_usd and chances[at] >= target_chance
    ]
    if cheaper:
        seen = [(offers.visits[at], figures[at]) for at in (best, *cheaper)]
        expected_usd = [second_tries.expected_usd(*each) for each in seen]
        usd = [
            each[COST] * scarcity(visit[0], policy) + second_tries.usd(visit, each)
            for visit, each in seen
        ]
        if usd[0] > min(usd):
            return "preferred_by_extension"
        is_by_failures = expected_usd[0] == min(expected_usd)
        return "cheapest_with_failures" if is_by_failures else "leaves_scarce_places"
    visit = offers.visits[best]
    if visit[1] == "hold":
        return "waiting_is_cheapest" if visit[3] <= profile.window_s else "cheaper_hour"
    return "cheapest_in_time"


def codes_by_pool(options: Options, refused: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the reason code of each pool; one without any lacks the model.

    Of a pool's variants one counts that is refused for the time being, else one that came furthest.
    """
    found = sorted(refused, key=lambda each: furthest(each[1]))
    passing = [(pool, code) for pool, code in found if code in PASSING]
    return dict.fromkeys(options.by_pool, "model_not_served") | dict(found) | dict(passing)


def _unplaced(
    profile: Profile,
    options: Options,
    policy: Policy,
    refused: Sequence[Refused],
    elapsed_s: float,
) -> Decision:
    """Return a hold if time may help: a pool without a worker, or a failing one, is no refusal."""
    model = options.serving.get(profile.model)
    candidates = Candidates(NO_OFFERS, 0, refused, elapsed_s, model)
    codes = {code for _, code in refused}
    reason = next((code for code in PASSING if code in codes), None)
    if reason is not None:
        return Decision("hold", candidates, reason, group=group_in(profile, options, policy))
    by_pool = codes_by_pool(options, ((option.pool, code) for option, code in refused))
    if profile.model not in options.models:
        known = ", ".join(sorted(options.models))
        message = f"model {profile.model!r} is not declared in the fleet: {known}"
        return Decision("reject", candidates, "unknown_model", message=message, refusals=by_pool)
    message = explain(list(by_pool.items()))
    if profile.bound_by:
        message += f"; it is bound by {', '.join(profile.bound_by)} of the policy"
    return Decision("reject", candidates, "no_pool", message=message, refusals=by_pool)
