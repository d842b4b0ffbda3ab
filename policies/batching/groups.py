"""Batch groups: requests that may share a batch. Constraints treat a group's members alike."""

from bisect import bisect_left
from collections.abc import Sequence

from policies.config.options import Options
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
    if not rules:
        return group
    refused = [
        f"{option.pool}/{option.variant}"
        for option in options.by_model.get(profile.model, ())
        if refused_by(rules, profile, option) is not None
    ]
    return f"{group}|without {encode(refused).decode()}" if refused else group


def group_of(profile: Profile, length_buckets_tokens: Sequence[int]) -> str:
    """Return the name of a request's group.

    The model variant is chosen for the whole group at its release, so that no batch mixes
    variants; everything that constrains the choice is part of the name, and so is the length
    bucket of the prompt. Work that only waits for a live pool is kept apart from work that waits
    for a batch to fill.
    """
    bucket = bisect_left(length_buckets_tokens, profile.input_tokens)
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
    check = profile.quality
    if check is not None and check.of is not None:
        asked = [check.asked, check.reference, check.reference_pool]
        if check.asked == "judged":
            asked = [check.asked, check.pool, check.variant]
        name += f"|{encode(asked).decode()}"
    return name
