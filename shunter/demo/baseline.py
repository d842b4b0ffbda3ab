"""The cost of the same requests with everything on the premium GPU."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from policies import Option, Options
from policies.hardware.accelerator import Accelerator, Completion, Job, VariantLimits
from shunter.demo.rules import Rules
from shunter.demo.trace import TraceRow

PREMIUM = "premium_gpu"


@dataclass(frozen=True, slots=True)
class _Replica:
    pool: str
    accelerator: Accelerator
    by_model: Mapping[str, Option]

    @property
    def load(self) -> int:
        return self.accelerator.running + self.accelerator.queued


def premium_cost_usd(
    requests: Iterable[tuple[TraceRow, Mapping[str, Any]]], options: Options, rules: Rules
) -> dict[str, float]:
    """Return each request's cost, by id, if only the fleet's premium GPUs serve.

    The same lengths, arrivals and constraints go through the simulated backend's model of an
    accelerator, in virtual time: each request at once to the least loaded premium replica that may
    serve it, with continuous batching there. The cost is its share of busy device time times the
    price of that time, as in a result's ``cost``; idle time is charged on neither side. Savings by
    waiting for a batch on premium GPUs are not included, and neither is Kafka. A request that no
    premium pool may serve is left out.
    """
    replicas = list(_replicas(options))
    costs: dict[str, float] = {}
    for row, request in requests:
        for replica in replicas:
            _settle(replica, row.arrival_s, costs)
        able = [r for r in replicas if _may_serve(r, row, request, rules)]
        if able:
            chosen = min(able, key=lambda replica: replica.load)
            variant = chosen.by_model[row.model].variant
            job = Job(row.id, variant, row.input_tokens, row.output_tokens)
            chosen.accelerator.submit(job, row.arrival_s)
    for replica in replicas:
        while (upcoming := replica.accelerator.next_event_at()) is not None:
            _settle(replica, upcoming, costs)
    return costs


def _replicas(options: Options) -> Iterable[_Replica]:
    for pool, choices in options.by_pool.items():
        if choices[0].kind != PREMIUM:
            continue
        limits = {o.variant: VariantLimits(o.roofline, o.max_batch) for o in choices}
        by_model = {option.model: option for option in choices}
        for _ in range(choices[0].replicas):
            yield _Replica(pool, Accelerator(limits), by_model)


def _may_serve(replica: _Replica, row: TraceRow, request: Mapping[str, Any], rules: Rules) -> bool:
    option = replica.by_model.get(row.model)
    return option is not None and rules.allows(request, replica.pool, option.precision)


def _settle(replica: _Replica, now: float, costs: dict[str, float]) -> None:
    usd_per_s = next(iter(replica.by_model.values())).usd_per_s
    for event in replica.accelerator.advance(now):
        if isinstance(event, Completion):
            costs[event.id] = event.device_s * usd_per_s
