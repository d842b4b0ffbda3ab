"""The sequential test of a variant: it may be looked at after each sample, and stay right.

Testing by betting (Waudby-Smith and Ramdas, "Estimating means of bounded random variables by
betting", 2024). A bet against "the mean difference is at most d" multiplies its wealth with
1 + b (x - d) / d at each difference x, a bet against "at least d" with 1 + b (d - x) / (1 - d).
Where the hypothesis holds, wealth is not expected to grow, whatever came before, so that by Ville's
inequality it ever reaches 1/alpha with a chance of at most alpha. Several bets share the wealth,
since the best b is unknown.

A variant may change at any time. So not all is staked at the first sample: at sample t the part
1 / (t (t + 1)) is, and these parts add up to one. A change after n samples is then found about
2 ln(n) / growth samples later than it would be at the beginning, and not after all the wealth that
was lost till then has been won back.

A variant may be broken for one answer alone, which a mean over all of them hides: one that never
says "flagged" is wrong as often as something is flagged. So a quarter of the wealth bets on all
samples, the rest on those with one answer of the reference each: the nth kind of answer that comes
up has a part in proportion to 1/n. What is refuted then is that the mean difference is at most d
for each answer, and so at most d in all.

A test that begins anew, after a drifted variant has passed, spends less of alpha: a variant that
answers as its reference does is ever called drifted with a chance of at most alpha in all.
"""

from collections.abc import Sequence

ALPHA = 0.01
"""Chance to ever call a variant drifted that is not, or passed that has drifted."""

GROUPS = 64
"""Groups of the reference's answers by their hash; several answers may share one."""

GROUPS_TESTED = 8
"""Of these, so many that come up first have bets of their own."""

ALL_STAKE = 0.25
"""Part of the wealth that bets on all samples."""

_SHARES = sum(1 / place for place in range(1, GROUPS_TESTED + 1))

BETS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Parts of the wealth that are staked, each by one bet."""

# Beyond this nothing is decided by it, and a float has an end.
_WEALTH_MAX = 1e12


def drift_wealth(
    wealth: Sequence[float],
    samples: int,
    difference: float,
    within: float,
    stake: float = 1.0,
) -> tuple[float, ...]:
    """Return the wealth of the bets that the mean difference is above ``within``.

    Args:
        wealth: before this sample, by bet; nothing at the beginning.
        samples: number of samples before this one.
        difference: the sample, 0 to 1.
        within: difference that is allowed for this sample, above 0 and below 1.
        stake: part of all wealth that these bets ever stake.
    """
    return _bet(wealth, samples, (difference - within) / within, stake)


def sound_wealth(
    wealth: Sequence[float], samples: int, difference: float, within: float
) -> tuple[float, ...]:
    """Return the wealth of the bets that the mean difference is below ``within``, likewise."""
    return _bet(wealth, samples, (within - difference) / (1.0 - within))


def is_won(wealth: Sequence[float], alpha: float = ALPHA) -> bool:
    """Return True if the bets together have refuted what they are against."""
    return sum(wealth) >= len(BETS) / alpha


def alpha_of(episode: int) -> float:
    """Return what the test may spend of ALPHA the nth time that it begins, from 1."""
    return ALPHA / (episode * (episode + 1))


def group_stake(place: int) -> float:
    """Return the part of the wealth that bets on the nth group that came up, from 1."""
    return (1.0 - ALL_STAKE) / _SHARES / place


def _bet(
    wealth: Sequence[float], samples: int, gain: float, stake: float = 1.0
) -> tuple[float, ...]:
    begun = samples + 1
    added = stake / (begun * (begun + 1))
    before = wealth or (0.0,) * len(BETS)
    return tuple(
        min(_WEALTH_MAX, (had + added) * (1.0 + bet * gain))
        for had, bet in zip(before, BETS, strict=True)
    )
