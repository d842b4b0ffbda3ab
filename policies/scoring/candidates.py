"""Offers: the candidates that may be chosen, their prices, and the choice among them."""

from collections.abc import Callable, Sequence
from operator import attrgetter

from policies.fleet_state.candidate_load import Standing
from policies.scoring.estimate import Estimate
from topics import Candidate
from topics.records.frozen import dataclass

_COST, _FINISH = attrgetter("estimate.cost_usd"), attrgetter("estimate.finish_s")


@dataclass(frozen=True, slots=True)
class Offer:
    """A candidate that may be chosen, at ``price_usd``."""

    candidate: Candidate
    standing: Standing
    estimate: Estimate
    price_usd: float


class SecondTries:
    """Expected cost of a failure of each offer.

    A fallback goes to another pool than the failed one: to the cheapest, or to the fastest if the
    cheapest could no longer finish before the deadline. If there is no other pool, the same one is
    tried again (`policies.placement.retry`). The first try is assumed to fail at its end, since it
    is paid for in full, and that leaves the second the least time. A request that no second try
    would save is charged the cost of the first once more, so that no place looks cheaper for that.
    """

    def __init__(self, offers: Sequence[Offer], left_s: float, weight: float) -> None:
        self._offers = offers
        self._left_s = left_s
        self._weight = weight
        self._cheapest: Sequence[Offer] = ()
        self._fastest: Sequence[Offer] = ()

    def expected_usd(self, offer: Offer) -> float:
        """Return the cost of an offer with the expected cost of its failure."""
        return offer.estimate.cost_usd + self.usd(offer)

    def usd(self, offer: Offer) -> float:
        """Return the cost of the second try times its probability and the weight."""
        likely = offer.standing.failure_rate * self._weight
        if not likely:
            return 0.0
        pool, left_s = offer.candidate.pool, self._left_s - offer.estimate.finish_s
        if not self._cheapest:
            self._cheapest = _of_two_pools(self._offers, _COST)
        second = self._cheapest[self._cheapest[0].candidate.pool == pool]
        if second.estimate.finish_s > left_s:
            if not self._fastest:
                self._fastest = _of_two_pools(self._offers, _FINISH)
            second = self._fastest[self._fastest[0].candidate.pool == pool]
            if second.estimate.finish_s > left_s:
                second = offer
        return likely * second.estimate.cost_usd


def _of_two_pools(offers: Sequence[Offer], key: Callable[[Offer], float]) -> Sequence[Offer]:
    """Return the minimum, and the minimum outside its pool; the same twice if there is none."""
    first = min(offers, key=key)
    pool = first.candidate.pool
    others = [o for o in offers if o.candidate.pool != pool]
    return first, min(others, key=key) if others else first


def choose(
    offers: Sequence[Offer], target_chance: float, second_tries: SecondTries | None
) -> Offer:
    """Return the cheapest offer that reaches the target; if none does, the best chance.

    Ties go to the earlier finish, then to the name, so that every machine decides alike.

    Args:
        offers: one at least.
        target_chance: target for the chance of meeting the SLO.
        second_tries: cost of a failure to add to each price; None if prices include it.
    """
    able = [o for o in offers if (o.candidate.chance or 0.0) >= target_chance]
    if not able:
        return min(offers, key=lambda o: (-(o.candidate.chance or 0.0), o.price_usd, *_tie(o)))
    first = _least(able, [o.price_usd for o in able])
    if second_tries is None or not first.standing.failure_rate:
        return first
    # Whoever is dearer than this without a failure is so with one.
    most_usd = first.price_usd + second_tries.usd(first)
    able = [o for o in able if o.price_usd <= most_usd]
    if len(able) == 1:
        return first
    return _least(able, [o.price_usd + second_tries.usd(o) for o in able])


def _least(offers: Sequence[Offer], prices_usd: Sequence[float]) -> Offer:
    lowest = min(prices_usd)
    # Two prices are seldom the same, so that the rest of the key is seldom asked for.
    found = [o for o, usd in zip(offers, prices_usd, strict=True) if usd == lowest]
    return found[0] if len(found) == 1 else min(found, key=_tie)


def _tie(offer: Offer) -> tuple[float, str, str, str]:
    c = offer.candidate
    return (offer.estimate.finish_s, c.pool, c.model_variant, c.path)
