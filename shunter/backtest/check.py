"""Hard constraints of a backtest, worked out a second time from the declarations alone.

A check that asked the code under test (``policies.constraints``) would repeat its mistakes.
"""

from policies import Fleet, Policy
from policies.backtest.outcome import Outcome
from policies.roofline import MEMORY_UTILIZATION


def is_broken(outcome: Outcome, fleet: Fleet, policy: Policy) -> bool:
    """Tell whether the request was put where it must not go."""
    if outcome.device is None:
        return False
    pool, profile = fleet.pools[outcome.pool], outcome.profile
    served = {serve.variant: serve for serve in pool.serves}
    serve = served.get(outcome.variant)
    if serve is None or (serve.model, serve.precision) != (profile.model, outcome.precision):
        return True
    if outcome.path not in pool.lanes:
        return True
    allowed = policy.classes[profile.task].precisions
    if allowed is not None and serve.precision not in allowed:
        return True
    model = fleet.models[serve.model]
    if profile.operation not in model.operations:
        return True
    tokens = outcome.input_tokens + outcome.output_tokens
    if tokens > model.context_tokens:
        return True
    weights = sum(fleet.models[s.model].weights_bytes(s.precision) for s in pool.serves)
    memory = fleet.devices[pool.device].memory_bytes * serve.tensor_parallel * MEMORY_UTILIZATION
    return weights + tokens * model.kv_bytes_per_token > memory
