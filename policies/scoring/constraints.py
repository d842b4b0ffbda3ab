"""Hard constraints, which hold on every path and fail closed."""

from collections.abc import Sequence
from typing import get_args

from policies.config.options import ModelOptions, Option
from topics import Profile
from topics.records.refusal_codes import Refusal

_DIRECT_LANE = frozenset({"direct"})
_BOTH_LANES = frozenset({"direct", "batch"})
_ORDER: dict[str, int] = {code: place for place, code in enumerate(get_args(Refusal))}

EXPLANATIONS: dict[str, str] = {
    "model_not_served": "does not serve the model",
    "operation_not_served": "serves the model, but not this operation",
    "region": "is in a region that is not allowed",
    "precision": "serves the model at a precision that is not allowed",
    "quality": "serves the model at a lower quality than its class wants",
    "pool_not_allowed": "is not among constraints.pools",
    "pool_excluded": "is excluded, by the request or after a failed try",
    "label": "lacks a required label",
    "variant": "is not what this second run asks",
    "context_too_long": "prompt and reply exceed the model's context",
    "memory": "prompt and reply do not fit the device's memory beside the weights",
    "max_cost": "would cost more than constraints.max_cost_usd",
    "max_gco2": "would emit more than max_gco2 allows, or what it emits is not known",
    "energy_unknown": "declares no power_w, which a budget in watt hours needs",
    "pool_unavailable": "has no live worker",
    "circuit_open": "fails, and gets no work until it answers a probe",
    "power_limit": "would draw more power with it than its pool or site may",
    "worker_misfit": "has a worker that is not what the fleet declares, and gets no work meanwhile",
    "never": "is among the pools that the policy never uses",
    "drifted": "answers otherwise than its reference, and gets no such work until it passes",
    "lane": "has no lane for this kind of work",
}


def certain_tokens(profile: Profile) -> int:
    """Return the tokens that one answer of a request takes for certain.

    Servers make room for its others as they can. An estimate of its reply is none of them: a
    server ends a reply where the context ends.
    """
    if profile.certain_tokens is not None:
        return profile.certain_tokens
    return profile.prompt_tokens + profile.output_tokens


def told_tokens(prompt_tokens: int, limit: int | None, *, is_counted: bool) -> int:
    """Return the tokens that a request takes for certain, of a reply that nobody hinted at.

    Servers refuse a prompt beside which the client's own limit on the reply has no room. A prompt
    that was only estimated doesn't count beside it, since clients fill the context to the token.

    Args:
        prompt_tokens: the prompt's, counted or estimated.
        limit: the body's limit on the reply; None without one.
        is_counted: whether the prompt's are counted.
    """
    if limit is None:
        return prompt_tokens
    return prompt_tokens + limit if is_counted else max(prompt_tokens, limit + 1)


def refusal(  # noqa: C901, PLR0911 - a list of rules
    profile: Profile, option: Option, floor: float = 0.0
) -> Refusal | None:
    """Return the reason why the option may not serve the request at any load; None if it may.

    ``floor`` is the least quality that is good enough.
    """
    if profile.operation not in option.operations:
        return "operation_not_served"
    if profile.regions is not None and option.region not in profile.regions:
        return "region"
    if profile.precisions is not None and option.precision not in profile.precisions:
        return "precision"
    if option.quality < floor:
        return "quality"
    if profile.pools is not None and option.pool not in profile.pools:
        return "pool_not_allowed"
    if option.pool in profile.exclude_pools:
        return "pool_excluded"
    if profile.labels and any(option.labels.get(k) != v for k, v in profile.labels.items()):
        return "label"
    if profile.quality is not None and not profile.quality.allows(option.pool, option.variant):
        return "variant"
    if profile.counts_energy and option.busy_w is None:
        return "energy_unknown"
    tokens = certain_tokens(profile)
    if tokens > option.context_tokens:
        return "context_too_long"
    if tokens > option.kv_capacity_tokens:
        return "memory"
    return None


def has_lane(profile: Profile, option: Option) -> bool:
    """Return True if the option has a lane for the request; batch lanes take only what may wait."""
    return "direct" in option.lanes or (profile.batchable and "batch" in option.lanes)


def _is_free(profile: Profile) -> bool:
    """Return True if a request names no constraint."""
    is_free = profile.regions is profile.precisions is profile.pools is None
    some = profile.exclude_pools or profile.labels or profile.quality or profile.counts_energy
    return is_free and not some


def refusals(profile: Profile, options: Sequence[Option], floor: float = 0.0) -> list[str | None]:
    """Return the `refusal` of each option, or ``lane`` if it has none for the request; else None.

    Most requests name no constraint, and then a few comparisons are enough to let an option pass.
    """
    lanes = _BOTH_LANES if profile.batchable else _DIRECT_LANE
    operation, tokens = profile.operation, certain_tokens(profile)
    is_free = _is_free(profile)
    return [
        None
        if is_free
        and operation in option.operations
        and option.quality >= floor
        and tokens <= option.context_tokens
        and tokens <= option.kv_capacity_tokens
        and not lanes.isdisjoint(option.lanes)
        else refusal(profile, option, floor) or (None if has_lane(profile, option) else "lane")
        for option in options
    ]


def model_refusals(
    profile: Profile, model: ModelOptions, floor: float = 0.0
) -> Sequence[str | None]:
    """Return `refusals` of all options of a model; those of most requests are found once."""
    if not _is_free(profile) or certain_tokens(profile) > model.tokens_max:
        return refusals(profile, model.options, floor)
    # Nothing else of the request enters into them.
    key = profile.operation, profile.batchable, floor
    found = model.known_refusals.get(key)
    if found is None:
        found = model.known_refusals[key] = tuple(refusals(profile, model.options, floor))
    return found


def furthest(code: str) -> int:
    """Return how many reasons an option had passed that is refused by this one."""
    return _ORDER.get(code, len(_ORDER))


def _explained(code: str) -> str:
    extension, _, own_code = code.partition(":")
    if own_code:
        return f"is refused by the extension {extension} ({own_code})"
    return EXPLANATIONS.get(code, code)


def explain(refusals: Sequence[tuple[str, str]]) -> str:
    """Return refusals, as (pool, reason code), as one sentence for people."""
    told = explain_each(refusals)
    return f"no pool can serve this request: {told}" if told else "there is no pool"


def explain_each(refusals: Sequence[tuple[str, str]]) -> str:
    """Return refusals, as (pool, reason code), in words; empty without any."""
    return "; ".join(f"{pool} {_explained(code)}" for pool, code in refusals)
