"""Decisions and targets in a situation, as a placer finds them, with nothing counted."""

from collections.abc import Sequence

from policies import (
    Decision,
    Member,
    Placer,
    Situation,
    Target,
    decide,
    inputs_of,
)
from policies.batching.groups import group_in
from topics import Profile


def decide_in(profile: Profile, where: Situation, now: float) -> Decision:
    """Return the decision on a request in a situation."""
    return decide(profile, inputs_of(profile, where, now), where.options, where.policy, now)


def target_in(members: Sequence[Member], where: Situation, now: float) -> Target | None:
    """Return where these members would go in a situation."""
    return Placer(where).target(members, now)


def group_there(profile: Profile, where: Situation) -> str:
    """Return the group of a request in a situation."""
    return group_in(profile, where.options, where.policy)
