"""Small instances of the backtest, solved to optimality: no dispatch of any kind costs less.

One model variant a pool, and prompts that fit one chunk together, so that an iteration is made of
whole prompts and of all sequences that decode. Then a schedule is, for each request, a replica and
the iteration that computes its prompt: it decodes in those that follow. The programme of whole
numbers that chooses them is the model of `policies.hardware.accelerator`, not a relaxation of it.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise, product
from typing import NamedTuple

from policies import Option, compile_options
from policies.backtest.workload import profiles_of
from policies.hardware.accelerator import Accelerator, Job, VariantLimits
from policies.hardware.chunks import PREFILL_CHUNK_TOKENS
from shunter.backtest.demand import Demand, able
from shunter.backtest.programme import Programme
from shunter.backtest.suite import Setting

# The solver ends where the cost is a ten-thousandth above the least, or a millionth of its unit.
SOLVED = 1.1e-4
MICRO_USD = 1e6
# Beyond all times of an instance, in seconds.
HORIZON_S = 2.0
# The solver keeps rows to a millionth or so: by so much more than the one before each request comes
# early, to be there when its iteration begins.
EARLY_S = 2e-5


class Dispatch(NamedTuple):
    """A request (its place in the trace) that is sent to a replica at a time in seconds."""

    request: int
    option: Option
    replica: int
    at: float


class Exact(NamedTuple):
    """The cheapest schedule. ``cost_usd`` is its cost."""

    cost_usd: float
    dispatches: list[Dispatch]


@dataclass(slots=True)
class _Replica:
    option: Option
    number: int
    starts: list[int]
    lasts: list[int]
    joins: dict[tuple[int, int], int]
    """By request and iteration, whether its prompt is computed there."""


def exact_schedule(setting: Setting) -> Exact:
    """Return the cheapest schedule that serves all requests of a small instance in time."""
    options = compile_options(setting.fleet)
    demands = [
        Demand(profile, profile.input_tokens, arrival.output_tokens)
        for profile, arrival in zip(
            profiles_of(setting.arrivals, setting.fleet, setting.policy),
            setting.arrivals,
            strict=True,
        )
    ]
    assert sum(demand.input_tokens for demand in demands) <= PREFILL_CHUNK_TOKENS
    programme = Programme()
    replicas = [
        _add_replica(programme, option, number, demands)
        for (option,) in options.by_pool.values()
        for number in range(option.replicas)
    ]
    for request, demand in enumerate(demands):
        served = {
            column: 1.0
            for replica in replicas
            if any(option is replica.option for option in able(demand, options))
            for (who, _), column in replica.joins.items()
            if who == request
        }
        programme.equal.append((served, 1.0))
    found = programme.solve_whole(20.0)
    assert found.cost <= found.bound * (1 + SOLVED), "the solver had too little time"
    return Exact(found.cost / MICRO_USD, list(_dispatches(replicas, found.values)))


def _dispatches(replicas: Sequence[_Replica], values: Sequence[float]) -> Iterator[Dispatch]:
    for replica in replicas:
        for (request, slot), column in replica.joins.items():
            if values[column] > 0.5:
                at = values[replica.starts[slot]]
                yield Dispatch(request, replica.option, replica.number, at)


def _add_replica(
    programme: Programme, option: Option, number: int, demands: Sequence[Demand]
) -> _Replica:
    """Add the iterations of a replica, enough of them for all requests one after the other."""
    slots = range(sum(1 + demand.steps for demand in demands))
    replica = _Replica(
        option,
        number,
        [programme.variable(0.0, HORIZON_S) for _ in slots],
        [programme.variable(MICRO_USD * option.usd_per_s) for _ in slots],
        {
            (request, slot): programme.whole(0.0, 1.0)
            for request, slot in product(range(len(demands)), slots)
            if slot + demands[request].steps < len(slots)
        },
    )
    runs = [programme.whole(0.0, 1.0) for _ in slots]
    for slot in slots:
        _add_iteration(programme, replica, runs[slot], slot, demands)
    # Iterations that aren't needed are the last ones: the same schedule has one solution only.
    programme.at_most += [({later: 1.0, run: -1.0}, 0.0) for run, later in pairwise(runs)]
    for (request, slot), column in replica.joins.items():
        _keep_promises(programme, replica, column, slot, demands[request])
    return replica


def _add_iteration(
    programme: Programme, replica: _Replica, runs: int, slot: int, demands: Sequence[Demand]
) -> None:
    """Add one iteration: how long it takes, who shares it, and that the next one follows.

    ``runs`` is the variable that says whether it is needed.
    """
    roofline, option = replica.option.roofline, replica.option
    last = replica.lasts[slot]
    compute = {last: -1.0, runs: roofline.step_overhead_s}
    memory = {last: -1.0, runs: roofline.step_overhead_s + roofline.weights_s}
    places: dict[int, float] = {}
    room: dict[int, float] = {}
    for request, demand in enumerate(demands):
        prompt = demand.input_tokens
        for step in range(demand.steps + 1):
            column = replica.joins.get((request, slot - step))
            if column is None:
                continue
            programme.at_most.append(({column: 1.0, runs: -1.0}, 0.0))
            places[column] = 1.0
            room[column] = (prompt + demand.output_tokens) / option.kv_capacity_tokens
            if step == 0:
                beside_s = prompt * roofline.traffic_token_s + roofline.prompt_overhead_s
                compute[column] = beside_s + prompt * roofline.token_s
                compute[column] += prompt * prompt / 2 * roofline.pair_s
                memory[column] = beside_s
            else:
                beside_s, context = roofline.sequence_s, prompt + step
                compute[column] = beside_s + roofline.token_s + context * roofline.pair_s
                memory[column] = beside_s + context * roofline.kv_token_s
    rows = [(compute, 0.0), (memory, 0.0), (places, float(option.max_batch)), (room, 1.0)]
    if slot + 1 < len(replica.starts):
        here, following = replica.starts[slot], replica.starts[slot + 1]
        rows.append(({here: 1.0, last: 1.0, following: -1.0}, 0.0))
        # Nobody pauses: while a sequence goes on, the next iteration begins at once.
        for (request, join), column in replica.joins.items():
            if join <= slot < join + demands[request].steps:
                follows = {following: 1.0, here: -1.0, last: -1.0, column: HORIZON_S}
                rows.append((follows, HORIZON_S))
    programme.at_most += rows


def _keep_promises(
    programme: Programme, replica: _Replica, column: int, slot: int, demand: Demand
) -> None:
    """Have a request that joins at an iteration not begin before it came, and end in time."""
    profile, steps = demand.profile, demand.steps
    first, first_s = replica.starts[slot], replica.lasts[slot]
    end, end_s = replica.starts[slot + steps], replica.lasts[slot + steps]
    rows = [({column: profile.created_at, first: -1.0}, 0.0)]
    if profile.ttft_s is not None:
        latest_s = profile.created_at + profile.ttft_s
        rows.append(({first: 1.0, first_s: 1.0, column: HORIZON_S}, latest_s + HORIZON_S))
    if profile.tpot_s is not None and steps:
        decode = {end: 1.0, end_s: 1.0, first: -1.0, first_s: -1.0, column: HORIZON_S}
        rows.append((decode, steps * profile.tpot_s + HORIZON_S))
    assert profile.deadline > HORIZON_S, "a deadline within an instance needs a row"
    programme.at_most += rows


def cost_when_dispatched(setting: Setting, dispatches: Sequence[Dispatch]) -> float:
    """Return the cost of these dispatches on the accelerators of the backtest."""
    replicas: dict[tuple[str, int], tuple[Option, Accelerator]] = {}
    for place, each in enumerate(sorted(dispatches, key=lambda dispatch: dispatch.at)):
        option, arrival = each.option, setting.arrivals[each.request]
        key = (option.pool, each.replica)
        if key not in replicas:
            limits = VariantLimits(option.roofline, option.max_batch)
            replicas[key] = option, Accelerator({option.variant: limits})
        job = Job(str(each.request), option.variant, arrival.input_tokens, arrival.output_tokens)
        replicas[key][1].submit(job, each.at - (1 + place) * EARLY_S)
    total_usd = 0.0
    for option, accelerator in replicas.values():
        accelerator.advance(HORIZON_S)
        total_usd += accelerator.busy_s * option.usd_per_s
    return total_usd
