"""The demo's checks of its own outcome."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shunter.demo.ledger import Ledger
from shunter.demo.rules import Rules
from topics import Placement

EXAMPLES_MAX = 5


@dataclass(frozen=True, slots=True)
class Verdict:
    """The findings. ``problems`` describes them for people, with examples; empty if all is well.

    ``lost`` counts requests without result and dead letter, ``duplicated`` results beyond the first
    of a request, ``constraint_violations`` results and steps of evidence whose placement breaks a
    constraint, ``unexplained`` requests whose evidence lacks their decision or their end.
    """

    lost: int
    duplicated: int
    dead_lettered: int
    constraint_violations: int
    unexplained: int
    problems: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """True if there are no problems."""
        return not self.problems


def judge(requests: Mapping[str, Mapping[str, Any]], ledger: Ledger, rules: Rules) -> Verdict:
    """Return whether each published request, by id, had one end and no forbidden placement."""
    dead = [name for name in ledger.dead_letters if name in requests]
    lost = [name for name in requests if name not in ledger.results and name not in dead]
    extra = {name: count - 1 for name, count in ledger.result_count.items() if count > 1}
    both = [name for name in dead if name in ledger.results]
    unknown = [name for name in ledger.results if name not in requests]
    broken = list(_broken(requests, ledger, rules))
    unexplained = [name for name in ledger.results if not _is_explained(name, ledger)]
    problems = [
        *_told("without a result", lost),
        *_told("with more than one result", extra),
        *_told("with a result and a dead letter", both),
        *_told("that ended as a dead letter", dead),
        *_told("with a result, that nobody published", unknown),
        *_told("placed where their constraints forbid", broken),
        *_told("whose evidence lacks the decision or the end", unexplained),
    ]
    return Verdict(
        lost=len(lost),
        duplicated=sum(extra.values()) + len(both),
        dead_lettered=len(dead),
        constraint_violations=len(broken),
        unexplained=len(unexplained),
        problems=problems,
    )


def _placements(ledger: Ledger) -> Iterable[tuple[str, Placement | None]]:
    for name, result in ledger.results.items():
        yield name, result.placement
    for name, steps in ledger.evidence.items():
        for step in steps:
            yield name, step.placement


def _broken(
    requests: Mapping[str, Mapping[str, Any]], ledger: Ledger, rules: Rules
) -> Iterable[str]:
    for name, placement in _placements(ledger):
        if placement is None or name not in requests:
            continue
        if found := rules.broken(requests[name], placement):
            yield f"{name} ({'; '.join(found)})"


def _is_explained(name: str, ledger: Ledger) -> bool:
    """Return whether the evidence has a decision, and an end that agrees with the result."""
    result, steps = ledger.results[name], ledger.evidence.get(name, ())
    counts: Counter[str] = Counter(step.step for step in steps)
    end = "executed" if result.status == "completed" else result.status
    was_placed = counts["placed"] + counts["released"] > 0 or result.placement is None
    return was_placed and counts[end] == 1


def _told(what: str, found: Iterable[str]) -> Iterable[str]:
    names = list(found)
    if names:
        shown = ", ".join(names[:EXAMPLES_MAX])
        more = f" and {len(names) - EXAMPLES_MAX} more" if len(names) > EXAMPLES_MAX else ""
        yield f"{len(names)} {what}: {shown}{more}"
