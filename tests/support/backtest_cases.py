"""Ground of the tests of the backtest: the packaged sample on the packaged fleet."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

from stream_cases import MODEL

from policies import Fleet, Options, Policy, compile_options
from policies.backtest.baselines import BASELINES
from policies.backtest.fault_model import Reality
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replay import Replay, ReplayRun
from policies.backtest.workload import Arrival, compress, profiles_of
from shunter.backtest.files import read_trace
from shunter.backtest.suite import Setting, scaled, shunter
from streams.config.declarations import load_fleet, load_policy
from topics import InferenceRequest

FLEET, POLICY = load_fleet(None), load_policy(None)


@cache
def sample(rows: int = 2000, rate: float = 1.0) -> tuple[Arrival, ...]:
    return tuple(compress(read_trace(None)[:rows], rate))


def setting(rows: int = 2000, rate: float = 1.0, reality: Reality | None = None) -> Setting:
    return Setting(sample(rows, rate), scaled(FLEET, rate), POLICY, reality or Reality())


def replay(
    name: str = "shunter",
    *,
    rows: int = 2000,
    rate: float = 1.0,
    fleet_scale: float | None = None,
    reality: Reality | None = None,
    fleet: Fleet = FLEET,
    policy: Policy = POLICY,
) -> tuple[ReplayRun, Options]:
    reality = reality or Reality()
    arrivals = sample(rows, rate)
    scale = rate if fleet_scale is None else fleet_scale
    case = Setting(arrivals, scaled(fleet, scale), policy, reality)
    options = compile_options(case.fleet)
    route = shunter(case, options) if name == "shunter" else BASELINES[name](options, policy)
    draw = random.Random(reality.seed).random
    run = Replay(route, options, policy, reality, draw).run(
        profiles_of(arrivals, fleet, policy),
        [a.output_tokens for a in arrivals],
        [a.prefix_tokens for a in arrivals],
    )
    return run, options


def cost_usd(run: ReplayRun) -> float:
    return sum(outcome.cost_usd for outcome in run.outcomes)


def moved(outcome: ReplayOutcome, **changes: object) -> ReplayOutcome:
    return replace(outcome, **changes)  # type: ignore[arg-type]


def asked(
    row: int, at_s: float, *, output_tokens: int = 200, body: Any = None, **fields: Any
) -> Arrival:
    """Return a request to the fleet of the stages' tests, as `--topic` has it."""
    request = InferenceRequest.model_validate(
        {"id": "any", "model": MODEL, "task": "chat", "body": body or {}, **fields}
    )
    return Arrival(row, at_s, request.task or "", MODEL, 300, output_tokens, None, request=request)
