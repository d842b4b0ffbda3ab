"""Power that pools draw, and the limits that they keep by it."""

from collections.abc import Iterable, Mapping

from policies.config.options import Option, Options
from policies.fleet_state.candidate_load import PoolLoad

Drawn = tuple[float, float]
"""What a pool, and its whole site, would draw with one more request in the pool, in kW."""


def drawn_kw(option: Option, load: PoolLoad | None, more: int = 0) -> float:
    """Return what a pool may draw, hosts included, in kW.

    Each request may be on a replica of its own, so that as many replicas count as busy as there are
    requests, while there are so many: a limit that holds so holds wherever the requests are. The
    answers of one are on one replica.

    Args:
        option: any of the pool; what of its power is unknown counts as none.
        load: the pool's; None, and one without a worker: nothing of it is switched on. Workers that
            get no work run what they have.
        more: requests besides those that run or wait.
    """
    if load is None or not load.workers + load.aside:
        return 0.0
    replicas = (load.workers + load.aside) * option.replicas
    busy = min(replicas, load.requests + more)
    idle_w, busy_w = option.idle_w or 0.0, option.busy_w or 0.0
    return (busy * busy_w + (replicas - busy) * idle_w) / 1000.0


def tell_power(options: Options, loads: Mapping[str, PoolLoad], pool: str) -> None:
    """Put into the loads of a pool and of its site's others what they would draw.

    Pools without limits are left alone: nobody asks for theirs.
    """
    first = options.by_pool[pool][0]
    for name in _beside(options, first):
        option, load = options.by_pool[name][0], loads.get(name)
        if load is None or not option.is_power_limited:
            continue
        own_kw = drawn_kw(option, load, more=1)
        site_kw = own_kw
        for other in _beside(options, option):
            if other != name:
                site_kw += drawn_kw(options.by_pool[other][0], loads.get(other))
        found = round(own_kw, 6), round(site_kw, 6)
        if load.power_kw != found:
            load.power_kw = found
            load.has_changed()


def _beside(options: Options, option: Option) -> Iterable[str]:
    """Return the pools of an option's site, in the fleet's order; without one its own alone."""
    if option.site is None:
        return (option.pool,)
    return [name for name, each in options.by_pool.items() if each[0].site == option.site]
