"""Hours: what a candidate costs at the time it would run, and candidates at cheaper hours."""

from collections.abc import Sequence
from math import exp, inf

from policies.config.options import SECONDS_PER_HOUR, Option
from policies.config.policy import Policy
from policies.config.tariffs import WATTS_PER_KW, Tariff
from policies.scoring.candidates import COST, FINISH, Offers
from policies.scoring.estimate import Figures, Visit, batch_limit, chances, estimates, scarcity
from policies.scoring.estimate import spread_of as spread_under
from policies.scoring.promises import promised_chances
from topics import Footprint, Profile

TTFT, LATEST = 1, 5
"""Places of the time to the first token and of the latest finish in `Figures`."""
# What is cheaper by less is the same price, told by other sums.
SAME = 1.0 - 1e-9


def price_factor(option: Option, begin: float, end: float, now: float | None = None) -> float:
    """Return the price of an option's time from first token to finish, in times the declared one.

    Args:
        option: the option.
        begin: first token, epoch seconds.
        end: finish.
        now: the present, beyond which the tariff may not be known; None: all of it is.
    """
    return 1.0 if option.tariff is None else option.tariff.factor(begin, end, now)


def device_wh(option: Option, device_s: float) -> float | None:
    """Return the watt hours of device time at busy power; None where unknown."""
    return None if option.busy_w is None else device_s * option.busy_w / SECONDS_PER_HOUR


def footprint(
    option: Option, device_s: float, begin: float, end: float, now: float | None = None
) -> Footprint | None:
    """Return what device time from first token to finish takes; None where nothing moves."""
    tariff = option.tariff
    if tariff is None:
        return None
    energy_wh, intensity = device_wh(option, device_s), tariff.intensity(begin, end, now)
    gco2 = None
    if energy_wh is not None and intensity is not None:
        gco2 = round(energy_wh / WATTS_PER_KW * intensity, 9)
    return Footprint(
        usd_per_hour=tariff.usd(begin, end, now),
        gco2_per_kwh=intensity,
        energy_wh=None if energy_wh is None else round(energy_wh, 9),
        gco2=gco2,
    )


def expected_footprint(
    option: Option, figures: Figures, profile: Profile, now: float
) -> Footprint | None:
    """Return the footprint of an offer, whose cost is by the hour already."""
    if option.tariff is None or not option.usd_per_s:
        return None
    begin, end = now + figures[TTFT], now + figures[FINISH]
    charged = option.usd_per_s * profile.price_factor * price_factor(option, begin, end, now)
    return footprint(option, figures[COST] / charged, begin, end, now)


def is_within_gco2(
    option: Option, figures: Figures, of: Profile, limit_g: float, now: float
) -> bool:
    """Return whether an offer keeps a limit of emissions, which unknown ones don't.

    Args:
        option: the option.
        figures: its estimate, by the prices of its hour.
        of: the profile that it is of.
        limit_g: grams of CO2.
        now: epoch seconds.
    """
    found = expected_footprint(option, figures, of, now)
    return found is not None and found.gco2 is not None and found.gco2 <= limit_g


def chance_kept(option: Option, run_s: float) -> float:
    """Return the chance that a replica is not taken away from a run, or with enough notice."""
    exposed_s = max(0.0, run_s - option.notice_s)
    return exp(-option.interruptions_per_s * exposed_s)


def by_time(
    offers: Offers, profile: Profile, arrivals_per_s: float, policy: Policy, now: float
) -> Offers:
    """Return the offers at the prices of their hours, and for what may wait those of cheaper hours.

    Args:
        offers: at declared prices.
        profile: the request.
        arrivals_per_s: rate of its group.
        policy: in force.
        now: epoch seconds.
    """
    figures, likely, prices_usd = [], [], []
    for at, visit in enumerate(offers.visits):
        option, each = visit[0].option, offers.figures[at]
        factor = price_factor(option, now + each[TTFT], now + each[FINISH], now)
        figures.append((each[COST] * factor, *each[1:]))
        prices_usd.append(offers.prices_usd[at] * factor)
        chance = offers.chances[at]
        if option.interruptions_per_s:
            chance *= chance_kept(option, each[FINISH] - visit[3])
        likely.append(chance)
    found = Offers(list(offers.visits), figures, likely, prices_usd)
    patience_s = policy.patience_s(profile)
    if patience_s > 0:
        for at, visit in enumerate(offers.visits):
            if visit[1] == "hold":
                _add_later(found, at, profile, arrivals_per_s, policy, now, patience_s)
    return found


