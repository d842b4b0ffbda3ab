"""The programme of a plan: no fleet that keeps what is wanted is cheaper than its bound.

Replicas are whole numbers, under the limits of the market. What they must be able to do stands in
cuts (`shunter.plan.span_work`), of the busiest spans of time, of each case of what may be gone:
the cheapest replicas that keep all cuts so far are held against each span's work, which gives a new
cut or none (Benders' decomposition). The bound is right whenever it ends.
"""

import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import floor
from typing import NamedTuple

from policies import Fleet, Option, Options, compile_options
from policies.backtest.workload import profiles_of
from policies.scoring.constraints import refusal
from shunter.backtest.bound_times import TokenTimes
from shunter.backtest.demand import Demand, able, latest_end_s
from shunter.backtest.suite import Setting
from shunter.plan.busy_spans import BusySpan, busiest_spans
from shunter.plan.cheapest_fleet import CheapestFleet
from shunter.plan.cuts import Misses, SpanSet
from shunter.plan.market import Market, devices_of, offers_of
from shunter.plan.span_work import Cut, SpanWork

LENGTHS_S = (12.0, 48.0)
"""Lengths of the spans into which the time of arrivals is cut, about."""
# Of the busiest spans so many are held against a fleet, each by itself.
BUSIEST = 3
# Requests that count in all spans of a length, those with the most work; to leave one out lowers
# the bound.
COUNTED_MAX = 60_000
# A cut that replicas break by less than this part of it is kept.
TOLERANCE = 1e-4

ALL = (1.0, 1.0)


class Capacity(NamedTuple):
    """The solution of the programme.

    Attributes:
        replicas: by pool, of the cheapest fleet that bears the work.
        bound_usd_per_hour: no fleet that keeps what is wanted is cheaper.
        unservable: requests that no pool could serve in time, whatever its size.
        cuts: inequalities that each fleet keeps which keeps what is wanted, with nothing gone too.
    """

    replicas: dict[str, int]
    bound_usd_per_hour: float
    unservable: int
    cuts: tuple[Cut, ...] = ()


def capacity(
    setting: Setting,
    market: Market,
    gone: Sequence[Collection[str]],
    seconds: float,
    wanted: tuple[float, float] = ALL,
) -> Capacity:
    """Return the bound, and the fleet of the programme.

    Args:
        setting: trace, fleet and policy; the replicas of its pools don't count.
        market: what may be rented.
        gone: the cases to bear besides the usual one: pools that are unavailable together.
        seconds: time after which no further cut is looked for.
        wanted: share of all requests, and of each class, to be served within their SLO.

    Raises:
        NoBoundError: scipy is missing, or nothing that may be rented bears the work.
    """
    ends_at = time.monotonic() + seconds
    demands = _demands(setting)
    options = _single(setting.fleet)
    sets = [
        each
        for case in [(), *gone]
        for each in _sets(setting, market, demands, options, case, wanted)
    ]
    master = CheapestFleet(setting.fleet, market)
    while True:
        replicas = master.solve()
        found = []
        for each in sets:
            if master.cuts and time.monotonic() > ends_at:
                break
            cut = each.cut(replicas)
            if cut is not None and cut.lacks(replicas) > TOLERANCE:
                found.append(cut)
        if not found:
            break
        master.cuts += found
        if time.monotonic() > ends_at:
            replicas = master.solve()
            break
    unservable = sum(not any(True for _ in able(demand, options)) for demand in demands)
    return Capacity(replicas, master.bound_usd_per_hour, unservable, tuple(master.cuts))


def servable_without(setting: Setting, case: Collection[str]) -> dict[str, str]:
    """Return the requests that some pool which is not gone might serve: class by id."""
    options = compile_options(setting.fleet)
    return {
        profile.id: profile.task
        for profile in profiles_of(setting.arrivals, setting.fleet, setting.policy)
        if any(
            option.pool not in case
            and refusal(profile, option, setting.policy.floor_of(profile)) is None
            for option in options.by_model.get(profile.model, ())
        )
    }


def _demands(setting: Setting) -> list[Demand]:
    profiles = profiles_of(setting.arrivals, setting.fleet, setting.policy)
    return [
        Demand.of(profile, arrival.output_tokens, setting.policy.floor_of(profile))
        for profile, arrival in zip(profiles, setting.arrivals, strict=True)
    ]


