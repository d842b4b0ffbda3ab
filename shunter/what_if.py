"""Other fates of a request: where it goes when pools are gone, and what refuses it."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

from policies import Decision, Options, decide, inputs_of, situation
from policies.config.budgets import Budget, Counted
from policies.config.policy import Policy
from policies.fleet_state.view import live_view
from policies.placement.admission import WINDOW_S
from policies.placement.books import Books
from policies.scoring.situation import Situation
from topics import PoolStatus, Profile
from topics.iso_time import iso_time
from topics.records.money import NANO, Amounts


class Pools(NamedTuple):
    """Pools as heartbeats tell of them, and the variants of each whose answers have drifted."""

    reports: Sequence[PoolStatus]
    drifted: Mapping[str, frozenset[str]]


class WhatIf(NamedTuple):
    """The decision on a request while some pools are unavailable."""

    without: tuple[str, ...]
    decision: Decision


def situation_of(
    options: Options, policy: Policy, pools: Pools, gone: Collection[str]
) -> Situation:
    """Return the situation that is told of, without the pools that are gone."""
    view = live_view(options, (report for report in pools.reports if report.pool not in gone))
    view.judged(pools.drifted)
    return Situation(options, policy, view, situation(options, policy).arrivals)


def fallbacks(
    profile: Profile,
    options: Options,
    policy: Policy,
    pools: Pools,
    without: Sequence[str],
    now: float,
) -> Iterator[WhatIf]:
    """Yield the decision as the best pool of the last one becomes unavailable, one after another.

    The first is the decision as things are; the last finds no pool.
    """
    gone = list(without)
    while True:
        here = situation_of(options, policy, pools, gone)
        decision = decide(profile, inputs_of(profile, here, now), options, policy, now)
        yield WhatIf(tuple(gone), decision)
        if decision.promised is None:
            return
        gone.append(decision.candidates[0].pool)


def limits(profile: Profile, policy: Policy, books: Books | None, now: float) -> list[str]:
    """Return what may refuse or end a request besides the pools, a sentence each.

    ``books`` has what its budgets have used by ``now``; None where that is not asked.
    """
    told, tenant = [], policy.limits_of(profile.tenant)
    if tenant.rate_per_s is None:
        told.append(f"tenant {profile.tenant!r} has no rate: none is rejected as rate_limited")
    else:
        told.append(
            f"beyond {tenant.rate_per_s:g} requests/s of tenant {profile.tenant!r}, counted over"
            f" {max(WINDOW_S, 1 / tenant.rate_per_s):g} s: rejected as rate_limited"
        )
    for counted in policy.budgets_for(profile):
        rule, _, budget = counted
        most = ", ".join(f"{limit:,} {unit}" for unit, limit in _units(budget))
        line = f"beyond {most} in {budget.window_s:,.10g} s ({rule}): rejected as budget"
        told.append(line if books is None else f"{line}; {_use(counted, books, now)}")
    told.append(
        "where only other work keeps each pool from serving it in time, and the tenant has had"
        f" more than its share ({tenant.share:g}) lately: rejected as over_share"
    )
    told += _watched(profile, policy)
    told.append(
        f"where no pool that may serve it is alive for {profile.longest_wait_s:g} s: rejected as"
        " pool_unavailable"
    )
    told.append(
        f"where a pool fails: tried at another, {policy.attempts_max} attempts in all, then failed"
    )
    told.append(
        f"where it has not begun by {iso_time(profile.deadline)}: expired as deadline_passed"
    )
    return told


def _units(budget: Budget) -> list[tuple[str, float]]:
    """Return the limits of a budget, each with its unit."""
    units = (
        *(("requests", budget.requests), ("tokens", budget.tokens)),
        *(("USD", budget.usd), ("Wh", budget.wh)),
    )
    return [(unit, limit) for unit, limit in units if limit is not None]


def _use(counted: Counted, books: Books, now: float) -> str:
    """Return what the window of a budget has used, and keeps for requests that are open."""
    state = books.current(counted, now)
    limited = [unit for unit, _ in _units(counted[2])]
    used, kept = (_in_units(amounts, limited) for amounts in (state.used, state.reserved))
    return f"used {used}, kept for open ones {kept}, until {iso_time(state.account.ends_at)}"


def _in_units(amounts: Amounts, units: Sequence[str]) -> str:
    found: dict[str, float] = {
        "requests": amounts.requests,
        "tokens": amounts.tokens,
        "USD": amounts.nano_usd / NANO,
        "Wh": amounts.nano_wh / NANO,
    }
    return ", ".join(f"{found[unit]:,} {unit}" for unit in units)


def _watched(profile: Profile, policy: Policy) -> Iterator[str]:
    watch = policy.classes[profile.task].watch
    if watch is None or not policy.limits_of(profile.tenant).watch:
        return
    yield (
        f"in {watch.share:.1%} of the cases: run a second time on {watch.reference}, in the"
        " background, to compare the answers"
    )
