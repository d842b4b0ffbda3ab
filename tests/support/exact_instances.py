"""Instances of the backtest that are small enough to be solved: two pools, three requests."""

import random

from backtest_cases import POLICY

from policies import parse_fleet
from policies.backtest.fault_model import Reality
from policies.backtest.workload import Arrival
from shunter.backtest.suite import Setting

FLEET = """
devices:
  fast:
    {kind: premium_gpu, memory_gb: 24, memory_bandwidth_tb_s: 4.0, tflops: {fp8: 200}, usd_per_hour: 4.0}
  slow:
    {kind: lpddr_board, memory_gb: 12, memory_bandwidth_tb_s: 0.8, tflops: {fp8: 60}, usd_per_hour: 0.7}
models:
  yard-8b:
    {parameters_b: 8, layers: 32, query_heads: 32, kv_heads: 8, head_dim: 128, hidden_size: 4096, context_tokens: 8192}
pools:
  near:
    device: fast
    count: 1
    region: here
    backend: {type: simulated, prompt_chunks: full}
    serves: [{model: yard-8b, variant: near-8b, precision: fp8, quality: 1, quality_source: a test, max_batch: 2}]
  far:
    device: slow
    count: 1
    region: there
    backend: {type: simulated, prompt_chunks: full}
    serves: [{model: yard-8b, variant: far-8b, precision: fp8, quality: 1, quality_source: a test, max_batch: 3}]
"""  # noqa: E501 - a table


def instance(seed: int) -> Setting:
    """A few requests with prompts and replies as short as their SLOs are tight."""
    draw = random.Random(seed)
    ttft_ms, tpot_ms = draw.choice([(150, 40), (200, 25), (300, 60)])
    classes = {
        name: each.model_copy(update={"ttft_ms": ttft_ms, "tpot_ms": tpot_ms})
        for name, each in POLICY.classes.items()
    }
    arrivals = [
        Arrival(
            row,
            round(0.1 + draw.uniform(0, 0.15), 3),
            "chat",
            "yard-8b",
            draw.randint(50, 600),
            draw.randint(1, 3),
            None,
        )
        for row in range(3)
    ]
    arrivals = sorted(arrivals, key=lambda arrival: arrival.arrival_s)
    policy = POLICY.model_copy(update={"classes": classes})
    return Setting(arrivals, parse_fleet(FLEET, "a test"), policy, Reality())
