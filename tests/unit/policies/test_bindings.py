"""Bindings of a tenant, a key or a class hold whatever the request says."""

from typing import Any

import pytest
from decisions import decide_in, target_in
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import (
    NOW,
    POLICY,
    POOLS,
    PRECISIONS,
    PROPERTY,
    REGIONS,
    a_policy,
    a_situation,
    bulk,
    profile,
    request,
    tagged,
)

from policies import Member, Policy, UnservableError, bind, tag
from policies.batching.groups import group_in
from policies.config.policy import DEFAULT_CLASS
from policies.config.schema import DeclarationError

BOUND = """
tenants:
  acme: {bound: {regions: [eu-west], precisions: [bf16, fp8], pools: [premium, board]}}
  clinic: {bound: {data_classes: [regulated, public]}}
  lost: {bound: {data_classes: [public]}}
keys:
  k1: {tenant: acme, bound: {precisions: [fp8]}}
"""


def bound_policy(text: str = BOUND) -> Policy:
    return a_policy(POLICY + text)


def told(policy: Policy, key: str | None = None, **fields: Any) -> Any:
    return tag(
        request(**fields),
        policy,
        received_at=NOW,
        now=NOW,
        ingest_partition=0,
        key=key,
    ).profile


def test_a_tenant_that_says_nothing_is_bound() -> None:
    found = told(bound_policy(), tenant="acme")
    assert found.regions == ("eu-west",)
    assert found.precisions == ("bf16", "fp8")
    assert found.pools == ("board", "premium")
    assert found.bound_by == ("tenants.acme",)


def test_a_request_narrows_its_bound_and_never_widens_it() -> None:
    wide = {"regions": ["eu-west", "us-east"], "precisions": ["fp4", "bf16"]}
    found = told(bound_policy(), tenant="acme", constraints=wide)
    assert (found.regions, found.precisions) == (("eu-west",), ("bf16",))


@pytest.mark.parametrize(
    ("constraints", "words"),
    [
        ({"regions": ["us-east"]}, "regions may be us-east by the request, and eu-west"),
        ({"precisions": ["fp4"]}, "precisions may be fp4"),
        ({"pools": ["silicon"]}, "pools may be silicon"),
    ],
)
def test_what_wants_only_what_it_may_not_have_is_refused(
    constraints: dict[str, Any], words: str
) -> None:
    with pytest.raises(UnservableError, match=words) as refused:
        told(bound_policy(), tenant="acme", constraints=constraints)
    assert refused.value.code == "outside_bound"
    assert "tenants.acme of the policy" in refused.value.message


def test_a_key_binds_beside_its_tenant() -> None:
    found = told(bound_policy(), key="k1", tenant="acme")
    assert (found.precisions, found.regions) == (("fp8",), ("eu-west",))
    assert found.bound_by == ("keys.k1", "tenants.acme")
    assert found.key == "k1"


def test_a_class_binds_what_its_requests_say() -> None:
    text = POLICY.replace("output_tokens: 60,", "output_tokens: 60, bound: {precisions: [bf16]},")
    found = told(a_policy(text), task="planning", constraints={"precisions": ["bf16", "fp8"]})
    assert (found.precisions, found.bound_by) == (("bf16",), ("classes.planning",))


def test_other_tenants_are_bound_by_the_default() -> None:
    policy = bound_policy("default_tenant: {bound: {regions: [us-east]}}\ntenants: {acme: {}}")
    assert told(policy, tenant="whoever").regions == ("us-east",)
    assert told(policy, tenant="whoever").bound_by == ("default_tenant",)
    assert told(policy, tenant="acme").regions is None


def test_a_tenant_bound_to_data_classes_is_of_the_first_where_it_names_none() -> None:
    found = told(bound_policy(), tenant="clinic")
    assert found.data_class == "regulated"
    assert found.regions == ("eu-west",)
    assert found.labels == {"operator": "acme"}
    public = told(bound_policy(), tenant="clinic", constraints={"data_class": "public"})
    assert (public.data_class, public.regions) == ("public", None)


def test_another_data_class_is_refused() -> None:
    with pytest.raises(UnservableError, match="allows public") as refused:
        told(bound_policy(), tenant="lost", constraints={"data_class": "regulated"})
    assert refused.value.code == "outside_bound"


def test_labels_against_those_of_an_implied_data_class_are_refused() -> None:
    with pytest.raises(UnservableError, match="operator=other"):
        told(bound_policy(), tenant="clinic", constraints={"labels": {"operator": "other"}})


