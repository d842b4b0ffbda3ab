"""The pools that a request's constraints allow, computed a second time.

This uses the published request, the fleet and the policy alone: a check that used the router's code
(``policies.scoring.constraints``) would repeat its mistakes.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from policies import Fleet, Policy
from topics import Placement


class Rules:
    """The hard limits of a fleet and a policy."""

    def __init__(self, fleet: Fleet, policy: Policy) -> None:
        self._fleet = fleet
        self._policy = policy

    def broken(self, request: Mapping[str, Any], placement: Placement) -> list[str]:
        """Return the rules that a placement breaks, one sentence each; empty if none."""
        pool = self._fleet.pools.get(placement.pool)
        if pool is None:
            return [f"{placement.pool} is no pool of the fleet"]
        found = []
        if (placement.device, placement.region) != (pool.device, pool.region):
            found.append(
                f"{placement.pool} is {pool.device} in {pool.region}, not"
                f" {placement.device} in {placement.region}"
            )
        told = (request["body"]["model"], placement.model_variant, placement.precision)
        if told not in [(s.model, s.variant, s.precision) for s in pool.serves]:
            found.append(f"{placement.pool} does not serve {' '.join(told)}")
        where = (placement.pool, placement.region, placement.precision)
        return found + self._forbidden(request, *where)

    def allows(self, request: Mapping[str, Any], pool: str, precision: str) -> bool:
        """Return whether the request may be served there."""
        return not self._forbidden(request, pool, self._fleet.pools[pool].region, precision)

    def _forbidden(
        self, request: Mapping[str, Any], pool: str, region: str, precision: str
    ) -> list[str]:
        wanted = request.get("constraints", {})
        data = self._policy.data_classes.get(wanted.get("data_class", ""))
        workload = self._policy.classes[request["task"]]
        precisions = wanted.get("precisions", workload.precisions)
        if precisions is not None and "any" in precisions:
            precisions = None
        labels = wanted.get("labels", {}) | (data.labels if data else {})
        checks = [
            ("region", region, wanted.get("regions")),
            ("region", region, data and data.regions),
            ("precision", precision, precisions),
            ("precision", precision, data and data.precisions),
            ("pool", pool, wanted.get("pools")),
        ]
        found = [
            f"{name} {value} is not among {', '.join(allowed)}"
            for name, value, allowed in checks
            if _excludes(allowed, value)
        ]
        if pool in wanted.get("exclude_pools", ()):
            found.append(f"pool {pool} is excluded")
        has = self._fleet.pools[pool].labels
        found += [f"{pool} lacks {k}={v}" for k, v in labels.items() if has.get(k) != v]
        return found


def _excludes(allowed: Iterable[str] | None, value: str) -> bool:
    return allowed is not None and value not in allowed
