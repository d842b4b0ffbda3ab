"""Quotes: what requests would cost by several deadlines, by the decision that would be made.

Prices are whole nano-dollars. A quoted price is the expected cost with the policy's margin on it,
rounded up; whoever takes the quote pays what it cost in the end, and this price at most.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from math import ceil, floor

from policies.config.options import Option
from policies.fleet_state.candidate_load import PoolLoad, standing_in
from policies.placement.decide import Decision, decide
from policies.placement.inputs import Inputs, inputs_of
from policies.scoring.estimate import spread_of
from policies.scoring.promises import errors_of, times_for
from policies.scoring.situation import Situation
from topics import Profile
from topics.records.frozen import dataclass
from topics.records.money import NANO
from topics.records.quote_terms import Quoted

# Of the time to a deadline, the part in which a quote of it can be accepted.
VALID_SHARE = 0.05
# What is promised with less is nothing to pay for.
CHANCE_MIN = 0.5
# A chance is told to the fourth digit, rounded down.
CHANCE_STEPS = 10_000

InTier = Callable[[str], Sequence[Profile]]
"""Returns the requests of a question as they are in a tier."""


@dataclass(frozen=True, slots=True)
class PricedOffer:
    """The price of all requests of a question by one deadline in one tier.

    ``deadline`` is epoch seconds, from ``within_s`` where that is given: seconds from acceptance.
    ``nano_usd`` has the price of each request, and ``chance`` is the least of theirs.
    """

    tier: str
    deadline: float
    within_s: float | None
    chance: float
    valid_until: float
    nano_usd: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Shortfall:
    """The reason why requests that can be served are not promised.

    Attributes:
        chance: the best there is.
        needed: the least that is promised.
        ttft_s: the shortest TTFT that is wanted, seconds, if all would be likely enough without.
        tpot_s: likewise of TPOT. Without either it is the deadline.
    """

    chance: float
    needed: float = CHANCE_MIN
    ttft_s: float | None = None
    tpot_s: float | None = None


def price_nano(cost_usd: float, margin: float, limit_usd: float | None = None) -> int:
    """Return the quoted price of an expected cost, in nano-dollars, rounded up.

    Args:
        cost_usd: expected cost, US dollars.
        margin: part of it on top.
        limit_usd: what the client would pay at most; the price is no higher.
    """
    nano = ceil(Fraction(cost_usd) * (1 + Fraction(margin)) * NANO)
    return nano if limit_usd is None else min(nano, floor(Fraction(limit_usd) * NANO))


def bound_to(profile: Profile, quoted: Quoted) -> Profile:
    """Return a request that took a quote: its promise is the target of each decision on it."""
    return replace(profile, quote=quoted, target_chance=quoted.chance)


def menu(
    tagged: InTier,
    tiers: Sequence[str],
    deadlines: Sequence[float],
    windows_s: Sequence[float],
    here: Situation,
    now: float,
) -> tuple[list[PricedOffer], Decision | Shortfall | None]:
    """Return the offers for the requests of a question, and why there are no more, if so.

    That is the refusal of a request that no pool can serve, or what makes promises unlikely.

    Args:
        tagged: the requests in a tier.
        tiers: that are asked for, one at least.
        deadlines: that are asked for, epoch seconds.
        windows_s: the same in seconds from acceptance. Without either, the offers are the earliest
            and the cheapest with each of the policy's chances.
        here: the situation; it is only read.
        now: epoch seconds.
    """
    offers: dict[PricedOffer, None] = {}
    refusal: Decision | Shortfall | None = None
    for tier in tiers:
        desk = _Desk(tagged(tier), here, now)
        for chance in here.policy.quotes.chances:
            wanted: list[tuple[float, float | None]] = [
                *((deadline, None) for deadline in deadlines),
                *((now + window_s, window_s) for window_s in windows_s),
            ]
            if not wanted:
                wanted = [(now + span_s, span_s) for span_s in desk.spans_s(chance)]
            if not wanted:
                refusal = _worse(refusal, desk.shortfall(chance))
            for deadline, within_s in wanted:
                found = desk.offer(tier, deadline, within_s, chance)
                if isinstance(found, PricedOffer):
                    offers[found] = None
                else:
                    refusal = _worse(refusal, found)
    return list(offers), refusal


def _worse(known: Decision | Shortfall | None, found: Decision | Shortfall) -> Decision | Shortfall:
    """Return which of two reasons counts: that nothing serves it, else what comes closest."""
    if isinstance(found, Decision) or known is None:
        return found
    return known if isinstance(known, Decision) or known.chance >= found.chance else found


class _Desk:
    """Prices the requests of a question in one tier, each as if those before it were placed."""

    def __init__(self, profiles: Sequence[Profile], here: Situation, now: float) -> None:
        self._profiles = profiles
        self._here = here
        self._now = now
        self._inputs = [inputs_of(profile, here, now) for profile in profiles]

    def spans_s(self, chance: float) -> list[float]:
        """Return the seconds in which all can be promised with a chance: soonest, and cheapest."""
        ways = [self._ways(at, chance) for at in range(len(self._profiles))]
        if not all(ways):
            return []
        soonest = max(min(span_s for span_s, _ in each) for each in ways)
        cheapest = max(min(each, key=lambda way: way[::-1])[0] for each in ways)
        # The chance comes out as it went in, but for the last digits.
        return [span_s * (1.0 + 1e-9) for span_s in dict.fromkeys((soonest, cheapest))]

    def _ways(self, at: int, chance: float) -> list[tuple[float, float]]:
        """Return time and cost of each way to serve a request, promised with a chance."""
        profile, inputs, here = self._profiles[at], self._inputs[at], self._here
        quoted = bound_to(profile, Quoted("", 0, chance))
        decision = decide(quoted, inputs, here.options, here.policy, self._now)
        elapsed_s, longest_s = self._now - profile.created_at, profile.deadline - self._now
        serving = here.options.by_model.get(profile.model, ())
        spreads = {
            (o.pool, o.variant): spread_of(standing_in(inputs.loads, o), here.policy)
            for o in serving
        }
        found: list[tuple[float, float]] = []
        for each in decision.candidates:
            if each.finish_s is None or each.cost_usd is None:
                continue
            points = errors_of(here.policy, profile.task, each.path)
            spread = spreads[each.pool, each.model_variant]
            span_s = (each.finish_s - elapsed_s) * times_for(chance, points, spread)
            if span_s <= longest_s:
                found.append((span_s, each.cost_usd))
        return found

    def offer(
        self, tier: str, deadline: float, within_s: float | None, chance: float
    ) -> PricedOffer | Decision | Shortfall:
        """Return the offer of one deadline, or why there is none.

        Args:
            tier: its tier, in which the requests are.
            deadline: epoch seconds.
            within_s: the same from acceptance; None: it stays where it is, and what is left of it
                when it is accepted last is what is promised.
            chance: the cheapest ways with this chance are taken, or the likeliest.
        """
        valid_s = self._here.policy.quotes.valid_s
        if within_s is None:
            valid_s = min(valid_s, max(0.0, deadline - self._now) * VALID_SHARE)
        last = deadline if within_s is not None else deadline - valid_s
        profiles = [replace(profile, deadline=last) for profile in self._profiles]
        found = self._priced(profiles, chance)
        if isinstance(found, Decision):
            return found
        prices, least = found
        least = floor(least * CHANCE_STEPS) / CHANCE_STEPS
        if least < CHANCE_MIN:
            return self._shortfall(profiles, chance, least)
        return PricedOffer(tier, deadline, within_s, least, self._now + valid_s, tuple(prices))

    def shortfall(self, chance: float) -> Decision | Shortfall:
        """Return why nothing is promised with a chance by the deadlines of the classes."""
        found = self._priced(self._profiles, chance)
        return found if isinstance(found, Decision) else Shortfall(found[1], chance)

    def _priced(
        self, profiles: Sequence[Profile], chance: float
    ) -> tuple[list[int], float] | Decision:
        """Return the prices of all and their least chance, or the decision that refuses one."""
        here, now = self._here, self._now
        loads = {pool: load.copied() for each in self._inputs for pool, load in each.loads.items()}
        prices, least = [], 1.0
        for profile, inputs in zip(profiles, self._inputs, strict=True):
            wanted = bound_to(profile, Quoted("", 0, chance))
            seen = Inputs(loads, self._rate_per_s(profile, inputs), inputs.credit)
            decision = decide(wanted, seen, here.options, here.policy, now)
            promised = decision.promised
            if promised is None or promised.chance is None:
                return decision
            least = min(least, promised.chance)
            margin, limit_usd = here.policy.quotes.margin, profile.max_cost_usd
            prices.append(price_nano(promised.cost_usd, margin, limit_usd))
            if decision.option is not None and decision.estimate is not None:
                load = loads[decision.option.pool]
                _count(load, decision.option, decision.estimate.device_s, profile)
        return prices, least

    def _shortfall(self, profiles: Sequence[Profile], chance: float, least: float) -> Shortfall:
        """Return which wish keeps the chance below what a promise takes."""
        ttft_s = min((p.ttft_s for p in profiles if p.ttft_s is not None), default=None)
        tpot_s = min((p.tpot_s for p in profiles if p.tpot_s is not None), default=None)
        for first, each in dict.fromkeys(((ttft_s, None), (None, tpot_s), (ttft_s, tpot_s))):
            without = [
                replace(
                    profile,
                    ttft_s=profile.ttft_s if first is None else None,
                    tpot_s=profile.tpot_s if each is None else None,
                )
                for profile in profiles
            ]
            found = self._priced(without, chance)
            if not isinstance(found, Decision) and found[1] >= CHANCE_MIN:
                return Shortfall(least, CHANCE_MIN, first, each)
        return Shortfall(least)

    def _rate_per_s(self, profile: Profile, inputs: Inputs) -> float:
        """Return the rate of a request's group, with the company of its own question."""
        company = len(self._profiles) - 1
        own_per_s = company / profile.window_s if profile.window_s else 0.0
        return max(inputs.arrivals_per_s, own_per_s)


def _count(load: PoolLoad, option: Option, device_s: float, profile: Profile) -> None:
    """Add a request of a question to a load that no other decision sees."""
    replicas = max(1, load.workers) * option.replicas
    load.backlog_s += device_s / replicas
    load.kv_usage += profile.tokens / (option.kv_capacity_tokens * replicas)
    running = load.running_by_variant
    running[option.variant] = running.get(option.variant, 0) + profile.answers
    load.has_changed()
