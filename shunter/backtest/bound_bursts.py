"""The bound where arrivals come in bursts: streaming and work of one programme, by cells of time.

The work of a whole trace has all steps full, and the streaming has no more work in a burst than
elsewhere. Where arrivals are uneven both are too low: a device streams for the few of quiet
seconds, which a burst's work can't fill.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from math import ceil, floor

from policies import Option, Options
from shunter.backtest.bound_streaming import CELL_S, WORK_CELLS, WindowCost
from shunter.backtest.bound_times import TokenTimes
from shunter.backtest.bound_work import token_usd
from shunter.backtest.demand import Demand, able

# The longest window, and how long the last one goes on after the last arrival. A request that may
# end after its window has no work in it, so that few are better.
WINDOW_S = 450.0
AFTER_S = 45.0
# Requests of a window that count, the longest.
COUNTED_MAX = 20_000
# A pool's work is told apart by time if it is the cheapest for such a share of all.
SHARE_MIN = 0.05
# Spans in which work is compared with streaming, and by what the programme has to promise more
# than the greater of both to be solved: it takes half a minute for 20,000 requests.
UNEVEN_S = 5.0
GAIN_MIN = 1.05


def bursts_bound(demands: Sequence[Demand], options: Options) -> float:
    """Return the least cost in US dollars of requests that can't wait, by cells of time."""
    urgent = [d for d in demands if d.profile.ttft_s is not None]
    usd: dict[str, float] = defaultdict(float)
    for _, option, cost in _cheapest(urgent, options):
        usd[option.pool] += cost
    by_time = [pool for pool, cost in usd.items() if cost >= SHARE_MIN * sum(usd.values())]
    if not by_time:
        return 0.0
    span_s = max(demand.profile.created_at for demand in urgent) + AFTER_S
    windows = floor(span_s / WINDOW_S) + 1
    cells = WORK_CELLS * ceil(span_s / windows / (CELL_S * WORK_CELLS))
    return sum(
        WindowCost(options, at * cells * CELL_S, cells, by_time, COUNTED_MAX, span_s).solve(urgent)
        for at in range(windows)
    )


def is_uneven(
    demands: Sequence[Demand], options: Options, work_usd: float, streaming_usd: float
) -> bool:
    """Return whether work and streaming are greater in turn, so that both together are more.

    Args:
        demands: the requests.
        options: the fleet.
        work_usd: what the work of all costs at least.
        streaming_usd: what the streaming of those that can't wait costs at least.
    """
    total_usd = 0.0
    by_span: dict[int, float] = defaultdict(float)
    for demand, _, cost in _cheapest(demands, options):
        total_usd += cost
        if demand.profile.ttft_s is not None:
            by_span[floor(demand.profile.created_at / UNEVEN_S)] += cost
    if not by_span or not total_usd:
        return False
    steady = streaming_usd / (max(by_span) + 1)
    scale = work_usd / total_usd
    either = sum(max(steady, scale * by_span[at]) for at in range(max(by_span) + 1))
    return either >= GAIN_MIN * max(work_usd, streaming_usd)


def _cheapest(
    demands: Sequence[Demand], options: Options
) -> Iterator[tuple[Demand, Option, float]]:
    """Yield requests, each with the option at which its tokens cost least in full steps."""
    for demand in demands:
        costs = [(_usd(demand, option), option) for option in able(demand, options)]
        if costs:
            cost, option = min(costs, key=lambda each: each[0])
            yield demand, option, cost


def _usd(demand: Demand, option: Option) -> float:
    """Return what a request's tokens cost in full steps, about."""
    times, most = TokenTimes.of(option), option.max_batch
    step_s = (times.full_s + times.overhead_s) / most + times.sequence_s + times.traffic_s
    step_s += demand.input_tokens * times.kv_s
    prompt_s = times.prompt_compute_s(demand) + times.prompt_beside_s(demand)
    return token_usd(demand, option) + option.usd_per_s * (prompt_s + demand.steps * step_s)
