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
    serve = {each.variant: each for each in pool.serves}.get(outcome.variant)
    if serve is None:
        return True
    model, tokens = fleet.models[serve.model], outcome.input_tokens + outcome.output_tokens
    allowed = policy.classes[profile.task].precisions
    weights = sum(fleet.models[s.model].weights_bytes(s.precision) for s in pool.serves)
    usable = fleet.devices[pool.device].memory_bytes * serve.tensor_parallel * MEMORY_UTILIZATION
    keeps = (
        (serve.model, serve.precision) == (profile.model, outcome.precision),
        outcome.path in pool.lanes,
        allowed is None or serve.precision in allowed,
        profile.operation in model.operations,
        tokens <= model.context_tokens,
        weights + tokens * model.kv_bytes_per_token <= usable,
    )
    return not all(keeps)
