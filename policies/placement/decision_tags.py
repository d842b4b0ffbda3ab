"""Tags that depend on the decision: memory footprint and fallback risk."""

from policies.config.options import Options
from policies.placement.decide import Decision
from topics import Profile, Tag


def decided_tags(
    profile: Profile, decision: Decision, options: Options, now: float
) -> dict[str, Tag]:
    """Return the tags that depend on the fleet.

    ``memory_footprint`` is in bytes: the KV cache of this request, and the weights of each
    variant that could serve it. ``fallback_risk`` is the share of the time left that two tries
    would take, one after the other: above 1 a failed first try misses the deadline.
    """
    serving = options.serving.get(profile.model)
    footprint: dict[str, object] = {"kv_bytes": 0, "weights_bytes": {}}
    if serving is not None:
        footprint["kv_bytes"] = round(profile.tokens * serving.kv_bytes_per_token)
        footprint["weights_bytes"] = serving.numbering.weights
    tags = {"memory_footprint": Tag(footprint, "estimate", 0.9)}
    if decision.promised is not None:
        left_s = profile.deadline - now
        try_s = decision.promised.finish_s - (now - profile.created_at)
        tags["fallback_risk"] = Tag(round(2 * try_s / left_s, 4), "estimate", 0.5)
    return tags
