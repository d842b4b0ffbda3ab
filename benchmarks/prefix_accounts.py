"""The tokens of prompts that an earlier turn had, and what became of each in a replay.

    python -m benchmarks.prefix_accounts TRACE.csv [--fleet-scale 6] [--weights 1,2,5]

A trace of sessions (`benchmarks.mooncake_trace`, `benchmarks.agent_trace`) through the packaged
policy, on replicas that keep prefixes. Each token that an earlier turn of its session had was found
cached where the turn went; or another replica of its pool had it, which the turn was kept from by
the price there or by its load; or none of them had it any more.

With a weight, what a kept prefix saves counts so many times in the price of a replica: what more
hits cost. 1 is the policy as it is.
"""

import argparse
from collections import Counter
from dataclasses import replace
from pathlib import Path
from unittest.mock import patch

from policies.backtest.fault_model import Reality
from policies.backtest.replica_pool import ModelPool, Try
from policies.config.options import compile_options
from policies.hardware.replica import Ask, Replica
from shunter.backtest.files import read_trace
from shunter.backtest.suite import Setting, run_one, scaled, shunter
from streams.config.declarations import load_fleet, load_policy

FOUND, EVICTED = "found", "none has it any more"
DEARER, BUSY = "another replica, which is dearer", "another replica, which is too busy"
KINDS = (FOUND, DEARER, BUSY, EVICTED)

_submit, _price_s = ModelPool.submit, Replica.price_s


def count(tokens: Counter[str], pool: ModelPool, attempt: Try, now: float) -> int | None:
    """Submit a try, and count the tokens that its session had before by what became of them."""
    outcome, profile, option = attempt.outcome, attempt.outcome.profile, attempt.option
    left_s = None if profile.ttft_s is None else profile.created_at + profile.ttft_s - now
    lengths = outcome.input_tokens, profile.output_tokens
    ask = Ask(option.variant, *lengths, left_s, profile.tpot_s, profile.session)
    able = {True: 0, False: 0}
    for replica in pool.replicas:
        kept = min(replica.cached_tokens(option.variant, profile.session), outcome.prefix_tokens)
        if kept:
            is_able = replica.can_take(ask, now)
            able[is_able] = max(able[is_able], kept)
    index = _submit(pool, attempt, now)
    found = outcome.cached_tokens
    tokens[FOUND] += found
    tokens[DEARER] += max(0, able[True] - found)
    tokens[BUSY] += max(0, able[False] - max(found, able[True]))
    tokens[EVICTED] += outcome.prefix_tokens - max(found, *able.values())
    return index


def price_s(weight: float, replica: Replica, ask: Ask) -> float:
    """Return the price of a replica, what it keeps of the session counted so many times."""
    price = _price_s(replica, ask)
    if not replica.cached_tokens(ask.variant, ask.session):
        return price
    return price - (weight - 1.0) * (_price_s(replica, replace(ask, session=None)) - price)


def line(setting: Setting, weight: float) -> str:
    """Return a row of the table."""
    tokens: Counter[str] = Counter()
    options = compile_options(setting.fleet)

    def submit(pool: ModelPool, attempt: Try, now: float) -> int | None:
        return count(tokens, pool, attempt, now)

    def price(replica: Replica, ask: Ask) -> float:
        return price_s(weight, replica, ask)

    with patch.object(ModelPool, "submit", submit), patch.object(Replica, "price_s", price):
        scores = run_one("shunter", setting, options, shunter(setting, options)).scores
    whole = max(1, tokens.total())
    shares = [f"{100 * tokens[kind] / whole:.1f} %" for kind in KINDS]
    figures = f"{scores['cost_usd']:.3f}", f"{scores['p50_ttft_ms']:.0f} ms"
    return " | ".join((f"{weight:g}", *figures, f"{100 * scores['slo_attainment']:.2f} %", *shares))


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("--fleet-scale", type=float, default=6.0)
    parser.add_argument("--weights", default="1", help="by commas")
    asked = parser.parse_args()
    fleet, reality = scaled(load_fleet(None), asked.fleet_scale), Reality(prefix_cache=True)
    setting = Setting(tuple(read_trace(asked.trace)), fleet, load_policy(None), reality)
    print(f"| weight | dollars | TTFT | attainment | {' | '.join(KINDS)} |")
    print("| --- " * (4 + len(KINDS)) + "|")
    for weight in map(float, asked.weights.split(",")):
        print(f"| {line(setting, weight)} |", flush=True)


if __name__ == "__main__":
    main()