def _add_later(
    offers: Offers,
    at: int,
    profile: Profile,
    arrivals_per_s: float,
    policy: Policy,
    now: float,
    patience_s: float,
) -> None:
    """Add the offer to hold a request for the cheapest hour of an option, if it has one."""
    standing, _, _, wait_s, _ = offers.visits[at]
    option, figures = standing.option, offers.figures[at]
    waiting = [(profile, now + patience_s)]
    start = later_start(option, figures, wait_s, profile, waiting, policy, now)
    if start is None:
        return
    until_s = start - now
    limit = batch_limit(profile, option, policy.windows.members_max)
    members = 1 + min(limit - 1, int(arrivals_per_s * until_s))
    visit: Visit = (standing, "hold", members, until_s, 0)
    then = estimates(profile, [visit], policy.estimates.transport_s)[0]
    # The wait is certain: only what comes after it may take longer than expected.
    after = shifted(then, -until_s)
    spread = spread_under(standing, policy)
    if profile.quote is None:
        elapsed_s = start - profile.created_at
        chance = chances(profile, [after], [standing.learned], elapsed_s, [spread])[0]
    else:
        chance = promised_chances(profile, [visit], [after], policy, start)[0]
    if option.interruptions_per_s:
        chance *= chance_kept(option, after[FINISH])
    factor = price_factor(option, now + then[TTFT], now + then[FINISH], now)
    offers.visits.append(visit)
    offers.figures.append((then[COST] * factor, *then[1:]))
    offers.chances.append(chance)
    offers.prices_usd.append(then[COST] * factor * scarcity(standing, policy))


def shifted(figures: Figures, by_s: float) -> Figures:
    """Return figures with latencies that count from another moment."""
    usd, ttft_s, tpot_s, finish_s, own_s, latest_s, least_tpot_s = figures
    return (usd, ttft_s + by_s, tpot_s, finish_s + by_s, own_s, latest_s + by_s, least_tpot_s)


def later_start(
    option: Option,
    figures: Figures,
    wait_s: float,
    of: Profile,
    waiting: Sequence[tuple[Profile, float]],
    policy: Policy,
    now: float,
) -> float | None:
    """Return when an option is cheapest within the time that is left, if that is not now.

    Of several equally cheap hours it is the first. An hour in which a limit of emissions would be
    broken is none; where it would be now, a dearer hour will do.

    Args:
        option: the option.
        figures: its estimate, by the prices of now.
        wait_s: the wait that is part of it.
        of: the profile that it is of.
        waiting: the requests, each with the end of its patience, epoch seconds.
        policy: in force.
        now: epoch seconds.
    """
    tariff = option.tariff
    if tariff is None:
        return None
    after = shifted(figures, -wait_s)
    last = min(
        min(until, profile.deadline - after[LATEST] - policy.windows.margin_s)
        for profile, until in waiting
    )
    if last <= now:
        return None
    limits = [p.max_gco2 for p, _ in waiting if p.max_gco2 is not None]
    ceiling = _intensity_max(option, figures, of, min(limits), now) if limits else inf
    best, best_usd = None, inf
    if _emits(tariff, now + figures[TTFT], now + figures[FINISH], now) <= ceiling:
        best_usd = tariff.usd(now + figures[TTFT], now + figures[FINISH], now) * SAME
    for at in tariff.changes(now, last, now):
        begin, end = at + after[TTFT], at + after[FINISH]
        usd = tariff.usd(begin, end, now)
        if usd < best_usd and _emits(tariff, begin, end, now) <= ceiling:
            best, best_usd = at, usd
    return best


def _emits(tariff: Tariff, begin: float, end: float, now: float) -> float:
    found = tariff.intensity(begin, end, now)
    return inf if found is None else found


def _intensity_max(
    option: Option, figures: Figures, of: Profile, limit_g: float, now: float
) -> float:
    """Return the grams per kWh up to which a limit of emissions is kept; below 0 if none is."""
    found = expected_footprint(option, figures, of, now)
    if found is None or not found.energy_wh:
        return -1.0
    return limit_g * WATTS_PER_KW / found.energy_wh
