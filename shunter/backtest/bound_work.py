"""The work of the bound: the pool time that requests take, whenever they are served."""

from collections.abc import Mapping, Sequence

from policies import Option, Options
from shunter.backtest.bound_iterations import add_iterations
from shunter.backtest.bound_times import Served
from shunter.backtest.demand import Demand, able
from shunter.backtest.programme import Programme
from topics.records.money import NANO


def volume_bound(demands: Sequence[Demand], options: Options) -> float:
    """Return the least cost of the work in US dollars, whenever it is done."""
    programme = Programme()
    busy = {
        pool: programme.variable(choices[0].usd_per_s) for pool, choices in options.by_pool.items()
    }
    columns: dict[tuple[str, str], list[tuple[int, Demand]]] = {}
    for demand in demands:
        choices = list(able(demand, options))
        if not choices:
            continue  # no pool can serve it in time, so it costs nothing
        mine = {}
        for option in choices:
            column = programme.variable(token_usd(demand, option))
            mine[column] = 1.0
            columns.setdefault((option.pool, option.variant), []).append((column, demand))
        programme.equal.append((mine, 1.0))
    last_s = max((demand.profile.created_at for demand in demands), default=None)
    pools = {pool: [column] for pool, column in busy.items()}
    add_work(programme, options, columns, pools, last_s)
    # Few long rows: the simplex takes a third of the interior-point method's time here.
    return programme.solve("highs-ds")


def token_usd(demand: Demand, option: Option) -> float:
    """Return the least that an option charges for a request by its tokens; 0 if by its time."""
    rates = option.rates
    if rates is None:
        return 0.0
    # All of the prompt may be cached, where that is cheaper.
    cached = demand.input_tokens if rates.cached_femto < rates.input_femto else 0
    return rates.nano_usd(demand.input_tokens, demand.output_tokens, cached) / NANO


def add_work(
    programme: Programme,
    options: Options,
    served_by: Mapping[tuple[str, str], Served],
    busy: Mapping[str, Sequence[int]],
    last_s: float | None = None,
) -> None:
    """Make each pool busy for as long as the iterations of its variants take.

    Args:
        programme: gets the rows.
        options: the fleet.
        served_by: requests by pool and variant.
        busy: by pool, the variables whose sum is its busy time in seconds.
        last_s: the last arrival, if it is the work of a whole trace.
    """
    for pool, choices in options.by_pool.items():
        row = dict.fromkeys(busy[pool], -1.0)
        for option in choices:
            served = served_by.get((pool, option.variant), ())
            if served:
                add_iterations(programme, option, served, row, last_s)
        programme.at_most.append((row, 0.0))
