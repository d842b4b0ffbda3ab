"""Members that are held, and the target that they are released to."""

from typing import Any

from decisions import target_in
from policy_cases import NOW, bulk

from policies import Member, Situation, Target
from policies.batching.groups import group_of
from topics import Profile

BUCKETS = (512, 2048)


def members(*requests: Profile) -> list[Member]:
    return [Member(each, group_of(each, BUCKETS), NOW, n) for n, each in enumerate(requests)]


def batch(size: int, **changes: Any) -> list[Member]:
    return members(*(bulk(id=f"r{n}", **changes) for n in range(size)))


def target_of(held: list[Member], where: Situation, now: float = NOW) -> Target:
    target = target_in(held, where, now)
    assert target is not None
    return target
