"""Verdicts: what a comparison changes in the state of the test of its variant."""

from dataclasses import replace

from policies.quality.sequential_test import (
    ALL_STAKE,
    ALPHA,
    GROUPS_TESTED,
    alpha_of,
    drift_wealth,
    group_stake,
    is_won,
    sound_wealth,
)
from topics import Comparison, VariantQuality
from topics.records.quality import AnswerGroup, ComparisonTally, Verdict

# About so many of the newest comparisons make the recent mean.
RECENT = 100

UNGROUPED = "none"
"""The group of comparisons of words."""

Judged = tuple[str, str, str, str | None]
"""Pool, variant, reference and its pool: what has one test."""


def judged_of(of: Comparison | VariantQuality) -> Judged:
    """Return what a comparison, or a state, is about."""
    return of.pool, of.variant, of.reference, of.reference_pool


def begun(comparison: Comparison) -> VariantQuality:
    """Return the state of a test that has seen nothing."""
    pool, variant, reference, reference_pool = judged_of(comparison)
    return VariantQuality(pool, variant, reference, reference_pool, since=comparison.at)


def judge(before: VariantQuality, comparison: Comparison) -> VariantQuality:
    """Return the state after a comparison.

    While a variant isn't known to have drifted, both questions are asked; one that has drifted has
    to pass, which is asked from then on, of the answers that showed it.

    Args:
        before: the state of the same pool, variant and reference.
        comparison: the next one.
    """
    x, within = comparison.difference, comparison.within
    if x is None:
        return replace(before, at=comparison.at, uncompared=before.uncompared + 1)
    share = max(1 / RECENT, 1 / (before.samples + 1))
    tally = before.classes.get(comparison.task, ComparisonTally())
    after = replace(
        before,
        at=comparison.at,
        samples=before.samples + 1,
        within=within,
        recent=before.recent + share * (x - before.recent),
        classes=before.classes
        | {comparison.task: ComparisonTally(tally.samples + 1, tally.difference + x)},
    )
    group = UNGROUPED if comparison.answer_group is None else str(comparison.answer_group)
    if before.drifted_in in (None, group):
        after = replace(
            after,
            sound=sound_wealth(before.sound, before.sound_samples, x, within),
            sound_samples=before.sound_samples + 1,
        )
    if before.verdict == "drifted":
        # To pass again in error has to be as unlikely, each time.
        passed = is_won(after.sound, alpha_of(before.episode))
        return _renewed(after, before.episode + 1) if passed else after
    after = replace(
        after,
        drift=drift_wealth(before.drift, before.drift_samples, x, within, ALL_STAKE),
        drift_samples=before.drift_samples + 1,
        groups=_grouped(before, group, x, within),
    )
    wealth = [*after.drift, *(each for found in after.groups.values() for each in found.drift)]
    if is_won(wealth, alpha_of(before.episode)):
        return _reached(
            replace(after, sound=(), sound_samples=0, drifted_in=_richest(after)), "drifted"
        )
    if before.verdict == "open" and is_won(after.sound, ALPHA):
        return _reached(after, "as_reference")
    return after


def _grouped(before: VariantQuality, group: str, x: float, within: float) -> dict[str, AnswerGroup]:
    """Return the groups with one more difference in one of them."""
    had = before.groups.get(group)
    if had is None:
        if len(before.groups) == GROUPS_TESTED:
            return before.groups
        had = AnswerGroup(place=len(before.groups) + 1)
    drift = drift_wealth(had.drift, had.samples, x, within, group_stake(had.place))
    after = AnswerGroup(had.place, had.samples + 1, had.difference + x, drift)
    return before.groups | {group: after}


def _richest(state: VariantQuality) -> str | None:
    """Return the group whose bets have won most; None if those on all samples have."""
    wealth = {name: sum(group.drift) for name, group in state.groups.items()}
    best = max(wealth, key=lambda name: (wealth[name], name), default=None)
    return best if best is not None and wealth[best] > sum(state.drift) else None


def _renewed(state: VariantQuality, episode: int) -> VariantQuality:
    renewed = replace(state, episode=episode, drift=(), drift_samples=0, groups={}, drifted_in=None)
    return _reached(renewed, "as_reference")


def _reached(state: VariantQuality, verdict: Verdict) -> VariantQuality:
    return replace(state, verdict=verdict, since=state.at)