def test_a_policy_without_bounds_keeps_its_version_and_its_profiles() -> None:
    plain, empty = a_policy(), a_policy(POLICY + "tenants: {acme: {bound: {}}}\nkeys: {}")
    assert a_policy(POLICY + "tenants: {acme: {}}").version == empty.version
    assert plain.version == a_policy(POLICY + "keys: {}").version
    assert not empty.binds
    assert tagged(plain).profile.bound_by == ()


def test_an_undeclared_data_class_is_an_error_with_its_place() -> None:
    with pytest.raises(DeclarationError, match=r"tenants\.acme\.bound\.data_classes\[0\]"):
        bound_policy("tenants: {acme: {bound: {data_classes: [regulatd]}}}")


def test_what_was_routed_before_is_bound_by_the_policy_in_force() -> None:
    held = bulk(tenant="acme")
    found = bind(held, bound_policy())
    assert (found.regions, found.bound_by) == (("eu-west",), ("tenants.acme",))
    assert bind(found, bound_policy()) is found
    assert bind(held, a_policy()) is held


def test_what_was_recognised_stays_bound_by_the_default_class() -> None:
    bound = "output_tokens: 200, bound: {regions: [eu-west]}}"
    policy = a_policy(POLICY.replace("output_tokens: 200}", bound, 1))
    assert policy.default_class == "chat"
    found = bind(bulk(bound_by=(DEFAULT_CLASS,)), policy)
    assert (found.regions, found.bound_by) == (("eu-west",), (DEFAULT_CLASS,))
    assert bind(bulk(), policy).regions is None


def test_what_may_go_nowhere_under_another_policy_goes_nowhere() -> None:
    found = bind(bulk(tenant="acme", regions=("us-east",)), bound_policy())
    assert found.pools == ()
    where = a_situation()
    decision = decide_in(found, where, NOW)
    assert decision.action == "reject"
    assert "bound by tenants.acme" in (decision.message or "")
    free = bulk(tenant="acme", regions=("us-east",))
    options = (where.options, where.policy)
    assert group_in(found, *options) != group_in(free, *options)
    nowhere = bind(bulk(tenant="acme", pools=("silicon",)), bound_policy())
    assert (nowhere.pools, nowhere.regions) == ((), None)
    assert group_in(nowhere, *options) != group_in(bulk(), *options)
    member = Member(found, group_in(found, *options), NOW, 0)
    assert target_in([member], where, NOW) is None


SOME = {
    "regions": st.none() | st.lists(st.sampled_from(REGIONS), max_size=3, unique=True),
    "precisions": st.none() | st.lists(st.sampled_from(PRECISIONS), max_size=3, unique=True),
    "pools": st.none() | st.lists(st.sampled_from(POOLS), max_size=3, unique=True),
}


@settings(PROPERTY)
@given(st.tuples(*[st.fixed_dictionaries(SOME)] * 3), st.sampled_from(["chat", "bulk"]))
def test_nothing_goes_outside_any_bound_on_any_path(
    limits_of: tuple[dict[str, Any], dict[str, Any], dict[str, Any]], task: str
) -> None:
    """Judged by sets alone, without the code that binds."""
    wanted, of_tenant, of_class = limits_of
    plain = a_policy()
    dumped = plain.model_dump(exclude_none=True)
    dumped["tenants"] = {"acme": {"bound": of_tenant}}
    dumped["classes"][task]["bound"] = of_class
    policy = Policy.model_validate(dumped)
    where = a_situation(policy=policy.model_dump_json())
    own = {name: names for name, names in wanted.items() if names is not None}
    try:
        found = told(policy, tenant="acme", task=task, constraints=own)
    except UnservableError:
        return
    decision = decide_in(found, where, NOW)
    chosen = [] if decision.option is None else [decision.option]
    member = Member(found, group_in(found, where.options, policy), NOW, 0)
    target = target_in([member], where, NOW)
    chosen += [] if target is None else [target.option]
    later = bind(profile(tenant="acme", task=task), policy)
    again = decide_in(later, where, NOW).option
    for option in chosen:
        for limits in (wanted, of_tenant, of_class):
            assert limits["regions"] is None or option.region in limits["regions"]
            assert limits["precisions"] is None or option.precision in limits["precisions"]
            assert limits["pools"] is None or option.pool in limits["pools"]
    if again is not None:
        for limits in (of_tenant, of_class):
            assert limits["regions"] is None or again.region in limits["regions"]
            assert limits["pools"] is None or again.pool in limits["pools"]
