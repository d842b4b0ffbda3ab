"""The programme of a plan: no fleet that serves all of it in time is cheaper than its bound.

It is the backtest's bound on the work of requests (`shunter.backtest.bound_work`) with the replicas
of each pool as whole variables, over the busiest spans of time: what must begin and end within a
span keeps the replicas busy for no longer than it lasts. With a pool or region gone the others must
bear all of it, each such case with shares of its own.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from policies import Fleet, Options, compile_options
from policies.backtest.workload import profiles_of
from policies.scoring.constraints import refusal
from shunter.backtest.bound_streaming import latest_end_s
from shunter.backtest.bound_work import add_work
from shunter.backtest.demand import Demand, able
from shunter.backtest.programme import Programme
from shunter.backtest.suite import Setting
from shunter.plan.market import (
    Market,
    devices_of,
    offers_of,
    replicas_max,
    site_limits,
)

SPANS_S = (30.0, 120.0)
# So many of each length, the busiest, besides the whole trace. To leave one out lowers the bound.
SPANS_EACH = 2
# Requests of a span that count, those with the most tokens; to leave one out lowers the bound.
COUNTED_MAX = 2_000


class Capacity(NamedTuple):
    """The solution of the programme.

    Attributes:
        replicas: by pool, of the cheapest fleet that bears the work.
        bound_usd_per_hour: no fleet that serves all in time is cheaper.
        unservable: requests that no pool could serve in time, whatever its size.
    """

    replicas: dict[str, int]
    bound_usd_per_hour: float
    unservable: int


@dataclass(frozen=True, slots=True)
class BusySpan:
    """A span of time, in seconds since the trace's start."""

    from_s: float
    to_s: float

    def has(self, demand: Demand) -> bool:
        """Return whether a request comes and must end within it."""
        return self.from_s <= demand.profile.created_at and latest_end_s(demand) <= self.to_s


def capacity(
    setting: Setting, market: Market, gone: Sequence[Collection[str]], seconds: float
) -> Capacity:
    """Return the bound, and the fleet of the programme.

    Args:
        setting: trace, fleet and policy; the replicas of its pools don't count.
        market: what may be rented.
        gone: the cases to bear besides the usual one: pools that are unavailable together.
        seconds: longest time for the solver; where it is over, the bound is what it has by then.

    Raises:
        NoBoundError: scipy is missing, or nothing that may be rented bears the work.
    """
    fleet = setting.fleet
    # One replica of each: a pool's work is counted in replica-seconds.
    single = {
        name: pool.model_copy(update={"count": devices_of(pool)})
        for name, pool in fleet.pools.items()
    }
    options = compile_options(fleet.model_copy(update={"pools": single}))
    profiles = profiles_of(setting.arrivals, fleet, setting.policy)
    demands = [
        Demand(
            profile,
            profile.input_tokens,
            arrival.output_tokens,
            setting.policy.floor_of(profile),
        )
        for profile, arrival in zip(profiles, setting.arrivals, strict=True)
    ]
    programme = Programme()
    rented = _rent_columns(programme, fleet, market)
    busiest = [(span, [d for d in demands if span.has(d)]) for span in _spans(demands)]
    for case in [(), *gone]:
        for span, here in busiest:
            _bear(programme, rented, options, here, case, span)
    found = programme.solve_whole(seconds)
    replicas = {
        pool: round(sum(found.values[column] for column in columns))
        for pool, columns in rented.items()
    }
    unservable = sum(not any(True for _ in able(demand, options)) for demand in demands)
    return Capacity(replicas, found.bound, unservable)


def servable_without(setting: Setting, case: Collection[str]) -> set[str]:
    """Return the ids of the requests that some pool which is not gone might serve."""
    options = compile_options(setting.fleet)
    return {
        profile.id
        for profile in profiles_of(setting.arrivals, setting.fleet, setting.policy)
        if any(
            option.pool not in case
            and refusal(profile, option, setting.policy.floor_of(profile)) is None
            for option in options.by_model.get(profile.model, ())
        )
    }


def _rent_columns(programme: Programme, fleet: Fleet, market: Market) -> dict[str, list[int]]:
    """Add a whole variable for each offer of each pool, under the limits of the sites."""
    rented: dict[str, list[int]] = {}
    for name, pool in fleet.pools.items():
        devices = devices_of(pool)
        rented[name] = [
            programme.whole(devices * offer.usd_per_hour, offer.replicas_max)
            for offer in offers_of(name, fleet, market)
        ]
        limit = float(replicas_max(name, fleet, market))
        programme.at_most.append((dict.fromkeys(rented[name], 1.0), limit))
    for weights, limit in site_limits(fleet, market):
        row = {column: weights[name] for name in weights for column in rented[name]}
        if row:
            programme.at_most.append((row, limit))
    return rented


def _bear(
    programme: Programme,
    rented: dict[str, list[int]],
    options: Options,
    demands: Sequence[Demand],
    case: Collection[str],
    span: BusySpan,
) -> None:
    """Have the pools that are left serve these requests within the span."""
    left = replace(
        options,
        by_pool={n: o for n, o in options.by_pool.items() if n not in case},
        by_model={
            model: tuple(option for option in choices if option.pool not in case)
            for model, choices in options.by_model.items()
        },
    )
    served: dict[tuple[str, str], list[tuple[int, Demand]]] = {}
    ranked = sorted(demands, key=lambda d: d.input_tokens + 4 * d.output_tokens, reverse=True)
    for demand in ranked[:COUNTED_MAX]:
        mine = {}
        for option in able(demand, left):
            column = programme.variable()
            mine[column] = 1.0
            served.setdefault((option.pool, option.variant), []).append((column, demand))
        if mine:
            programme.equal.append((mine, 1.0))
    busy = {pool: programme.variable() for pool in left.by_pool}
    add_work(programme, left, served, {pool: [column] for pool, column in busy.items()})
    for pool, column in busy.items():
        row = dict.fromkeys(rented[pool], -(span.to_s - span.from_s))
        programme.at_most.append((row | {column: 1.0}, 0.0))


def _spans(demands: Sequence[Demand]) -> list[BusySpan]:
    """Return the whole time, and the spans of each length with the most tokens to serve."""
    if not demands:
        return []
    end_s = max(latest_end_s(demand) for demand in demands)
    last_s = max(demand.profile.created_at for demand in demands)
    found = [BusySpan(0.0, end_s)]
    for length_s in SPANS_S:
        if length_s >= end_s:
            continue
        starts = [length_s / 2 * number for number in range(int(2 * last_s / length_s) + 1)]
        spans = [BusySpan(start_s, start_s + length_s) for start_s in starts]
        weights = {span: _tokens(span, demands) for span in spans}
        found += sorted(spans, key=lambda span: -weights[span])[:SPANS_EACH]
    return found


def _tokens(span: BusySpan, demands: Sequence[Demand]) -> int:
    return sum(d.input_tokens + 4 * d.output_tokens for d in demands if span.has(d))
