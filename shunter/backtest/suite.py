"""The runs of a backtest: Shunter, the baselines, and what each is compared with."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from policies import Fleet, Options, Policy, compile_options
from policies.backtest.baselines import BASELINES, PREMIUM
from policies.backtest.fault_model import Reality, true_roofline
from policies.backtest.outcome import ReplayOutcome
from policies.backtest.replay import Replay, ReplayRun
from policies.backtest.route import Route, Shunter
from policies.backtest.scores import scores_of
from policies.backtest.workload import Arrival, TraceError, profiles_of, tagger
from policies.config.fleet import SimulatedBackendConfig
from shunter.backtest.check import emits_too_much, is_broken
from shunter.console import UserError


@dataclass(frozen=True, slots=True)
class Setting:
    """The shared inputs of a backtest's runs."""

    arrivals: Sequence[Arrival]
    fleet: Fleet
    policy: Policy
    reality: Reality
    keeps_candidates: bool = False
    """Whether each try of Shunter keeps its candidates."""


@dataclass(frozen=True, slots=True)
class Scored:
    """The name and the figures of a run."""

    name: str
    scores: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScoredRun(Scored):
    """The same with the run itself."""

    run: ReplayRun


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """A run that is still to be made. ``route`` makes what it is to be made of."""

    name: str
    setting: Setting
    options: Options
    route: Callable[[], Route]

    def run(self) -> ScoredRun:
        """Make it.

        Raises:
            UserError: the trace names what the policy doesn't have.
        """
        return run_one(self.name, self.setting, self.options, self.route())


def scaled(fleet: Fleet, factor: float) -> Fleet:
    """Return the fleet with ``factor`` times the replicas in each pool, one at least."""
    pools = {}
    for name, pool in fleet.pools.items():
        wide = pool.serves[0].tensor_parallel
        replicas = max(1, round(pool.count / wide * factor))
        pools[name] = pool.model_copy(update={"count": replicas * wide})
    return fleet.model_copy(update={"pools": pools})


def migrating(fleet: Fleet) -> Fleet:
    """Return the fleet with simulated pools whose replies migrate between their replicas."""
    pools = {}
    for name, pool in fleet.pools.items():
        backend = pool.backend
        if isinstance(backend, SimulatedBackendConfig):
            backend = backend.model_copy(update={"replies": "migrate"})
        pools[name] = pool.model_copy(update={"backend": backend})
    return fleet.model_copy(update={"pools": pools})


def without_patience(policy: Policy) -> Policy:
    """Return the policy with no class that waits for a cheaper hour."""
    classes = {
        name: each.model_copy(update={"price_wait_s": 0.0}) for name, each in policy.classes.items()
    }
    return policy.model_copy(update={"classes": classes})


def assumed_pools(fleet: Fleet) -> list[str]:
    """Return the pools on devices of which no servers were measured."""
    return [name for name, pool in fleet.pools.items() if fleet.devices[pool.device].is_assumed]


def plans(
    setting: Setting, *, with_baselines: bool, compared: Policy | None = None
) -> list[PlannedRun]:
    """Return the runs to make, Shunter's first, and second the compared one if there is one.

    ``shunter_premium`` is the same policy with only the premium GPUs, ``shunter_told`` with the
    reality as its declaration (speeds and failure rates; not the outages to come), and ``compared``
    is Shunter with the second policy. ``shunter_price_of_now`` never waits for a cheaper hour; it
    is run where the fleet's prices or emissions move.
    """
    fleet, policy = setting.fleet, setting.policy
    options = compile_options(fleet)
    found = [_plan("shunter", setting, options)]
    if compared is not None:
        found.append(_plan("compared", replace(setting, policy=compared), options))
    if setting.reality != Reality():
        told = _told(options, setting.reality)
        found.append(PlannedRun("shunter_told", setting, options, partial(shunter, setting, told)))
    if not with_baselines:
        return found
    if any(option.tariff for choices in options.by_pool.values() for option in choices):
        impatient = replace(setting, policy=without_patience(policy))
        found.append(_plan("shunter_price_of_now", impatient, options))
    premium = {n: p for n, p in fleet.pools.items() if fleet.devices[p.device].kind == PREMIUM}
    if premium:
        only = replace(setting, fleet=fleet.model_copy(update={"pools": premium}))
        found.append(_plan("shunter_premium", only, compile_options(only.fleet)))
    for name, baseline in BASELINES.items():
        found.append(PlannedRun(name, setting, options, partial(baseline, options, policy)))
    return found


