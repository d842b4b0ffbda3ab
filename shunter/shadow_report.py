"""Differences between a second policy and the policy in force, per class, from the evidence."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import msgspec

from streams.evidence.projection import (
    SeenCandidate,
    SeenEnvelope,
    SeenPlacement,
    candidates_of,
    read_choice,
)
from topics import Shadow
from topics.records.decision_reading import RowsOfDecision

ALL = "all"
# The step that a decision on a request leads to.
_LEADS_TO = {"place": "placed", "hold": "held", "reject": "rejected", "expire": "expired"}


class _Decision(msgspec.Struct):
    """A view of a step with fewer members than any other; those take a third longer to read."""

    step: str
    task: str | None = None
    candidates: tuple[SeenCandidate, ...] = ()
    promised: SeenEnvelope | None = None
    placement: SeenPlacement | None = None
    shadow: Shadow | None = None
    decision: RowsOfDecision | None = None


@dataclass(slots=True)
class Regret:
    """Decisions of one class that a second policy made too.

    ``of`` says which: those on requests, or the releases of held ones, member by member. The two
    don't add up: requests held and released are in both. ``differs`` counts those in which it would
    have done something else, or it elsewhere. Costs are US dollars as both policies estimated them,
    of the decisions in which both would have served (``both_served``). Attainment is the mean
    chance to meet the SLO by each policy's estimate, over all decisions; unserved requests have
    none.
    """

    shadow: str
    task: str
    of: str = "requests"
    decisions: int = 0
    differs: int = 0
    both_served: int = 0
    live_usd: float = 0.0
    shadow_usd: float = 0.0
    live_chances: float = 0.0
    shadow_chances: float = 0.0

    @property
    def regret_usd(self) -> float:
        """The live policy's cost beyond the shadow's; negative if it is the cheaper one."""
        return self.live_usd - self.shadow_usd

    def add(self, step: _Decision, shadow: Shadow) -> None:
        """Count one decision."""
        chosen: SeenPlacement | SeenCandidate | None = step.placement
        if chosen is None and step.promised and step.candidates:
            chosen = step.candidates[0]
        live = (step.step, *((chosen.pool, chosen.model_variant) if chosen else (None, None)))
        # A request at its last attempt fails where a first one is rejected.
        would = _LEADS_TO[shadow.action]
        if would == "rejected" and step.step == "failed":
            would = "failed"
        if would == "placed" and step.step == "released":
            would = "released"
        self.decisions += 1
        self.differs += live != (would, shadow.pool, shadow.model_variant)
        if step.promised is not None and shadow.cost_usd is not None:
            self.both_served += 1
            self.live_usd += step.promised.cost_usd
            self.shadow_usd += shadow.cost_usd
        self.live_chances += (step.promised and step.promised.chance) or 0.0
        self.shadow_chances += shadow.chance or 0.0

    def as_dict(self) -> dict[str, Any]:
        """Return the figures for programs."""
        figures = asdict(self)
        live, shadow = figures.pop("live_chances"), figures.pop("shadow_chances")
        return figures | {
            "regret_usd": self.regret_usd,
            "live_attainment": live / self.decisions,
            "shadow_attainment": shadow / self.decisions,
        }


class ShadowReport:
    """The regret of each class, and of all, under each version of a shadow so far.

    Releases are listed separately, after the decisions on requests.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[str, bool, bool, str], Regret] = {}
        self._decoder = msgspec.json.Decoder(_Decision)

    def add(self, value: bytes) -> None:
        """Count a piece of evidence, if a second policy decided too."""
        try:
            step = self._decoder.decode(value)
            decision = step.decision
            if decision is not None and step.shadow is not None:
                read_choice(step, decision)
                step.candidates = step.candidates or candidates_of(decision)
        except msgspec.MsgspecError:
            # The verifier handles other records of the topic.
            return
        if step.shadow is None:
            return
        version = step.shadow.policy_version
        of = "releases" if step.step == "released" else "requests"
        for task, is_total in ((step.task or "", False), (ALL, True)):
            key = (version, of == "releases", is_total, task)
            self._found.setdefault(key, Regret(version, task, of)).add(step, step.shadow)

    def rows(self) -> Iterator[Regret]:
        """Yield class by class, the total last, one version after the other."""
        for key in sorted(self._found):
            yield self._found[key]
