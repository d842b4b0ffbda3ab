"""Windows with work in them, targets for it, and what comes due."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from policy_cases import NOW, bulk, some_options

from policies import Expelled, Member, Release, Target, Windows
from policies.scoring.estimate import Estimate

OPTION = some_options().of("board", "llama-int8")
MARGIN_S = 1.0
RETRY_S = 0.25
SERVICE_S = 4.0
End = Release | Expelled
TargetOf = Callable[[Sequence[Member]], Target | None]


def target(**changes: Any) -> Target:
    """A target for up to eight members, which takes four seconds."""
    service_s = changes.pop("service_s", SERVICE_S)
    found = Target(
        OPTION,
        "batch",
        members_max=8,
        tokens_max=100_000,
        estimate=Estimate(0.001, 1.0, 0.01, service_s, 0.1, service_s, 0.01),
        chance=0.99,
        candidates=(),
        asked=1000,
    )
    return replace(found, **changes)


def always(**changes: Any) -> TargetOf:
    found = target(**changes)
    return lambda members: found


def windows(members_max: int = 32) -> Windows:
    return Windows(members_max=members_max, margin_s=MARGIN_S, retry_s=RETRY_S)


def member(number: int, *, group: str = "g", held_at: float = NOW, **changes: Any) -> Member:
    """Work that came at `held_at`, may wait 30 s, and has an hour."""
    changes = {"id": f"r{number:04}", "deadline": held_at + 3600, "created_at": held_at} | changes
    return Member(bulk(**changes), group, held_at, number)


def filled(count: int, *, into: Windows | None = None, **changes: Any) -> Windows:
    held = windows() if into is None else into
    for number in range(count):
        held.add(member(number, **changes))
    return held


def commit(held: Windows, ends: Sequence[End]) -> None:
    for end in ends:
        for each in end.members if isinstance(end, Release) else (end.member,):
            assert held.remove(each.profile.id) is not None


def run(held: Windows, now: float, target_of: TargetOf) -> list[End]:
    """Everything due, committed."""
    ends = list(held.due(now, target_of))
    commit(held, ends)
    return ends


def releases(ends: Sequence[End]) -> list[Release]:
    assert all(isinstance(end, Release) for end in ends)
    return [end for end in ends if isinstance(end, Release)]
