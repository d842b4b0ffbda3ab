"""Fallback as declared: ours, then the vendor, never region X, whatever the price."""

from typing import Any

import pytest
from decisions import decide_in, target_in
from policy_cases import NOW, POLICY, a_policy, a_situation, bulk, profile, status

from policies import Member, Policy, allow_again
from policies.batching.groups import group_in
from policies.config.schema import DeclarationError
from topics import Fallback

# For a chat turn premium is cheaper than silicon, and for what may wait the board is the cheapest.
ORDER = """
order:
  - {name: ours, pools: [silicon]}
  - {name: vendor, labels: {cooling: liquid}}
"""
NEVER = "never: [{name: far, regions: [us-east]}]\n"


def choice(where: Any, **changes: Any) -> Any:
    return decide_in(profile(**changes), where, NOW)


def test_the_order_comes_before_the_price_and_says_so() -> None:
    plain, ordered = a_situation(), a_situation(policy=POLICY + ORDER)
    assert choice(plain).option.pool == "premium"
    decision = choice(ordered)
    assert (decision.option.pool, decision.reason) == ("silicon", "first_in_order")
    assert decision.message == "order: ours, before its price"


def test_the_next_group_takes_what_those_before_are_not_likely_to_serve_in_time() -> None:
    ordered = a_situation(policy=POLICY + ORDER)
    ordered.view.report(status("silicon", backlog_s=30.0))
    decision = choice(ordered)
    assert (decision.option.pool, decision.reason) == ("premium", "next_in_order")
    assert (decision.message or "").startswith("order: vendor")
    gone = a_situation("premium", "board", policy=POLICY + ORDER)
    assert choice(gone).reason == "next_in_order"
    assert choice(gone).option.pool == "premium"


def test_pools_of_no_group_come_last_and_the_price_decides_within_one() -> None:
    ordered = a_situation(policy=POLICY + "order: [{name: eu, regions: [eu-west]}]\n")
    decision = decide_in(bulk(), ordered, NOW)
    assert decision.candidates[0].pool == "board"
    assert decision.reason != "first_in_order"
    away = a_situation("silicon", policy=POLICY + "order: [{name: eu, regions: [eu-west]}]\n")
    assert choice(away).message == (
        "order: pools of no group, since none before it is likely to be in time"
    )


def test_nothing_goes_where_it_never_may_on_any_path() -> None:
    where = a_situation(policy=POLICY + NEVER)
    decision = choice(where)
    assert decision.option.pool == "premium"
    assert {c.refused for c in decision.candidates if c.pool == "silicon"} == {"never"}
    only = choice(where, regions=("us-east",))
    assert (only.action, only.reason) == ("reject", "no_pool")
    far = bulk(regions=("us-east",))
    member = Member(far, group_in(far, where.options, where.policy), NOW, 0)
    assert target_in([member], where, NOW) is None
    # With no other pool than one that is never used, the failed one is tried again.
    failed = profile(exclude_pools=("premium",), fallbacks=(Fallback("premium", "timeout"),))
    assert allow_again(failed, where.options, where.policy).exclude_pools == ()
    assert allow_again(failed, where.options, a_policy()).exclude_pools == ("premium",)
    # What lay in the request would fail there again.
    refused = profile(exclude_pools=("premium",), fallbacks=(Fallback("premium", "bad_request"),))
    assert allow_again(refused, where.options, where.policy).exclude_pools == ("premium",)


def test_what_is_held_goes_by_the_order_too() -> None:
    where = a_situation(policy=POLICY + ORDER)
    member = Member(bulk(), group_in(bulk(), where.options, where.policy), NOW, 0)
    found = target_in([member], where, NOW)
    assert found is not None
    assert found.option.pool == "silicon"


def test_without_an_order_a_policy_keeps_its_version() -> None:
    assert a_policy(POLICY + "order: []\nnever: []\n").version == a_policy().version
    assert a_policy(POLICY + ORDER).version != a_policy().version


@pytest.mark.parametrize("group", ["{name: all}", "{name: Upper, pools: [a]}", "{pools: [a]}"])
def test_a_group_says_which_pools(group: str) -> None:
    with pytest.raises(DeclarationError, match="order"):
        a_policy(POLICY + f"order: [{group}]\n")


def test_an_order_is_read_back_as_it_was_written() -> None:
    policy = a_policy(POLICY + ORDER + NEVER)
    again = Policy.model_validate_json(policy.model_dump_json())
    assert (again.order, again.never, again.version) == (policy.order, policy.never, policy.version)
