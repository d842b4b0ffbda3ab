"""The lower bound: no schedule that serves every request within its SLO costs less.

docs/bound.md derives each inequality. In short: a clairvoyant plan knows arrivals and lengths
and may split requests among pools, but each token is computed somewhere, each decode step streams
the weights it touches, no more sequences share a step than places, memory and TPOT allow, and a
device that decodes is busy.
"""

from collections.abc import Container
from contextlib import suppress

from policies import compile_options
from policies.backtest.workload import profiles_of
from shunter.backtest.bound_bursts import bursts_bound, is_uneven
from shunter.backtest.bound_hours import moving_volume_bound
from shunter.backtest.bound_streaming import streaming_bound
from shunter.backtest.bound_work import volume_bound
from shunter.backtest.demand import Demand, true_options
from shunter.backtest.programme import NoBoundError
from shunter.backtest.suite import Setting


def lower_bound(setting: Setting, rows: Container[int] | None = None) -> float:
    """Return the bound in US dollars.

    Failures and outages of the reality only add cost, so they are left out; speeds are included.

    Args:
        setting: trace, fleet, policy and reality.
        rows: the rows of the trace that must be served in time; None: all that can be.

    Raises:
        NoBoundError: scipy is missing, or no schedule serves all of it in time, or the reality
            makes it none: a noise among replicas, which nobody knows, or prefix caches; or a pool
            is simulated at another speed than its devices'.
    """
    if setting.reality.noise:
        raise NoBoundError("how fast each replica really is, nobody knows beforehand")
    if setting.reality.prefix_cache:
        raise NoBoundError("prefix caches spare prompts, which it counts in full")
    options = true_options(compile_options(setting.fleet), setting.reality)
    if any(choices[0].time_scale != 1.0 for choices in options.by_pool.values()):
        raise NoBoundError("a pool has a time_scale; declare its devices as they are")
    profiles = profiles_of(setting.arrivals, setting.fleet, setting.policy)
    demands = [
        Demand.of(profile, arrival.output_tokens, setting.policy.floor_of(profile))
        for profile, arrival in zip(profiles, setting.arrivals, strict=True)
        if rows is None or arrival.row in rows
    ]
    # What tiers are charged is no less than all of it at the least factor.
    factor = min((demand.profile.price_factor for demand in demands), default=1.0)
    moves = any(choices[0].tariff for choices in options.by_pool.values())
    work_usd = (moving_volume_bound if moves else volume_bound)(demands, options)
    streaming_usd = streaming_bound(demands, options)
    found = [work_usd, streaming_usd]
    if is_uneven(demands, options, *found):
        # What no schedule can do within a second, or the solver can't, leaves the other two.
        with suppress(NoBoundError):
            found.append(bursts_bound(demands, options))
    return factor * max(found)


def bound_or_reason(setting: Setting) -> tuple[float | None, str | None]:
    """Return the lower bound, or why there is none: the runs are worth telling all the same."""
    try:
        return lower_bound(setting), None
    except NoBoundError as error:
        return None, str(error)