def runs(
    setting: Setting, *, with_baselines: bool, compared: Policy | None = None
) -> Iterator[ScoredRun]:
    """Yield the scored runs of `plans` one by one.

    Raises:
        UserError: the trace names what the policy doesn't have.
    """
    for plan in plans(setting, with_baselines=with_baselines, compared=compared):
        yield plan.run()


def _plan(name: str, setting: Setting, options: Options) -> PlannedRun:
    return PlannedRun(name, setting, options, partial(shunter, setting, options))


def shunter(setting: Setting, options: Options) -> Shunter:
    """Return Shunter under the setting's policy, with these options."""
    tag = tagger(setting.arrivals, setting.fleet, setting.policy)
    keeps = setting.keeps_candidates
    return Shunter(options, setting.policy, tag, keeps_candidates=keeps)


def run_one(
    name: str,
    setting: Setting,
    options: Options,
    route: Route,
    is_enough: Callable[[ReplayOutcome], bool] | None = None,
) -> ScoredRun:
    """Return one run of a route over the modelled fleet.

    Args:
        name: of the run.
        setting: trace, fleet, policy and reality.
        options: the fleet's.
        route: what decides.
        is_enough: is told each request that has ended, and returns whether to stop there.
    """
    try:
        profiles = profiles_of(setting.arrivals, setting.fleet, setting.policy)
    except TraceError as error:
        raise UserError(str(error)) from error
    output_tokens = [arrival.output_tokens for arrival in setting.arrivals]
    reality = _within(setting.reality, options)
    draw = random.Random(reality.seed).random  # noqa: S311 - a model, not a secret
    replay = Replay(route, options, setting.policy, reality, draw)
    prefix_tokens = [arrival.prefix_tokens for arrival in setting.arrivals]
    run = replay.run(profiles, output_tokens, prefix_tokens, is_enough)
    broken = sum(
        is_broken(send, arrival, setting.fleet, setting.policy)
        or emits_too_much(send, arrival, setting.fleet, setting.policy)
        for outcome, arrival in zip(run.outcomes, setting.arrivals, strict=True)
        for send in outcome.sends
    )
    scores = scores_of(run, options, broken)
    if isinstance(route, Shunter) and setting.policy.has_budgets:
        scores["budgets"] = list(route.accounts.told())
    return ScoredRun(name, scores, run)


def _within(reality: Reality, options: Options) -> Reality:
    """Return the part of the reality that concerns these pools."""
    return reality.model_copy(
        update={
            "outages": tuple(o for o in reality.outages if o.pool in options.by_pool),
            "preemptions_per_hour": {
                pool: rate
                for pool, rate in reality.preemptions_per_hour.items()
                if pool in options.by_pool
            },
        }
    )


def _told(options: Options, reality: Reality) -> Options:
    by_pool = {
        pool: tuple(
            replace(
                option,
                roofline=true_roofline(option, reality),
                failure_rate=reality.failure_rate,
            )
            for option in choices
        )
        for pool, choices in options.by_pool.items()
    }
    by_model: dict[str, list[Any]] = {}
    for choices in by_pool.values():
        for option in choices:
            by_model.setdefault(option.model, []).append(option)
    return replace(
        options,
        by_pool=by_pool,
        by_model={model: tuple(choices) for model, choices in by_model.items()},
    )
