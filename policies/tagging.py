"""Tags: properties of a request known before placement, with their sources."""

from collections.abc import Sequence
from typing import Any

from policies.config.bounds import Rule
from policies.config.classes import Tier, WorkloadClass
from policies.config.options import ModelOptions
from policies.config.policy import DEFAULT_CLASS, Policy
from policies.learning.output_lengths import Lengths
from policies.recognition import recognize
from policies.request_tokens import CountTokens, certain_of, prompt_tags, reply_tag
from policies.scoring.bindings import Allowed, OutsideBoundError, narrowed
from topics import InferenceRequest, Profile, Tag, duration_s
from topics.openai_api.operations import unserved
from topics.records.decision_rows import TAGS
from topics.records.frozen import dataclass
from topics.records.profile import TagSource
from topics.records.request import Constraints

_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/moderations": "moderations",
}
_ANY_TIER = Tier()
# Most requests have these tags, so that each is made once.
_BY_CLIENT = {value: Tag(value, "client", 1.0) for value in (False, True)}
_BY_POLICY = {value: Tag(value, "policy", 0.9) for value in (False, True)}
_STREAMED = Tag(False, "client", 0.9)
_ANYTHING = Tag(None, "policy", 1.0)
_ANYWHERE = Allowed()
# In `constraints.precisions`: any precision, whatever the class tolerates.
ANY = "any"


