"""Promises: the chance of a finish by a deadline as errors of past promises tell it.

The chance in a decision (`policies.scoring.estimate.chances`) is made to choose by, and errs on the
safe side; this one is made to be told, and is calibrated: of all that were promised with 95 %, 95 %
are to be kept.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from math import erf, exp, inf, log, sqrt
from statistics import NormalDist

from policies.config.policy import Policy
from policies.config.quotes import ANY_CLASS, Points
from policies.scoring.estimate import Figures, Visit, chances, spread_of
from topics import Profile

_FINISH = 3
_NORMAL = NormalDist()


def errors_of(policy: Policy, task: str, path: str) -> Points:
    """Return the measured errors of a class on a path; none if there are none."""
    errors = policy.quotes.errors
    for name in (task, ANY_CLASS):
        found = errors.get(name)
        points = () if found is None else found.hold if path == "hold" else found.direct
        if points:
            return points
    return ()


def chance_within(times: float, points: Points, spread: float) -> float:
    """Return the chance of a finish within ``times`` the expected time.

    Between measured points it is linear, below the first it falls to none as the time does, and
    above the last it is the last: nothing is known of what happens so seldom.

    Args:
        times: of the expected time.
        points: measured errors; without any, they are log-normal.
        spread: the standard deviation then.
    """
    if times <= 0:
        return 0.0
    margin = log(times)
    if not points:
        return 0.5 * (1.0 + erf(margin / (spread * sqrt(2.0))))
    at = bisect_left(points, margin, key=lambda point: point[1])
    if at == len(points):
        return points[-1][0]
    likely, above = points[at]
    if at == 0:
        return likely * exp(margin - above)
    before, below = points[at - 1]
    return before + (likely - before) * (margin - below) / (above - below)


def times_for(chance: float, points: Points, spread: float) -> float:
    """Return how many times the expected time have this chance; infinity where none has."""
    if not points:
        return exp(spread * _NORMAL.inv_cdf(chance))
    at = bisect_left(points, chance, key=lambda point: point[0])
    if at == len(points):
        return inf
    likely, above = points[at]
    if at == 0:
        return exp(above + log(chance / likely))
    before, below = points[at - 1]
    return exp(below + (above - below) * (chance - before) / (likely - before))


def promised_chances(
    profile: Profile,
    visits: Sequence[Visit],
    figures: Sequence[Figures],
    policy: Policy,
    now: float,
) -> list[float]:
    """Return for each way to serve a quoted request the chance of its finish by the deadline.

    One that is less likely than its class wants to meet TTFT and TPOT is no likelier than that.
    """
    left_s, found = profile.deadline - now, []
    for (standing, path, _, _, _), each in zip(visits, figures, strict=True):
        points, spread = errors_of(policy, profile.task, path), spread_of(standing, policy)
        found.append(chance_within(left_s / max(each[_FINISH], 1e-12), points, spread))
    if not profile.is_urgent:
        return found
    learned = [visit[0].learned for visit in visits]
    spreads = [spread_of(visit[0], policy) for visit in visits]
    at_ease = replace(profile, deadline=inf)
    likely = chances(at_ease, figures, learned, now - profile.created_at, spreads)
    workload = policy.classes.get(profile.task)
    target = profile.target_chance if workload is None else workload.target_chance
    return [
        chance if slo >= target else min(chance, slo)
        for chance, slo in zip(found, likely, strict=True)
    ]
