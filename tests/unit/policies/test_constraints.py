"""Hard constraints: every reason code, and that no decision on any path breaks one."""

import re
from dataclasses import replace
from typing import Any, get_args

import pytest
from decisions import decide_in, target_in
from hypothesis import event, given, settings
from hypothesis import strategies as st
from policy_cases import (
    FLEET,
    NOW,
    PROPERTY,
    a_situation,
    bulk,
    nobody_lives,
    profile,
    profiles,
    some_options,
    views,
)

from policies import Decision, Member, Option, Options, Policy, Situation
from policies.batching.groups import group_of
from policies.config.policy import Estimates
from policies.fleet_state.arrivals import Arrivals
from policies.fleet_state.view import FleetView
from policies.scoring.constraints import (
    EXPLANATIONS,
    explain,
    has_lane,
    model_refusals,
    refusal,
)
from policies.scoring.estimate import estimate
from topics import Profile
from topics.records.refusal_codes import Refusal

OPTIONS = some_options()
SITUATION = a_situation(options=OPTIONS)
PREMIUM = OPTIONS.of("premium", "llama-bf16")


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, None),
        ({"operation": "embeddings"}, "operation_not_served"),
        ({"regions": ("us-east",)}, "region"),
        ({"regions": ()}, "region"),
        ({"regions": ("us-east", "eu-west")}, None),
        ({"precisions": ("fp8",)}, "precision"),
        ({"precisions": ()}, "precision"),
        ({"precisions": ("bf16",)}, None),
        ({"pools": ("silicon",)}, "pool_not_allowed"),
        ({"pools": ()}, "pool_not_allowed"),
        ({"pools": ("premium",)}, None),
        ({"exclude_pools": ("premium",)}, "pool_excluded"),
        ({"pools": ("premium",), "exclude_pools": ("premium",)}, "pool_excluded"),
        ({"exclude_pools": ("silicon",)}, None),
        ({"labels": {"cooling": "air"}}, "label"),
        ({"labels": {"cooling": "liquid", "unknown": "x"}}, "label"),
        ({"labels": {"cooling": "liquid", "operator": "acme"}}, None),
        ({"input_tokens": 32_768, "output_tokens": 0}, None),
        ({"input_tokens": 32_768, "output_tokens": 1}, "context_too_long"),
        ({"input_tokens": 0, "output_tokens": 32_769}, "context_too_long"),
    ],
)
def test_why_an_option_may_not_serve_a_request(changes: dict[str, Any], code: str | None) -> None:
    assert refusal(profile(**changes), PREMIUM) == code


def test_what_does_not_fit_in_the_memory_is_refused() -> None:
    tight = replace(PREMIUM, kv_capacity_tokens=600)
    assert refusal(profile(input_tokens=400, output_tokens=200), tight) is None
    assert refusal(profile(input_tokens=401, output_tokens=200), tight) == "memory"


def codes(decision: Decision) -> dict[str, str | None]:
    return {f"{c.pool}/{c.model_variant}": c.refused for c in decision.candidates}


def test_each_candidate_that_is_refused_says_why() -> None:
    decision = decide_in(profile(precisions=("bf16",)), a_situation("silicon", "premium"), NOW)
    assert decision.action == "place"
    assert codes(decision) == {
        "premium/llama-bf16": None,
        "premium/llama-fp8": "precision",
        "silicon/llama-fp8": "precision",
        "board/llama-int8": "precision",
    }


@pytest.mark.parametrize(
    ("changes", "refusals"),
    [
        ({"model": "nobody"}, dict.fromkeys(OPTIONS.by_pool, "model_not_served")),
        (
            {"operation": "embeddings"},
            {
                "premium": "operation_not_served",
                "silicon": "operation_not_served",
                "board": "operation_not_served",
                "small": "model_not_served",
            },
        ),
        (
            {"regions": ("mars",)},
            {"premium": "region", "silicon": "region", "board": "region",
             "small": "model_not_served"},
        ),
        (
            {"pools": ("silicon", "board"), "precisions": ("int8",)},
            {"premium": "precision", "silicon": "precision", "board": "lane",
             "small": "model_not_served"},
        ),
        (
            {"max_cost_usd": 0.0},
            {"premium": "max_cost", "silicon": "max_cost", "board": "lane",
             "small": "model_not_served"},
        ),
        (
            {"input_tokens": 40_000, "labels": {"operator": "acme"}},
            {"premium": "context_too_long", "silicon": "label", "board": "label",
             "small": "model_not_served"},
        ),
    ],
)  # fmt: skip
def test_a_rejected_request_names_why_for_every_pool(
    changes: dict[str, Any], refusals: dict[str, str]
) -> None:
    decision = decide_in(profile(**changes), SITUATION, NOW)
    assert decision.action == "reject"
    assert decision.refusals == refusals
    assert decision.message
    if decision.reason == "unknown_model":
        assert "'nobody' is not declared in the fleet: llama, vector" in decision.message
    else:
        assert decision.reason == "no_pool"
        assert all(EXPLANATIONS[code] in decision.message for code in refusals.values())


