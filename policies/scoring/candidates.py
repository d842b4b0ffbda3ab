"""Offers: the candidates that may be chosen, their prices, and the choice among them."""

from collections.abc import Iterator, Sequence
from math import exp
from typing import overload

from policies.config.options import ModelOptions, Option
from policies.scoring.estimate import Figures, Visit, candidate
from topics import Candidate
from topics.records.decision_rows import NUMBER_OF_PATH, Row, column_rows, refused_row
from topics.records.decision_tables import Tables
from topics.records.frozen import dataclass

COST, FINISH = 0, 3
"""Places of cost and finish in `Figures`."""


@dataclass(frozen=True, slots=True)
class Offers:
    """The candidates that may be chosen, in columns: an offer is one place in each of these lists.

    ``prices_usd`` are what they are compared by.
    """

    visits: list[Visit]
    figures: list[Figures]
    chances: list[float]
    prices_usd: list[float]

    def __len__(self) -> int:
        return len(self.visits)

    def option(self, at: int) -> Option:
        """Return the option of an offer."""
        return self.visits[at][0].option

    def is_held(self, at: int) -> bool:
        """Return whether an offer is to wait."""
        return self.visits[at][1] == "hold"

    def place(self, at: int) -> tuple[str, str]:
        """Return pool and variant of an offer."""
        return place_of(self.option(at))

    def only(self, kept: Sequence[int]) -> "Offers":
        """Return these of the offers."""
        return Offers(
            [self.visits[at] for at in kept],
            [self.figures[at] for at in kept],
            [self.chances[at] for at in kept],
            [self.prices_usd[at] for at in kept],
        )


def place_of(option: Option) -> tuple[str, str]:
    """Return pool and variant, by which no two options are the same."""
    return option.pool, option.variant


NO_OFFERS = Offers([], [], [], [])

Refused = tuple[Option, str]
"""An option that may not serve the request, and the reason code."""


class Candidates(Sequence[Candidate]):
    """The candidates of a decision, in the form of evidence, made when one is first asked for.

    Args:
        offers: those that could be chosen.
        best: the chosen one, which stands first.
        refused: the others, which stand last.
        elapsed_s: time from ``created_at`` to the decision.
        serving: the options that they are of; None: of no known model.
    """

    __slots__ = ("_best", "_elapsed_s", "_made", "_offers", "_refused", "_serving")

    def __init__(
        self,
        offers: Offers,
        best: int,
        refused: Sequence[Refused],
        elapsed_s: float,
        serving: ModelOptions | None,
    ) -> None:
        self._offers = offers
        self._best = best
        self._refused = refused
        self._elapsed_s = elapsed_s
        self._serving = serving
        self._made: tuple[Candidate, ...] | None = None

    def recorded(self, tables: Tables) -> tuple[list[Row], list[Row]] | None:
        """Return them as rows, with estimates and refused, and put their names into the tables.

        The same as `topics.records.decision_rows.candidate_rows` of the records, of which none is
        made. None where the names need more than the model's own tables.

        Raises:
            UnfitError: an estimate is beyond all bounds.
        """
        serving = self._serving
        if serving is None or serving.numbering.has_namesakes:
            return None
        numbering, offers = serving.numbering, self._offers
        pools, variants = numbering.pools, numbering.variants
        places = [
            (pools[to.option.pool], variants[to.option.variant], NUMBER_OF_PATH[path])
            for to, path, _, _, _ in offers.visits
        ]
        # Before anything may not fit: the inputs stand by these tables in any case.
        tables.take(numbering)
        rows = column_rows(places, offers.figures, offers.chances, self._elapsed_s)
        if rows:
            rows.insert(0, rows.pop(self._best))
        return rows, [
            refused_row(pools[option.pool], variants[option.variant], code)
            for option, code in self._refused
        ]

    def refusals(self) -> Iterator[tuple[str, str]]:
        """Yield the pool of each refused one, and the reason code."""
        for option, code in self._refused:
            yield option.pool, code

    def direct_costs(self) -> Iterator[tuple[str, float]]:
        """Yield pool and cost in US dollars of each that would go at once."""
        for visit, figures in zip(self._offers.visits, self._offers.figures, strict=True):
            if visit[1] == "direct":
                yield visit[0].option.pool, figures[COST]

    def records(self) -> tuple[Candidate, ...]:
        """Return them as records."""
        if self._made is None:
            offers, elapsed_s = self._offers, self._elapsed_s
            made = [
                candidate(standing.option, path, found, likely, elapsed_s)
                for (standing, path, _, _, _), found, likely in zip(
                    offers.visits, offers.figures, offers.chances, strict=True
                )
            ]
            if made:
                made.insert(0, made.pop(self._best))
            self._made = (*made, *(_refused(option, code) for option, code in self._refused))
        return self._made

    def __len__(self) -> int:
        return len(self._offers) + len(self._refused)

    @overload
    def __getitem__(self, at: int) -> Candidate: ...

    @overload
    def __getitem__(self, at: slice) -> Sequence[Candidate]: ...

    def __getitem__(self, at: int | slice) -> Candidate | Sequence[Candidate]:
        offers, best = self._offers, self._best
        if at == 0 and self._made is None and offers.visits:
            # The choice, which nearly everybody asks for, and few for the others.
            standing, path = offers.visits[best][:2]
            figures, likely = offers.figures[best], offers.chances[best]
            return candidate(standing.option, path, figures, likely, self._elapsed_s)
        return self.records()[at]

    def __iter__(self) -> Iterator[Candidate]:
        return iter(self.records())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and self.records() == tuple(other)

    def __hash__(self) -> int:
        return self.records().__hash__()

    def __repr__(self) -> str:
        return repr(self.records())


