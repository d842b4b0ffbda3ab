"""Retry: failed pools are tried again if there is no other and time may help."""

from dataclasses import replace

from policies.config.options import Options
from policies.config.plugins import refused_by
from policies.config.policy import Policy
from policies.scoring.constraints import has_lane, refusal
from topics import Profile

MAY_PASS = frozenset(
    {
        "circuit_open",
        "connect",
        "connection_lost",
        "out_of_memory",
        "overloaded",
        "server_error",
        "timeout",
        "unavailable",
    }
)
"""Reasons of a failed try that say nothing of the request: the next one may go well."""


def allow_again(profile: Profile, options: Options, policy: Policy) -> Profile:
    """Return the profile without its excluded pools, if no other pool could ever serve it.

    Only pools excluded by a failed try for a temporary reason return: the client's exclusions
    stay. The limit on the number of attempts still holds.
    """
    rules, floor = policy.rules, policy.floor_of(profile)
    serving = options.by_model.get(profile.model, ())
    if any(
        has_lane(profile, each)
        and refusal(profile, each, floor) is None
        and refused_by(rules, profile, each) is None
        and not policy.is_never(each)
        for each in serving
    ):
        return profile
    again = {f.pool for f in profile.fallbacks if f.reason in MAY_PASS}
    kept = tuple(pool for pool in profile.exclude_pools if pool not in again)
    return replace(profile, exclude_pools=kept)
