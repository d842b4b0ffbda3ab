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

A test that begins anew, after a drifted variant has passed, spends less of alpha: a variant that
answers as its reference does is ever called drifted with a chance of at most alpha in all.
"""

from collections.abc import Sequence

ALPHA = 0.01
"""Chance to ever call a variant drifted that is not, or passed that has drifted."""

BETS = (0.05, 0.1, 0.2, 0.4, 0.6, 0.8)
"""Parts of the wealth that are staked, each by one bet."""

# Beyond this nothing is decided by it, and a float has an end.
_WEALTH_MAX = 1e12


def drift_wealth(
    wealth: Sequence[float], samples: int, difference: float, within: float
) -> tuple[float, ...]:
    """Return the wealth of the bets that the mean difference is above ``within``.

    Args:
        wealth: before this sample, by bet; nothing at the beginning.
        samples: number of samples before this one.
        difference: the sample, 0 to 1.
        within: difference that is allowed for this sample, above 0 and below 1.
    """
    return _bet(wealth, samples, (difference - within) / within)


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


def _bet(wealth: Sequence[float], samples: int, gain: float) -> tuple[float, ...]:
    begun = samples + 1
    added = 1.0 / (begun * (begun + 1))
    before = wealth or (0.0,) * len(BETS)
    return tuple(
        min(_WEALTH_MAX, (had + added) * (1.0 + bet * gain))
        for had, bet in zip(before, BETS, strict=True)
    )