def _refused(option: Option, code: str) -> Candidate:
    return Candidate(
        pool=option.pool,
        model_variant=option.variant,
        precision=option.precision,
        region=option.region,
        path="direct",
        refused=code,
    )


def failure_rate(visit: Visit, figures: Figures) -> float:
    """Return the chance that a try gives no answer: it fails, or its replica is taken away."""
    standing = visit[0]
    per_s = standing.option.interruptions_per_s
    if not per_s:
        return standing.failure_rate
    exposed_s = max(0.0, figures[FINISH] - visit[3] - standing.option.notice_s)
    return 1.0 - (1.0 - standing.failure_rate) * exp(-per_s * exposed_s)


class SecondTries:
    """Expected cost of a failure of each offer.

    A fallback goes to another pool than the failed one: to the cheapest, or to the fastest if the
    cheapest could no longer finish before the deadline. If there is no other pool, the same one is
    tried again (`policies.placement.retry`). The first try is assumed to fail at its end, since it
    is paid for in full, and that leaves the second the least time. A request that no second try
    would save is charged the cost of the first once more, so that no place looks cheaper for that.
    """

    def __init__(self, offers: Offers, left_s: float, weight: float) -> None:
        self._offers = offers
        self._left_s = left_s
        self._weight = weight
        self._cheapest: tuple[int, int] | None = None
        self._fastest: tuple[int, int] | None = None

    def expected_usd(self, visit: Visit, figures: Figures) -> float:
        """Return the cost of an offer with the expected cost of its failure."""
        return figures[COST] + self.usd(visit, figures)

    def usd(self, visit: Visit, figures: Figures) -> float:
        """Return the cost of the second try of an offer times its probability and the weight."""
        standing = visit[0]
        likely = failure_rate(visit, figures) * self._weight
        if not likely:
            return 0.0
        pool, left_s = standing.option.pool, self._left_s - figures[FINISH]
        if self._cheapest is None:
            self._cheapest = _of_two_pools(self._offers, COST)
        second = self._outside(pool, self._cheapest)
        if second[FINISH] > left_s:
            if self._fastest is None:
                self._fastest = _of_two_pools(self._offers, FINISH)
            second = self._outside(pool, self._fastest)
            if second[FINISH] > left_s:
                second = figures
        return likely * second[COST]

    def _outside(self, pool: str, two: tuple[int, int]) -> Figures:
        """Return the figures of the first, or of the second if the first is of this pool."""
        return self._offers.figures[two[self._offers.option(two[0]).pool == pool]]


def _of_two_pools(offers: Offers, of: int) -> tuple[int, int]:
    """Return the minimum, and the minimum outside its pool; the same twice if there is none."""
    values = [figures[of] for figures in offers.figures]
    first = values.index(min(values))
    pool = offers.option(first).pool
    others = [at for at in range(len(values)) if offers.option(at).pool != pool]
    return first, min(others, key=values.__getitem__) if others else first


def choose(
    offers: Offers,
    target_chance: float,
    second_tries: SecondTries | None,
    ranks: Sequence[int] | None = None,
) -> int:
    """Return the cheapest offer that reaches the target; if none does, the best chance.

    Ties go to the earlier finish, then to the name, so that every machine decides alike.

    Args:
        offers: one at least.
        target_chance: target for the chance of meeting the SLO.
        second_tries: cost of a failure to add to each price; None if prices include it.
        ranks: place of each in the policy's order; those of the first that reach the target are
            left. None: there is no order.
    """
    chances, prices_usd = offers.chances, offers.prices_usd
    able = [at for at, chance in enumerate(chances) if chance >= target_chance]
    if not able:
        ranks = range(len(chances))
        return min(ranks, key=lambda at: (-chances[at], prices_usd[at], *_tie(offers, at)))
    if ranks is not None:
        first_rank = min(ranks[at] for at in able)
        able = [at for at in able if ranks[at] == first_rank]
    of_able = prices_usd if len(able) == len(chances) else [prices_usd[at] for at in able]
    first = _least(offers, able, of_able)
    if second_tries is None or not failure_rate(offers.visits[first], offers.figures[first]):
        return first
    # Whoever is dearer than this without a failure is so with one.
    visits, figures = offers.visits, offers.figures
    most_usd = prices_usd[first] + second_tries.usd(visits[first], figures[first])
    able = [at for at in able if prices_usd[at] <= most_usd]
    if len(able) == 1:
        return first
    with_failures_usd = [prices_usd[n] + second_tries.usd(visits[n], figures[n]) for n in able]
    return _least(offers, able, with_failures_usd)


def _least(offers: Offers, among: Sequence[int], prices_usd: Sequence[float]) -> int:
    lowest = min(prices_usd)
    # Two prices are seldom the same, so that the rest of the key is seldom asked for.
    if prices_usd.count(lowest) == 1:
        return among[prices_usd.index(lowest)]
    found = (at for at, usd in zip(among, prices_usd, strict=True) if usd == lowest)
    return min(found, key=lambda at: _tie(offers, at))


def _tie(offers: Offers, at: int) -> tuple[float, str, str, str]:
    option = offers.option(at)
    return (offers.figures[at][FINISH], option.pool, option.variant, offers.visits[at][1])