def _single(fleet: Fleet) -> Options:
    """Return the fleet's options with one replica of each: work is counted in replica-seconds."""
    single = {
        name: pool.model_copy(update={"count": devices_of(pool)})
        for name, pool in fleet.pools.items()
    }
    return compile_options(fleet.model_copy(update={"pools": single}))


def _sets(
    setting: Setting,
    market: Market,
    demands: Sequence[Demand],
    options: Options,
    case: Collection[str],
    wanted: tuple[float, float],
) -> list[SpanSet]:
    """Return the sets of spans with some pools gone."""
    left = replace(
        options,
        by_pool={n: o for n, o in options.by_pool.items() if n not in case},
        by_model={
            model: tuple(option for option in choices if option.pool not in case)
            for model, choices in options.by_model.items()
        },
    )
    able_by_id = {demand.profile.id: tuple(able(demand, left)) for demand in demands}
    misses = _misses(demands, left, able_by_id, wanted)
    prices = {
        name: devices_of(setting.fleet.pools[name])
        * max(offer.usd_per_hour for offer in offers_of(name, setting.fleet, market))
        for name in left.by_pool
    }
    # What is free is lacking too.
    prices = {name: max(usd, 1e-3) for name, usd in prices.items()}
    weights = {d.profile.id: least_usd(d, options) for d in demands}
    found = []
    # With something gone all of these would take most of the time.
    lengths_s, busiest = ((), 1) if case else (LENGTHS_S, BUSIEST)
    asked = [weights[demand.profile.id] for demand in demands]
    alone = busiest_spans(demands, asked, misses.of_all, busiest)
    for spans in [*([span] for span in alone), *_partitions(demands, lengths_s)]:
        works = []
        for span in spans:
            here = [d for d in demands if span.counts(d)]
            here.sort(key=lambda d: -weights[d.profile.id])
            here = here[: COUNTED_MAX // len(spans)]
            works.append(SpanWork.of(span, left, here, able_by_id))
        found.append(SpanSet(works, misses, prices))
    return found


def _misses(
    demands: Sequence[Demand],
    options: Options,
    able_by_id: Mapping[str, Sequence[Option]],
    wanted: tuple[float, float],
) -> Misses:
    """Return how many requests that could be served in time may be missed.

    Of those that some pool may serve some can't be in time anywhere: they are missed already.
    """
    asked, lost = Counter[str](), Counter[str]()
    for demand in demands:
        known = options.by_model.get(demand.profile.model, ())
        if any(refusal(demand.profile, option, demand.floor) is None for option in known):
            asked[demand.profile.task] += 1
            lost[demand.profile.task] += not able_by_id[demand.profile.id]
    of_all, by_class = wanted
    return Misses(
        max(0, may_miss(asked.total(), of_all) - lost.total()),
        {t: max(0, may_miss(n, by_class) - lost[t]) for t, n in asked.items()},
    )


def may_miss(asked: int, attainment: float) -> int:
    """Return how many of so many requests may miss."""
    # A hundredth of 2,000 is a little more than 20 in floating point.
    return floor((1 - attainment) * asked + 1e-6)


def least_usd(demand: Demand, options: Options) -> float:
    """Return about what a request costs at its cheapest pool, in full batches; 0 for nowhere."""
    found = []
    for option in able(demand, options):
        times = TokenTimes.of(option)
        decode_s = demand.steps * (times.token_s + times.full_s / option.max_batch)
        found.append(option.usd_per_s * (times.prompt_compute_s(demand) + decode_s))
    return min(found, default=0.0)


def _partitions(demands: Sequence[Demand], lengths_s: Sequence[float]) -> list[list[BusySpan]]:
    """Return the whole time, and that of arrivals cut into spans of each length."""
    if not demands:
        return []
    end_s = max(latest_end_s(demand) for demand in demands)
    last_s = max(demand.profile.created_at for demand in demands)
    found = [[BusySpan(0.0, end_s)]]
    if all(demand.profile.ttft_s is None for demand in demands):
        return found
    for length_s in lengths_s:
        count = round(last_s / length_s)
        if count > 1:
            each_s = last_s / count
            found.append([BusySpan(n * each_s, (n + 1) * each_s) for n in range(count)])
    return found
