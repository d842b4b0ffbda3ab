"""The packaged declarations of a demo, scaled to a multiple of their speed.

Everything stays in wall time: the simulated devices run faster by the factor, and the policy's
times are divided by it. Nothing else in the system knows the factor.
"""

import yaml

from policies import Fleet, Policy


def fleet_text(fleet: Fleet, speed: float) -> str:
    """Return a fleet file of the same pools, each simulated at ``speed`` times its speed."""
    declared = fleet.model_dump(mode="json", by_alias=True, exclude_none=True)
    for pool in declared["pools"].values():
        pool["backend"] = {"type": "simulated", "time_scale": float(speed)}
    return yaml.safe_dump(declared, sort_keys=False)


def policy_text(policy: Policy, speed: float) -> str:
    """Return a policy file with the same targets, all ``speed`` times as urgent."""
    scaled = policy.faster(speed).model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(scaled, sort_keys=False)
