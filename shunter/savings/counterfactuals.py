"""The same requests by other policies: replays of the traffic that the evidence tells of."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from policies import Fleet, Policy, compile_options
from policies.backtest.fault_model import Reality
from policies.backtest.workload import Arrival, taggable
from policies.config.bounds import Bound
from shunter.backtest.suite import PlannedRun, Setting, plans, shunter
from shunter.savings.traffic import EvidenceTraffic
from topics import InferenceRequest
from topics.records.request import Constraints

OURS = "shunter"
WITHOUT_WAITING = "without_waiting"


@dataclass(frozen=True, slots=True)
class Freedom:
    """Fields that a run leaves out: of a request's constraints, of bounds, and of classes."""

    constraints: tuple[str, ...]
    bound: tuple[str, ...]
    classes: tuple[str, ...] = ()


_OF_CLASSES = ("precisions", "quality_min")
FREEDOMS = {
    "without_regions": Freedom(("regions", "data_class", "labels"), ("regions", "data_classes")),
    "without_precisions": Freedom(("precisions",), ("precisions",), _OF_CLASSES),
    "without_constraints": Freedom(
        tuple(Constraints.model_fields),
        tuple(Bound.model_fields),
        (*_OF_CLASSES, "max_gco2"),
    ),
}
"""What each run is free of. What a policy says of pools, ``order`` and ``never``, holds in all."""
TOLD = {
    OURS: "This policy, replayed",
    "shunter_premium": "This policy on premium GPUs alone",
    "shunter_price_of_now": "This policy, nothing waits for a cheaper hour",
    "all_premium": "The least loaded premium GPU",
    "round_robin": "Pools in turn",
    "least_loaded": "The pool with the least load",
    "lowest_latency": "The pool that answers first",
    "cheapest_blind": "The cheapest pool, whatever its load",
    "static_rules": "A fixed pool for each class",
    WITHOUT_WAITING: "This policy, nothing waits for a batch",
    "without_regions": "This policy without regions and data classes",
    "without_precisions": "This policy without precisions, quality",
    "without_constraints": "This policy without any constraint",
}
"""What each run is, for people."""


@dataclass(frozen=True, slots=True)
class Question:
    """A difference between this policy's replay and another run, and what it is called.

    ``is_earned``: it is what the other run costs more, else what it costs less.
    """

    name: str
    told: str
    run: str
    is_earned: bool = False


QUESTIONS = (
    Question("waiting_earned", "What waiting for batches earned", WITHOUT_WAITING, True),
    Question("regions_cost", "What regions and data classes cost", "without_regions"),
    Question("precisions_cost", "What precisions and floors of quality cost", "without_precisions"),
    Question("constraints_cost", "What all constraints cost", "without_constraints"),
)


def known(arrivals: Sequence[Arrival], fleet: Fleet, policy: Policy) -> list[Arrival]:
    """Return the requests of a declared model that are within the policy, renumbered."""
    return taggable((a for a in arrivals if a.model in fleet.models), fleet, policy)


def setting_of(traffic: EvidenceTraffic, fleet: Fleet, policy: Policy) -> Setting:
    """Return the traffic as it is to be replayed, at the fleet's prices of its days."""
    told = traffic.arrivals()
    arrivals = known(told, fleet, policy)
    if outside := len(told) - len(arrivals):
        traffic.left_out["of a class, a model or a bound that is another by now"] += outside
    return Setting(arrivals, fleet.seen_from(traffic.first_at), policy, Reality())


def planned(setting: Setting, wanted: Sequence[str] = ()) -> list[PlannedRun]:
    """Return the runs to make, this policy's first: all, or this one and those wanted by name."""
    others = {each.name: each for each in plans(setting, with_baselines=True)}
    options = compile_options(setting.fleet)
    for name, changed in _changed(setting):
        others[name] = PlannedRun(name, changed, options, partial(shunter, changed, options))
    first = others.pop(OURS)
    return [first, *(run for name, run in others.items() if not wanted or name in wanted)]


def _changed(setting: Setting) -> Iterator[tuple[str, Setting]]:
    """Yield this policy's runs on changed requests."""
    yield WITHOUT_WAITING, replace(setting, arrivals=_each(setting.arrivals, _at_once))
    for name, freedom in FREEDOMS.items():
        arrivals = _each(setting.arrivals, partial(_freed, freedom=freedom))
        yield name, replace(setting, arrivals=arrivals, policy=_open(setting.policy, freedom))


def _each(
    arrivals: Sequence[Arrival], change: Callable[[InferenceRequest], InferenceRequest]
) -> list[Arrival]:
    return [
        arrival if arrival.request is None else replace(arrival, request=change(arrival.request))
        for arrival in arrivals
    ]


def _at_once(request: InferenceRequest) -> InferenceRequest:
    hints = request.hints.model_copy(update={"batchable": False})
    return request.model_copy(update={"hints": hints})


def _freed(request: InferenceRequest, *, freedom: Freedom) -> InferenceRequest:
    fresh = Constraints()
    freed = {name: getattr(fresh, name) for name in freedom.constraints}
    constraints = request.constraints.model_copy(update=freed)
    return request.model_copy(update={"constraints": constraints})


def _open(policy: Policy, freedom: Freedom) -> Policy:
    """Return the policy without what it constrains by itself, of what a run is free of."""

    def opened(each: Any, fields: Sequence[str] = ()) -> Any:
        bound = each.bound.model_copy(update=dict.fromkeys(freedom.bound))
        return each.model_copy(update={"bound": bound, **dict.fromkeys(fields)})

    return policy.model_copy(
        update={
            "classes": {n: opened(c, freedom.classes) for n, c in policy.classes.items()},
            "tenants": {name: opened(each) for name, each in policy.tenants.items()},
            "keys": {name: opened(each) for name, each in policy.keys.items()},
            "default_tenant": opened(policy.default_tenant),
        }
    )
