"""Quotes in a backtest: requests take one from their menu, and what was promised is held to it."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from math import ceil, inf, log
from typing import Any, NamedTuple

from policies.backtest.outcome import ReplayOutcome
from policies.backtest.route import Shunter
from policies.backtest.workload import Tagger
from policies.config.options import Options
from policies.config.policy import Policy
from policies.config.quotes import ANY_CLASS, PromiseErrors
from policies.placement.decide import Decision
from policies.placement.quoting import bound_to, menu, price_nano
from topics import Profile
from topics.records.frozen import dataclass
from topics.records.money import NANO
from topics.records.quote_terms import Quoted, charge

# Chances at which errors are told, and the fewest requests that tell of the rarest: of so many one
# is late. With fewer a class has the errors of all.
LEVELS = (0.1, 0.25, 0.5, 0.7, 0.8, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99, 0.995)
REQUESTS_MIN = 200
# The fewest quotes of one chance that tell its error by themselves.
PROMISED_MIN = 100
# Added to an error of which only is known that it was more than was promised for.
STEP = 0.1
# Least distance of two errors.
STEP_MIN = 0.001
# Margins of a price of which is told what they would have brought in.
MARGINS = (0.25, 0.5, 1.0, 2.0, 4.0)
_SHARE_OF = 2**32


@dataclass(frozen=True, slots=True)
class Taken:
    """A quote that a request took, and the time to the finish and the cost behind it."""

    quoted: Quoted
    task: str
    path: str
    at: float
    expected_s: float
    cost_usd: float
    deadline: float


class QuotingShunter(Shunter):
    """Shunter, of whose requests some ask for a menu and take one offer of it.

    Args:
        options: the options of the fleet.
        policy: the policy.
        tag: tags a request.
        share: part of the requests that ask, chosen by their ids.
        draw: number of the choice: with another one others ask, and take other offers.
    """

    def __init__(
        self, options: Options, policy: Policy, tag: Tagger, share: float, draw: int = 0
    ) -> None:
        super().__init__(options, policy, tag)
        self._share = share
        self._draw = draw
        self.taken: dict[str, Taken] = {}

    def tagged(self, profile: Profile, now: float) -> Profile:
        """Return a request as it is bound by the quote that it takes, if it takes one."""
        profile = super().tagged(profile, now)
        # Of a CRC another number would change the same bits of all ids.
        digest = blake2b(f"{profile.id} {self._draw}".encode(), digest_size=4).digest()
        drawn = int.from_bytes(digest, "big")
        if drawn >= self._share * _SHARE_OF:
            return profile
        offers, _ = menu(lambda _: [profile], [profile.tier], [], [], self.situation, now)
        if not offers:
            return profile
        # Another part of the same draw, so that each line is taken as often.
        offer = offers[drawn // 7 % len(offers)]
        quoted = Quoted(profile.id, offer.nano_usd[0], offer.chance)
        return bound_to(replace(profile, deadline=offer.deadline), quoted)

    def decided(self, profile: Profile, decision: Decision, now: float) -> None:
        """Note what the promise of a quoted request rests on."""
        promised = decision.promised
        if profile.quote is None or profile.attempt > 1 or promised is None:
            return
        path = "hold" if decision.action == "hold" else "direct"
        expected_s = promised.finish_s - (now - profile.created_at)
        self.taken[profile.id] = Taken(
            profile.quote, profile.task, path, now, expected_s, promised.cost_usd, profile.deadline
        )


class QuoteEnd(NamedTuple):
    """The end of a request that took a quote.

    ``error`` is ln(actual / expected) time to the finish, infinite if it ended without an answer.
    """

    taken: Taken
    error: float
    is_kept: bool
    cost_nano_usd: int


def ends_of(outcomes: Iterable[ReplayOutcome], taken: Mapping[str, Taken]) -> list[QuoteEnd]:
    """Return what came of the requests of a run that took a quote."""
    return [_end(each, taken[each.profile.id]) for each in outcomes if each.profile.id in taken]


def _end(outcome: ReplayOutcome, own: Taken) -> QuoteEnd:
    at, error, is_kept = outcome.finished_s, inf, False
    if outcome.status == "completed" and at is not None:
        is_kept = at <= own.deadline
        if own.expected_s > 0:
            error = log(max(1e-9, at - own.at) / own.expected_s)
    return QuoteEnd(own, error, is_kept, round(outcome.cost_usd * NANO))


def kept_by_chance(ends: Iterable[QuoteEnd]) -> list[dict[str, Any]]:
    """Return how many promises there were by chance, and what share of them was kept."""
    by_chance: dict[float, list[bool]] = defaultdict(list)
    for end in ends:
        by_chance[round(end.taken.quoted.chance, 2)].append(end.is_kept)
    return [
        {"chance": chance, "promises": len(found), "kept": sum(found) / len(found)}
        for chance, found in sorted(by_chance.items(), reverse=True)
    ]


def quote_scores(ends: Sequence[QuoteEnd]) -> dict[str, Any]:
    """Return by promised chance what was kept, and what was quoted, paid and spent in all."""
    quoted_nano = charged_nano = cost_nano = over = 0
    by_margin = dict.fromkeys(MARGINS, 0)
    for own, *_, spent_nano in ends:
        paid = charge(own.quoted, spent_nano)
        quoted_nano += paid.quoted_nano_usd
        charged_nano += paid.charged_nano_usd
        cost_nano += paid.cost_nano_usd
        for margin in MARGINS:
            other = replace(own.quoted, nano_usd=price_nano(own.cost_usd, margin))
            by_margin[margin] += charge(other, paid.cost_nano_usd).charged_nano_usd
        over += paid.cost_nano_usd > paid.quoted_nano_usd
    return {
        "quotes": len(ends),
        "by_chance": kept_by_chance(ends),
        "quoted_usd": quoted_nano / NANO,
        "charged_usd": charged_nano / NANO,
        "cost_usd": cost_nano / NANO,
        "cost_more_than_quoted": over,
        "charged_share_by_margin": {
            str(margin): nano / cost_nano if cost_nano else None
            for margin, nano in by_margin.items()
        },
    }


def measured_errors(
    ends: Iterable[QuoteEnd], before: Mapping[str, PromiseErrors], step: float = 1.0
) -> dict[str, PromiseErrors]:
    """Return the errors of promises by class, and those of all under ``any``.

    The error at a chance that was promised is that of the quotes that were promised it: they have
    another deadline than others, and what has more time is held and served later. Of one that ended
    without an answer only is known that it took longer than it had.

    Args:
        ends: what came of the quotes that tell them.
        before: the errors that they were made with.
        step: the part of the way from those to what was found that is gone.
    """
    found: dict[tuple[str, str], dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for own, error, *_ in ends:
        for task in (own.task, ANY_CLASS):
            found[task, own.path][round(own.quoted.chance, 2)].append(error)
    told: dict[str, dict[str, Any]] = defaultdict(dict)
    for (task, path), by_chance in sorted(found.items()):
        if task == ANY_CLASS or sum(map(len, by_chance.values())) >= REQUESTS_MIN:
            told[task][path] = _points(by_chance, dict(_points_before(before, task, path)), step)
    return {task: PromiseErrors(**paths) for task, paths in told.items()}


def _points_before(
    before: Mapping[str, PromiseErrors], task: str, path: str
) -> Sequence[tuple[float, float]]:
    own = before.get(task) or before.get(ANY_CLASS)
    return () if own is None else own.hold if path == "hold" else own.direct


def _points(
    by_chance: Mapping[float, Sequence[float]], before: Mapping[float, float], step: float
) -> tuple[tuple[float, float], ...]:
    everyone = sorted(error for errors in by_chance.values() for error in errors)
    found: dict[float, float] = {}
    for level in LEVELS:
        own = by_chance.get(level, ())
        ordered = sorted(own) if len(own) >= PROMISED_MIN else everyone
        # One more than there are: what comes next may be worse than all of them.
        rank = ceil(level * (len(ordered) + 1))
        if rank > len(ordered):
            break
        error = ordered[rank - 1]
        if error == inf:
            error = before.get(level, max(found.values(), default=0.0)) + STEP
        elif level in before:
            error = before[level] + step * (error - before[level])
        found[level] = error
    promised = [level for level in found if len(by_chance.get(level, ())) >= PROMISED_MIN]
    points: list[tuple[float, float]] = []
    least = -inf
    for level, error in found.items():
        # Those of all quotes stand between the errors of chances that were promised.
        most = min((found[each] for each in promised if each > level), default=inf)
        own_error = error if level in promised else min(error, most - STEP_MIN)
        least = round(max(own_error, least + STEP_MIN), 4)
        points.append((level, least))
    return tuple(points)
