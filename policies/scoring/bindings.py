"""Bindings: what a request may use, narrowed by all that the policy binds it to.

Applied where a request is tagged, and again by each later stage under the policy that it then
decides by, so that what is held, released, tried again or run is bound by the version that its
evidence names.
"""

from collections.abc import Sequence
from dataclasses import replace

from policies.config.bounds import Rule
from policies.config.policy import DEFAULT_CLASS, Policy
from topics import Profile
from topics.records.frozen import dataclass

Names = tuple[str, ...]


class OutsideBoundError(ValueError):
    """A request wants only what its tenant, its key or its class may not have."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


@dataclass(frozen=True, slots=True)
class Allowed:
    """The bounds of what a request may use; None is anything."""

    regions: Names | None = None
    precisions: Names | None = None
    pools: Names | None = None
    data_class: str | None = None
    labels: dict[str, str] | None = None


def bind(profile: Profile, policy: Policy) -> Profile:
    """Return a profile within all that a policy binds it to.

    A request that could go nowhere any more may use no pool.
    """
    if not policy.binds:
        return profile
    rules = policy.rules_for(profile.tenant, profile.key, profile.workload)
    if DEFAULT_CLASS in profile.bound_by:
        rules.append((DEFAULT_CLASS, policy.classes[policy.default_class].bound))
    if not rules:
        return profile
    names = tuple(dict.fromkeys([*profile.bound_by, *(name for name, _ in rules)]))
    before = Allowed(
        profile.regions, profile.precisions, profile.pools, profile.data_class, profile.labels
    )
    try:
        found = narrowed(before, rules, policy)
    except OutsideBoundError:
        return replace(profile, pools=(), bound_by=names)
    if found == before and names == profile.bound_by:
        return profile
    return replace(
        profile,
        regions=found.regions,
        precisions=found.precisions,
        pools=found.pools,
        data_class=found.data_class,
        labels=found.labels or {},
        bound_by=names,
    )


def narrowed(wanted: Allowed, rules: Sequence[Rule], policy: Policy) -> Allowed:
    """Return what is wanted and within all rules.

    Raises:
        OutsideBoundError: nothing is, though something was wanted.
    """
    data_class = _data_class(wanted.data_class, rules)
    regions, precisions, pools = wanted.regions, wanted.precisions, wanted.pools
    labels = dict(wanted.labels or {})
    if data_class != wanted.data_class and data_class is not None:
        implied = policy.data_classes[data_class]
        where = f"data_classes.{data_class}"
        regions = _within(regions, implied.regions, "regions", where)
        precisions = _within(precisions, implied.precisions, "precisions", where)
        for name, value in implied.labels.items():
            if labels.setdefault(name, value) != value:
                raise OutsideBoundError(
                    f"constraints.labels wants {name}={labels[name]}, and {where} of the policy,"
                    f" which this request is of, {name}={value}"
                )
    for where, bound in rules:
        regions = _within(regions, bound.regions, "regions", where)
        precisions = _within(precisions, bound.precisions, "precisions", where)
        pools = _within(pools, bound.pools, "pools", where)
    return Allowed(regions, precisions, pools, data_class, labels)


def _data_class(wanted: str | None, rules: Sequence[Rule]) -> str | None:
    """Return the data class of a request: its own, else the first that all rules allow."""
    allowed: Names | None = None
    for where, bound in rules:
        if bound.data_classes is None:
            continue
        if wanted is not None and wanted not in bound.data_classes:
            raise OutsideBoundError(
                f"constraints.data_class is {wanted!r}, and {where} of the policy allows"
                f" {_listed(bound.data_classes)}"
            )
        if allowed is None:
            allowed = bound.data_classes
        else:
            allowed = tuple(name for name in allowed if name in bound.data_classes)
    if wanted is not None or allowed is None:
        return wanted
    if not allowed:
        told = ", ".join(where for where, bound in rules if bound.data_classes is not None)
        raise OutsideBoundError(f"{told} of the policy have no data class in common")
    return allowed[0]


def _within(wanted: Names | None, bound: Names | None, what: str, where: str) -> Names | None:
    if bound is None:
        return wanted
    if wanted is None:
        return tuple(sorted(set(bound)))
    both = tuple(name for name in wanted if name in bound)
    if wanted and not both:
        raise OutsideBoundError(
            f"{what} may be {_listed(wanted)} by the request, and {_listed(bound)} by {where} of"
            " the policy"
        )
    return both


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"