def test_every_code_has_its_explanation() -> None:
    assert set(EXPLANATIONS) == set(get_args(Refusal))
    assert explain([("p", "region"), ("q", "label")]) == (
        "no pool can serve this request: p is in a region that is not allowed;"
        " q lacks a required label"
    )
    assert explain([]) == "there is no pool"


def test_a_pool_without_a_lane_for_the_request_is_no_reason_to_wait() -> None:
    chat = profile(pools=("board",))
    for where in (a_situation("board"), nobody_lives()):
        decision = decide_in(chat, where, NOW)
        assert (decision.action, codes(decision)["board/llama-int8"]) == ("reject", "lane")
    assert decide_in(bulk(pools=("board",)), nobody_lives(), NOW).action == "hold"


def broken(request: Profile, option: Option) -> list[str]:
    """Constraints that serving the request there breaks, written apart from the code."""
    # One answer of it has to fit.
    tokens = -(-request.input_tokens // request.prompts) + request.output_tokens
    checks = {
        "model": option.model == request.model,
        "operation": request.operation in option.operations,
        "regions": request.regions is None or option.region in request.regions,
        "precisions": request.precisions is None or option.precision in request.precisions,
        "pools": request.pools is None or option.pool in request.pools,
        "exclude_pools": option.pool not in request.exclude_pools,
        "labels": request.labels.items() <= dict(option.labels).items(),
        "context": tokens <= option.context_tokens,
        "memory": tokens <= option.kv_capacity_tokens,
        "lane": "direct" in option.lanes or request.batchable,
    }
    return [name for name, holds in checks.items() if not holds]


def situations(view: FleetView, rate_per_s: float = 1.0) -> Situation:
    return Situation(OPTIONS, SITUATION.policy, view, Arrivals(rate_per_s))


def check_decision(request: Profile, where: Situation) -> None:
    decision = decide_in(request, where, NOW)
    event(f"{decision.action} {decision.reason}")
    limit_usd = request.max_cost_usd
    for candidate in decision.candidates:
        if candidate.refused is None:
            option = OPTIONS.of(candidate.pool, candidate.model_variant)
            assert broken(request, option) == []
            assert where.view.load(option.pool).workers
            assert ("direct" if candidate.path == "direct" else "batch") in option.lanes
            assert limit_usd is None or (candidate.cost_usd or 0) <= limit_usd
    if decision.action == "place":
        assert decision.option is not None
        assert broken(request, decision.option) == []
        assert "direct" in decision.option.lanes
    elif decision.action == "hold":
        some = decision.reason == "pool_unavailable"
        assert some == all(c.refused is not None for c in decision.candidates)
        servable = [o for o in OPTIONS.by_model[request.model] if not broken(request, o)]
        assert servable
        assert request.batchable or some
    else:
        assert decision.action == "reject"
        assert decision.refusals is not None
        assert set(decision.refusals) == set(OPTIONS.by_pool)
        assert set(decision.refusals.values()) <= set(EXPLANATIONS)
        if limit_usd is None:
            assert all(broken(request, o) for o in OPTIONS.by_model.get(request.model, ()))


@settings(PROPERTY)
@given(request=profiles(), view=views(OPTIONS), rate_per_s=st.floats(0.01, 100))
def test_no_decision_breaks_a_constraint(
    request: Profile, view: FleetView, rate_per_s: float
) -> None:
    check_decision(request, situations(view, rate_per_s))


@settings(PROPERTY)
@given(
    request=profiles(),
    lengths=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 2000)), max_size=5),
    view=views(OPTIONS),
)
def test_no_release_breaks_a_constraint_of_any_member(
    request: Profile, lengths: list[tuple[int, int]], view: FleetView
) -> None:
    where = situations(view)
    group = group_of(request, where.policy.windows.length_buckets_tokens)
    others = [
        replace(request, id=f"o{number}", input_tokens=a, output_tokens=b)
        for number, (a, b) in enumerate(lengths)
    ]
    alike = [o for o in others if group_of(o, (512, 2048)) == group]
    members = [Member(each, group, NOW, 0) for each in [request, *alike]]
    target = target_in(members, where, NOW)
    event("released" if target else "no target")
    if target is None:
        return
    assert where.view.load(target.option.pool).workers
    assert target.path in target.option.lanes
    assert target.path == "direct" or request.batchable
    assert 1 <= target.members_max <= target.option.max_batch
    assert target.tokens_max == target.option.kv_capacity_tokens
    assert target.candidates[0].pool == target.option.pool
    # What goes direct is judged alone.
    assert target.asked == (len(members) if target.path == "batch" else 1)
    for member in members[: target.asked]:
        assert broken(member.profile, target.option) == []
        if request.max_cost_usd is not None:
            found = estimate(
                member.profile,
                where.view.standing(target.option),
                transport_s=0.0,
                members=min(target.members_max, len(members)),
            )
            assert found.cost_usd <= request.max_cost_usd


