"""Batch groups: requests that may share a batch. Constraints treat a group's members alike."""

from bisect import bisect_left
from collections.abc import Sequence
from math import ceil, inf

from policies.config.options import SECONDS_PER_HOUR, Options
from policies.config.plugins import refused_by
from policies.config.policy import Policy
from policies.quality.sampling import minds_drift
from topics import Profile, encode


def group_in(profile: Profile, options: Options, policy: Policy) -> str:
    """Return the name of a request's group under a policy, which its extensions treat alike too."""
    group = group_of(profile, policy.windows.length_buckets_tokens)
    rules, floor = policy.rules, policy.floor_of(profile)
    if floor:
        group += f"|quality {floor:g}"
    if not minds_drift(profile, policy):
        group += "|drifted too"
    serving = options.serving.get(profile.model)
    if serving is not None and serving.moves and profile.batchable:
        group += _patience(profile, policy)
    if not rules:
        return group
    refused = [
        f"{option.pool}/{option.variant}"
        for option in options.by_model.get(profile.model, ())
        if refused_by(rules, profile, option) is not None
    ]
    return f"{group}|without {encode(refused).decode()}" if refused else group


def _patience(profile: Profile, policy: Policy) -> str:
    """Return what tells apart requests that may wait longer for a cheaper hour than others.

    In one group those that must go soon would take those along that need not.
    """
    span_h = max(1, ceil((profile.deadline - profile.created_at) / SECONDS_PER_HOUR))
    patience_s = policy.patience_s(profile)
    wait = "" if patience_s == inf else f" price_wait_s {patience_s:g}"
    return f"|within {1 << (span_h - 1).bit_length()}h{wait}"


def group_of(profile: Profile, length_buckets_tokens: Sequence[int]) -> str:
    """Return the name of a request's group.

    The model variant is chosen for the whole group at its release, so that no batch mixes
    variants; everything that constrains the choice is part of the name, and so is the length
    bucket of the prompt. Work that only waits for a live pool is kept apart from work that waits
    for a batch to fill.
    """
    bucket = bisect_left(length_buckets_tokens, profile.prompt_tokens)
    bound = length_buckets_tokens[bucket] if bucket < len(length_buckets_tokens) else "more"
    kind = "batch" if profile.batchable else "direct"
    name = f"{profile.model}|{profile.operation}|{kind}|le{bound}"
    # What may go nowhere is unlike what may go anywhere.
    some = (profile.regions, profile.precisions, profile.pools) != (None, None, None)
    some = some or bool(profile.exclude_pools or profile.labels)
    if some or profile.max_cost_usd is not None:
        constraints = [
            profile.regions,
            profile.precisions,
            profile.pools,
            profile.exclude_pools,
            sorted(profile.labels.items()),
            profile.max_cost_usd,
        ]
        if profile.max_cost_usd is not None and profile.price_factor != 1.0:
            # What a tier is charged is held against the limit.
            constraints.append(profile.price_factor)
        name += f"|{encode(constraints).decode()}"
    # Of up to twice as many, so that few are charged for many. Of prompts and replies apart: a list
    # and as many replies to one would be taken for as many replies to each of the list.
    if profile.prompts > 1:
        name += f"|p{1 << (profile.prompts - 1).bit_length()}"
    if profile.replies > 1:
        name += f"|x{1 << (profile.replies - 1).bit_length()}"
    if profile.max_gco2 is not None:
        name += f"|gco2 {profile.max_gco2!r}"
    if profile.counts_energy:
        name += "|energy"
    check = profile.quality
    if check is not None and check.of is not None:
        asked = [check.asked, check.reference, check.reference_pool]
        if check.asked == "judged":
            asked = [check.asked, check.pool, check.variant]
        name += f"|{encode(asked).decode()}"
    return name
