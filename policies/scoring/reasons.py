"""Reasons: why each candidate of a decision was chosen or not, for its evidence."""

from collections.abc import Iterator

from topics import Candidate, Evidence

# Steps that are a choice; of what ended here none of the candidates was.
CHOICES = frozenset({"placed", "held", "released"})


def has_choice(evidence: Evidence) -> bool:
    """Return True if the first candidate was chosen."""
    return evidence.promised is not None and evidence.step in CHOICES


def reasons(evidence: Evidence) -> Iterator[str]:
    """Yield the reason code of each candidate, the choice's first.

    The choice has the decision's own code; a refused candidate has that of its refusal. Any other
    has ``lower_chance`` if none was likely enough, else ``chance_too_low``, ``costs_more``, or
    ``later_in_order`` (cheaper, and of a later group of the policy's order) or
    ``counts_as_dearer``: it costs less than the choice, but not with the cost of a failure and the
    value of its room to others.
    """
    candidates = evidence.candidates
    target = None if evidence.profile is None else evidence.profile.target_chance
    chosen = _chosen(evidence, target) if has_choice(evidence) else None
    first_usd = candidates[0].cost_usd if candidates else None
    for number, candidate in enumerate(candidates):
        if number == 0 and chosen is not None:
            yield chosen
        else:
            yield candidate.refused or _passed_over(candidate, chosen, target, first_usd)


def _chosen(evidence: Evidence, target: float | None) -> str:
    """Return the reason of the first candidate; a release's reason says why it was made then."""
    if evidence.step != "released":
        return evidence.reason or ""
    is_unlikely = any(_is_unlikely(each, target) for each in evidence.candidates[:1])
    return "best_chance" if is_unlikely else "cheapest_in_time"


def _passed_over(
    candidate: Candidate, chosen: str | None, target: float | None, first_usd: float | None
) -> str:
    if chosen == "best_chance":
        return "lower_chance"
    if _is_unlikely(candidate, target):
        return "chance_too_low"
    cost = candidate.cost_usd
    is_cheaper = cost is not None and first_usd is not None and cost < first_usd
    if is_cheaper and chosen == "first_in_order":
        return "later_in_order"
    return "counts_as_dearer" if is_cheaper else "costs_more"


def _is_unlikely(candidate: Candidate, target: float | None) -> bool:
    return target is not None and candidate.chance is not None and candidate.chance < target
