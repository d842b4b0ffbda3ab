"""Verdicts: what a comparison changes in the state of the test of its variant."""

from dataclasses import replace

from policies.quality.sequential_test import ALPHA, alpha_of, drift_wealth, is_won, sound_wealth
from topics import Comparison, VariantQuality
from topics.records.quality import ComparisonTally, Verdict

# About so many of the newest comparisons make the recent mean.
RECENT = 100

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
    to pass, which is asked from then on.

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
        sound=sound_wealth(before.sound, before.sound_samples, x, within),
        sound_samples=before.sound_samples + 1,
        classes=before.classes
        | {comparison.task: ComparisonTally(tally.samples + 1, tally.difference + x)},
    )
    if before.verdict == "drifted":
        # To pass again in error has to be as unlikely, each time.
        passed = is_won(after.sound, alpha_of(before.episode))
        return _renewed(after, before.episode + 1) if passed else after
    after = replace(
        after,
        drift=drift_wealth(before.drift, before.drift_samples, x, within),
        drift_samples=before.drift_samples + 1,
    )
    if is_won(after.drift, alpha_of(before.episode)):
        return _reached(replace(after, sound=(), sound_samples=0), "drifted")
    if before.verdict == "open" and is_won(after.sound, ALPHA):
        return _reached(after, "as_reference")
    return after


def _renewed(state: VariantQuality, episode: int) -> VariantQuality:
    renewed = replace(state, episode=episode, drift=(), drift_samples=0)
    return _reached(renewed, "as_reference")


def _reached(state: VariantQuality, verdict: Verdict) -> VariantQuality:
    return replace(state, verdict=verdict, since=state.at)