def shape(decision: Decision) -> tuple[Any, ...]:
    """A decision without the order in which it lists what was not chosen."""
    where = None if decision.option is None else (decision.option.pool, decision.option.variant)
    first = decision.candidates[:1] if decision.action in {"place", "hold"} else ()
    return (
        decision.action,
        decision.reason,
        where,
        first if decision.promised else (),
        sorted(decision.candidates, key=repr),
        decision.promised,
        decision.estimate,
        decision.group,
        decision.refusals,
    )


def reordered() -> Options:
    """The options of the same fleet with its pools in the opposite order."""
    head, pools = FLEET.split("pools:\n")
    blocks = re.split(r"^(?=  \w)", pools, flags=re.MULTILINE)
    return some_options(f"{head}pools:\n{''.join(reversed(blocks))}")


BACKWARDS = reordered()


def test_the_order_of_pools_is_no_part_of_a_fleets_version() -> None:
    assert list(BACKWARDS.by_pool) == list(OPTIONS.by_pool)[::-1]
    assert BACKWARDS.version == OPTIONS.version


@settings(PROPERTY)
@given(request=profiles(), data=st.data())
def test_the_same_inputs_give_the_same_decision_in_whatever_order(
    request: Profile, data: st.DataObject
) -> None:
    view = data.draw(views(OPTIONS))
    there = situations(view)
    back = replace(there, options=BACKWARDS)
    assert decide_in(request, there, NOW) == decide_in(request, there, NOW)
    assert shape(decide_in(request, there, NOW)) == shape(decide_in(request, back, NOW))
    members = [Member(request, "g", NOW, 0), Member(replace(request, id="2"), "g", NOW, 1)]
    one, two = (target_in(members, each, NOW) for each in (there, back))
    assert (one is None) == (two is None)
    if one and two:
        assert replace(one, candidates=()) == replace(two, candidates=())
        assert one.candidates[0] == two.candidates[0]
        assert set(one.candidates) == set(two.candidates)


@settings(PROPERTY)
@given(request=profiles(), spread=st.floats(0.01, 3), now=st.floats(-100, 100))
def test_chances_and_envelopes_are_sane(request: Profile, spread: float, now: float) -> None:
    policy: Policy = SITUATION.policy.model_copy(update={"estimates": Estimates(spread=spread)})
    where = Situation(OPTIONS, policy, SITUATION.view, Arrivals(1.0))
    decision = decide_in(request, where, NOW + now)
    assert (decision.action == "expire") == (NOW + now >= request.deadline)
    for candidate in decision.candidates:
        if candidate.refused is None:
            assert 0 <= (candidate.chance or 0) <= 1
            assert (candidate.cost_usd or 0) > 0
            assert (candidate.finish_s or 0) >= (candidate.ttft_s or 0)


@settings(PROPERTY)
@given(profiles(), st.sampled_from([0.0, 0.9, 0.99, 1.0]))
def test_what_refuses_most_requests_is_the_same_for_each(asked: Profile, floor: float) -> None:
    """One fleet for all examples, which keeps what refused the first of their kind."""
    for model in OPTIONS.serving.values():
        plain = [
            refusal(asked, option, floor) or (None if has_lane(asked, option) else "lane")
            for option in model.options
        ]
        assert list(model_refusals(asked, model, floor)) == plain