class UnservableError(ValueError):
    """A valid request that no placement could satisfy, whatever the fleet. ``code`` is stable.

    ``retry_at``: another try may succeed then, epoch seconds.
    """

    def __init__(self, code: str, message: str, retry_at: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_at = retry_at


@dataclass(frozen=True, slots=True)
class Tagged:
    """A request as placement sees it, and the source of each fact about it."""

    profile: Profile
    tags: dict[str, Tag]


def operation_of(url: str) -> str:
    """Return the operation of an OpenAI-style URL; for an unknown one, its path after /v1/."""
    return _OPERATIONS.get(url, url.removeprefix("/v1/"))


def tag(
    request: InferenceRequest,
    policy: Policy,
    *,
    received_at: float,
    now: float,
    ingest_partition: int,
    count: CountTokens | None = None,
    lengths: Lengths | None = None,
    serving: ModelOptions | None = None,
    key: str | None = None,
    is_quoted: bool = False,
) -> Tagged:
    """Return the router's knowledge of a request.

    Args:
        request: as parsed from the ingest topic.
        policy: the policy in force.
        received_at: the record's timestamp, used if the request gives no time; epoch seconds.
        now: epoch seconds.
        ingest_partition: its ingest partition, whose direct lanes it is bound to.
        count: counts a text's tokens by the model's own tokenizer; None: by length.
        lengths: reply lengths seen; None: the policy's expectation.
        serving: the options that serve the model, to tell whether the reply's estimate matters.
        key: id of the API key that it came with, as a gateway proved it.
        is_quoted: whether its lengths make a price, which no hint lowers.

    Raises:
        UnservableError: an unknown operation, class or data class, or nothing within its bounds.
    """
    operation, is_limited = _operation(request), is_quoted or _is_limited(request, policy, key)
    input_tag, longest = prompt_tags(request, count, is_limited=is_limited)
    task_tag, workload, is_kept = _task(request, policy, operation, longest.value)
    task, tier = task_tag.value, policy.tiers.get(request.service_tier, _ANY_TIER)
    output_tag, high = reply_tag(request, task, workload, operation, lengths, is_limited)
    created_at = received_at if request.created_at is None else request.created_at
    sensitive_tag = _latency_sensitive(request, workload, tier)
    batchable_tag = _batchable(request, workload, tier, latency_sensitive=sensitive_tag.value)
    rules = _rules(request.tenant, key, task, policy, is_kept=is_kept)
    regions_tag, precisions_tag, allowed = _locality(request, policy, workload, rules)
    profile = Profile(
        id=request.id,
        tenant=request.tenant,
        task=task,
        model=request.model,
        operation=operation,
        tier=request.service_tier,
        created_at=created_at,
        deadline=_deadline(request, workload, tier, created_at),
        input_tokens=input_tag.value,
        output_tokens=output_tag.value,
        **_slo_s(request, workload, tier, latency_sensitive=sensitive_tag.value),
        latency_sensitive=sensitive_tag.value,
        batchable=batchable_tag.value,
        target_chance=workload.target_chance,
        longest_wait_s=_either(tier.longest_wait_s, workload.longest_wait_s),
        window_s=_either(tier.window_s, workload.window_s),
        ingest_partition=ingest_partition,
        routed_at=now,
        **_limits(request.constraints, allowed, rules, workload, tier.price_factor),
        output_tokens_high=high,
        certain_tokens=certain_of(request, longest, output_tag, serving),
        **_answers(request),
        key=key,
        counts_energy=policy.counts_energy(request.tenant, key, task, is_kept=is_kept),
    )
    wishes = (batchable_tag, _latency(profile, sensitive_tag))
    found = (task_tag, input_tag, output_tag, *wishes, regions_tag, precisions_tag)
    return Tagged(profile, dict(zip(TAGS, found, strict=False)))


def _operation(request: InferenceRequest) -> str:
    """Return the operation of a request. Raises UnservableError for one that no pool may serve."""
    if (told := unserved(request.url, request.body)) is not None:
        raise UnservableError("operation_not_served", told)
    return _OPERATIONS[request.url]


def _is_limited(request: InferenceRequest, policy: Policy, key: str | None) -> bool:
    """Return whether a limit of cost, emissions or a budget may be held against its hints."""
    hints = request.hints
    if hints.input_tokens is hints.output_tokens is None:
        return False
    limits = request.constraints.max_cost_usd, request.constraints.max_gco2
    if limits != (None, None) or policy.is_counted(request.tenant, key):
        return True
    return any(each.max_gco2 is not None for each in policy.classes.values())


def _answers(request: InferenceRequest) -> dict[str, Any]:
    """Return members of a profile that say what for; a list of prompts is no turn of a session."""
    prompts = request.prompts
    if not prompts:
        return {"session": request.conversation, "replies": request.replies}
    return {"prompts": len(prompts), "replies": request.replies}


def _limits(
    constraints: Constraints, allowed: Allowed, rules: Sequence[Rule], workload: WorkloadClass,
    price_factor: float,
) -> dict[str, Any]:  # fmt: skip
    """Return members of a profile that limit where it may go."""
    limits_g = [g for g in (constraints.max_gco2, workload.max_gco2) if g is not None]
    return {
        "regions": allowed.regions,
        "precisions": allowed.precisions,
        "pools": allowed.pools,
        "exclude_pools": tuple(constraints.exclude_pools),
        "data_class": allowed.data_class,
        "labels": allowed.labels or {},
        "max_cost_usd": constraints.max_cost_usd,
        "max_gco2": min(limits_g, default=None),
        "price_factor": price_factor,
        "bound_by": tuple(where for where, _ in rules),
        "any_quality": constraints.precisions is not None,
    }


def _task(
    request: InferenceRequest, policy: Policy, operation: str, input_tokens: int
) -> tuple[Tag, WorkloadClass, bool]:
    """Return the class, its terms, and whether they grant no more than the default class's."""
    if request.task is not None:
        if request.task not in policy.classes:
            known = ", ".join(policy.classes)
            raise UnservableError(
                "unknown_task", f"task {request.task!r} is not a class of the policy: {known}"
            )
        return Tag(request.task, "client", 1.0), policy.classes[request.task], False
    found = recognize(request, policy, operation, input_tokens)
    if found is None:
        default = policy.default_class
        return Tag(default, "policy", 0.5), policy.classes[default], False
    task = found.task
    workload = policy.as_strict(task) if found.is_kept else policy.classes[task]
    return Tag(task, "estimate", found.confidence), workload, found.is_kept


def _rules(
    tenant: str, key: str | None, task: str, policy: Policy, *, is_kept: bool
) -> Sequence[Rule]:
    """Return what binds a request."""
    rules = policy.rules_for(tenant, key, task) if policy.binds else []
    if is_kept:
        rules.append((DEFAULT_CLASS, policy.classes[policy.default_class].bound))
    return rules


def _deadline(
    request: InferenceRequest, workload: WorkloadClass, tier: Tier, created_at: float
) -> float:
    if request.deadline is not None:
        return request.deadline
    if request.completion_window is not None:
        return created_at + duration_s(request.completion_window)
    return created_at + _either(tier.deadline_s, workload.deadline_s)


def _either(of_tier: float | None, of_class: float) -> float:
    return of_class if of_tier is None else of_tier


def _slo_s(
    request: InferenceRequest, workload: WorkloadClass, tier: Tier, *, latency_sensitive: bool
) -> dict[str, Any]:
    """Return the wanted TTFT and TPOT in seconds."""
    of_class = (workload.ttft_ms, workload.tpot_ms)
    if not (tier.slo and latency_sensitive):
        of_class = (None, None)
    ttft_ms = request.slo.ttft_ms or of_class[0]
    tpot_ms = request.slo.tpot_ms or of_class[1]
    return {
        "ttft_s": None if ttft_ms is None else ttft_ms / 1000,
        "tpot_s": None if tpot_ms is None else tpot_ms / 1000,
    }


def _latency(profile: Profile, sensitive: Tag) -> Tag:
    wanted = {
        "direct": sensitive.value,
        "ttft_s": profile.ttft_s,
        "tpot_s": profile.tpot_s,
        "deadline_s": round(profile.deadline - profile.created_at, 3),
    }
    return Tag(wanted, sensitive.source, sensitive.confidence)


def _latency_sensitive(request: InferenceRequest, workload: WorkloadClass, tier: Tier) -> Tag:
    if request.slo.ttft_ms is not None or request.slo.tpot_ms is not None:
        return _BY_CLIENT[True]
    if tier.latency_sensitive is not None:
        return _BY_CLIENT[tier.latency_sensitive]
    if request.hints.batchable:
        return _BY_CLIENT[False]
    return _BY_POLICY[workload.latency_sensitive]


def _batchable(
    request: InferenceRequest, workload: WorkloadClass, tier: Tier, *, latency_sensitive: bool
) -> Tag:
    if request.hints.batchable is not None:
        return _BY_CLIENT[request.hints.batchable and not latency_sensitive]
    if request.body.get("stream") is True:
        # Whoever reads token by token is waiting.
        return _STREAMED
    if latency_sensitive:
        return _BY_POLICY[False]
    if tier.batchable is not None:
        return _BY_CLIENT[tier.batchable]
    return _BY_POLICY[workload.batchable]


def _locality(
    request: InferenceRequest, policy: Policy, workload: WorkloadClass, rules: Sequence[Rule]
) -> tuple[Tag, Tag, Allowed]:
    """Return what a request may use, and where regions and precisions are from.

    Raises:
        UnservableError: an unknown data class, or nothing is within what the request is bound to.
    """
    constraints = request.constraints
    if not constraints.model_fields_set and workload.precisions is None and not rules:
        return _ANYTHING, _ANYTHING, _ANYWHERE
    regions = _allowed(constraints.regions)
    precisions = _allowed(constraints.precisions)
    region_source: TagSource = "client" if regions is not None else "policy"
    precision_source: TagSource = "client" if precisions is not None else "policy"
    if precisions is not None and ANY in precisions:
        # Chosen, and so not the class's.
        precisions = None
    elif precisions is None:
        precisions = workload.precisions
    labels = dict(constraints.labels)
    if constraints.data_class is not None:
        if constraints.data_class not in policy.data_classes:
            known = ", ".join(policy.data_classes) or "none"
            raise UnservableError(
                "unknown_data_class",
                f"constraints.data_class {constraints.data_class!r} is not in the policy: {known}",
            )
        of_data = policy.data_classes[constraints.data_class]
        if of_data.regions is not None:
            regions, region_source = _both(regions, of_data.regions), "policy"
        if of_data.precisions is not None:
            precisions, precision_source = _both(precisions, of_data.precisions), "policy"
        labels = _all_labels(labels, of_data.labels, constraints.data_class)
    pools = None if constraints.pools is None else tuple(constraints.pools)
    found = Allowed(regions, precisions, pools, constraints.data_class, labels)
    if rules:
        try:
            found = narrowed(found, rules, policy)
        except OutsideBoundError as error:
            raise UnservableError("outside_bound", error.message) from error
        region_source = region_source if found.regions == regions else "policy"
        precision_source = precision_source if found.precisions == precisions else "policy"
    regions_tag = Tag(found.regions, region_source, 1.0)
    return regions_tag, Tag(found.precisions, precision_source, 1.0), found


def _allowed(names: list[str] | None) -> tuple[str, ...] | None:
    return None if names is None else tuple(sorted(set(names)))


def _both(first: tuple[str, ...] | None, second: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(second if first is None else set(first) & set(second)))


def _all_labels(own: dict[str, str], required: dict[str, str], data_class: str) -> dict[str, str]:
    for name, value in required.items():
        if own.get(name, value) != value:
            raise UnservableError(
                "conflicting_labels",
                f"constraints.labels wants {name}={own[name]}, but data class {data_class!r}"
                f" requires {name}={value}",
            )
    return own | required
