"""The release: where a group of held requests goes, decided when it goes (late binding)."""

from collections.abc import Sequence

from policies.constraints import refusal
from policies.estimate import batch_limit, chance, estimate
from policies.options import Option
from policies.situation import Situation
from policies.windows import Member, Target
from topics import Candidate, Profile
from topics.placement import Path


def find_target(members: Sequence[Member], situation: Situation, now: float) -> Target | None:
    """Return where these members would go now, or None where no live pool can take them.

    They are alike to every constraint (policies.groups); the longest of them stands for all, and
    the earliest deadline. The cheapest that finishes in time wins, else the best chance.
    """
    first = members[0].profile
    longest = max((m.profile for m in members), key=lambda p: p.input_tokens + p.output_tokens)
    path: Path = "batch" if first.batchable else "direct"
    targets = []
    for option in situation.options.by_model.get(first.model, ()):
        if path not in option.lanes or refusal(longest, option) is not None:
            continue
        if situation.view.load(option.pool).workers:
            targets.append(_target(members, longest, option, situation, now))
    limit_usd = first.max_cost_usd
    if limit_usd is not None:
        targets = [t for t in targets if t.estimate.cost_usd <= limit_usd]
    if not targets:
        return None
    able = [t for t in targets if t.chance >= first.target_chance]
    best = min(able, key=_price) if able else min(targets, key=lambda t: (-t.chance, _price(t)))
    ranked = [best, *(t for t in targets if t is not best)]
    return Target(
        best.option,
        best.path,
        best.members_max,
        best.tokens_max,
        best.estimate,
        best.chance,
        tuple(c for target in ranked for c in target.candidates),
    )


def _price(target: Target) -> tuple[float, float, str, str]:
    option = target.option
    return (target.estimate.cost_usd, target.estimate.finish_s, option.pool, option.variant)


def _target(
    members: Sequence[Member],
    longest: Profile,
    option: Option,
    situation: Situation,
    now: float,
) -> Target:
    policy = situation.policy
    path: Path = "batch" if longest.batchable else "direct"
    # A request that waited for a pool goes alone; its companions of the moment are not a batch.
    limit = batch_limit(longest, option, policy.windows.members_max) if path == "batch" else 1
    found = estimate(
        longest,
        option,
        situation.view.load(option.pool),
        transport_s=policy.estimates.transport_s,
        members=min(limit, len(members)),
    )
    urgent = min((m.profile for m in members), key=lambda p: p.deadline)
    likely = chance(
        urgent, found, elapsed_s=now - urgent.created_at, spread=policy.estimates.spread
    )
    candidate = Candidate(
        pool=option.pool,
        model_variant=option.variant,
        precision=option.precision,
        region=option.region,
        path=path,
        cost_usd=found.cost_usd,
        ttft_s=now - urgent.created_at + found.ttft_s,
        finish_s=now - urgent.created_at + found.finish_s,
        tpot_s=found.tpot_s,
        chance=likely,
    )
    return Target(option, path, limit, option.kv_capacity_tokens, found, likely, (candidate,))
