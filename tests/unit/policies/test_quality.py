"""The floor of quality: a class goes to variants that are good enough, unless a request chose."""

from typing import Any

import pytest
from decisions import decide_in, target_in
from policy_cases import FLEET, NOW, POLICY, a_policy, a_situation, bulk, tagged

from policies import (
    Member,
    Situation,
    allow_again,
    compile_options,
    idle_view,
    parse_fleet,
    situation,
)
from policies.batching.groups import group_in
from policies.config.quality import QUALITY
from policies.config.schema import DeclarationError
from streams.config.declarations import load_fleet, load_policy

FLOOR = POLICY.replace("output_tokens: 200}", "output_tokens: 200, quality_min: 0.99}")


def chosen(**fields: Any) -> set[str]:
    """The precisions that a request may get, in a fleet of bf16, fp8 and int8."""
    where = a_situation(policy=FLOOR)
    decision = decide_in(tagged(where.policy, **fields).profile, where, NOW)
    return {c.precision for c in decision.candidates if c.refused is None}


def test_a_class_gets_what_is_good_enough() -> None:
    assert chosen(task="bulk") == {"bf16", "fp8"}
    where = a_situation(policy=FLOOR)
    decision = decide_in(tagged(where.policy, task="bulk").profile, where, NOW)
    assert {c.refused for c in decision.candidates if c.precision == "int8"} == {"quality"}


def test_any_is_what_a_request_chose() -> None:
    assert chosen(task="bulk", constraints={"precisions": ["any"]}) == {"bf16", "fp8", "int8"}
    assert chosen(task="bulk", constraints={"precisions": ["int8"]}) == {"int8"}
    assert chosen(task="bulk", constraints={"regions": ["eu-west"]}) == {"bf16", "fp8"}


def test_any_lifts_the_precisions_of_a_class_and_no_bound() -> None:
    planning = tagged(a_policy(), task="planning", constraints={"precisions": ["any"]}).profile
    assert planning.precisions is None
    text = POLICY.replace("output_tokens: 60,", "output_tokens: 60, bound: {precisions: [bf16]},")
    kept = tagged(a_policy(text), task="planning", constraints={"precisions": ["any"]}).profile
    assert kept.precisions == ("bf16",)


def test_what_is_held_goes_to_what_is_good_enough() -> None:
    where = a_situation(policy=FLOOR)

    def target(profile: Any) -> Any:
        member = Member(profile, group_in(profile, where.options, where.policy), NOW, 0)
        return target_in([member], where, NOW)

    assert target(bulk()).option.precision in {"bf16", "fp8"}
    assert target(bulk(any_quality=True)).option.precision == "int8"
    groups = {group_in(bulk(any_quality=a), where.options, where.policy) for a in (True, False)}
    assert len(groups) == 2


def test_another_try_stays_above_the_floor() -> None:
    where = a_situation(policy=FLOOR)
    tried = bulk(exclude_pools=("premium", "silicon"))
    assert decide_in(allow_again(tried, where.options, where.policy), where, NOW).action == "reject"


def test_a_fleet_may_know_better_than_its_precisions() -> None:
    text = FLEET.replace(
        "precision: int8, max_batch: 64}", "precision: int8, max_batch: 64, quality: 0.995}"
    )
    plain, better = (compile_options(parse_fleet(t, "fleet.yaml")) for t in (FLEET, text))
    assert plain.of("board", "llama-int8").quality == QUALITY["int8"]
    assert better.of("board", "llama-int8").quality == 0.995
    assert plain.version != better.version


@pytest.mark.parametrize("quality", ["0", "1.1", "good"])
def test_a_quality_is_a_share(quality: str) -> None:
    text = FLEET.replace("max_batch: 32}", f"max_batch: 32, quality: {quality}}}", 1)
    with pytest.raises(DeclarationError, match="quality"):
        parse_fleet(text, "fleet.yaml")


def test_a_plain_chat_of_the_packaged_policy_loses_nothing_unasked() -> None:
    fleet, policy = load_fleet(None), load_policy(None)
    options = compile_options(fleet)
    bare = situation(options, policy)
    where = Situation(options, policy, idle_view(options, NOW), bare.arrivals)
    model = {"model": "llama-3.1-70b", "body": {"model": "llama-3.1-70b"}}
    for wanted, found in ((None, False), (["any"], True)):
        constraints = {} if wanted is None else {"precisions": wanted}
        asked = tagged(where.policy, constraints=constraints, **model).profile
        able = [c for c in decide_in(asked, where, NOW).candidates if c.refused is None]
        assert any(c.precision == "mxfp4" for c in able) is found
        assert able
