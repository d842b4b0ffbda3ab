"""The demo's judgement: each kind of failure is seen, and a clean run passes."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from policies.config.fleet import Serve
from shunter.demo.check import judge
from shunter.demo.ledger import Ledger
from shunter.demo.rules import Rules
from shunter.demo.trace import load_rows, request_of
from streams.config.declarations import load_fleet, load_policy
from topics import Evidence, Placement, Result, Source, Timing

FLEET = load_fleet(None)
RULES = Rules(FLEET, load_policy(None))
CHAT = next(
    request_of(row)
    for row in load_rows()
    if row.model == "llama-3.1-8b" and "constraints" not in request_of(row)
)
US = Placement("silicon-us", "maia-200", "llama-3.1-8b-fp8", "fp8", "us-east", "direct")
EU = Placement("premium-eu", "h200", "llama-3.1-8b-fp8", "fp8", "eu-west", "direct")
COLD = Placement("lpddr-eu", "crescent-island", "llama-3.1-8b-int8", "int8", "eu-west", "direct")


def request(name: str = "a", **constraints: Any) -> dict[str, Any]:
    return CHAT | {"id": name, "constraints": constraints}


def step(name: str, what: str, placement: Placement | None) -> Evidence:
    return Evidence(name, what, 1.0, "test", Source("t", 0, 0), placement=placement)  # type: ignore[arg-type]


def ledger(*names: str, placement: Placement = US) -> Ledger:
    return Ledger(
        results={n: Result(n, "completed", Timing(1.0), placement=placement) for n in names},
        result_count=Counter(names),
        evidence={n: [step(n, "placed", placement), step(n, "executed", placement)] for n in names},
    )


def verdict(found: Ledger, *requests: dict[str, Any]):
    return judge({each["id"]: each for each in requests}, found, RULES)


def test_a_clean_run_is_good():
    found = verdict(ledger("a", "b"), request("a"), request("b", regions=["us-east"]))
    assert found.is_good
    assert (found.lost, found.duplicated, found.constraint_violations) == (0, 0, 0)


def test_a_request_without_a_result_is_lost():
    found = verdict(ledger("a"), request("a"), request("b"))
    assert (found.lost, found.is_good) == (1, False)
    assert "b" in found.problems[0]


def test_each_further_result_is_a_duplicate():
    books = ledger("a")
    books.result_count["a"] = 3
    found = verdict(books, request("a"))
    assert (found.duplicated, found.is_good) == (2, False)


def test_a_dead_letter_is_no_loss_but_not_good_and_besides_a_result_a_duplicate():
    books = ledger("a")
    books.dead_letters["b"] = 1
    found = verdict(books, request("a"), request("b"))
    assert (found.lost, found.dead_lettered, found.duplicated, found.is_good) == (0, 1, 0, False)
    books.dead_letters["a"] = 1
    assert verdict(books, request("a"), request("b")).duplicated == 1


def test_a_result_that_nobody_asked_for_is_a_problem():
    assert not verdict(ledger("a", "ghost"), request("a")).is_good


@pytest.mark.parametrize(
    ("constraints", "placement"),
    [
        ({"regions": ["eu-west"]}, US),
        ({"data_class": "regulated"}, US),
        ({"precisions": ["bf16", "fp8"]}, COLD),
        ({"pools": ["premium-eu"]}, US),
        ({"exclude_pools": ["silicon-us"]}, US),
        ({"labels": {"cooling": "air"}}, EU),
    ],
)
def test_each_kind_of_broken_constraint_is_seen_in_result_and_evidence(constraints, placement):
    found = verdict(ledger("a", placement=placement), request("a", **constraints))
    # The result and two steps of evidence.
    assert found.constraint_violations == 3
    assert not found.is_good


def test_a_first_try_at_a_forbidden_place_is_seen_in_the_evidence_alone():
    books = ledger("a", placement=EU)
    books.evidence["a"].insert(0, step("a", "placed", US))
    assert verdict(books, request("a", regions=["eu-west"])).constraint_violations == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"region": "eu-west"},
        {"device": "h200"},
        {"precision": "bf16"},
        {"model_variant": "llama-3.1-70b-fp8", "precision": "fp4"},
        {"pool": "elsewhere"},
    ],
)
def test_a_placement_that_the_fleet_does_not_have_is_a_violation(wrong):
    found = verdict(ledger("a", placement=replace(US, **wrong)), request("a"))
    assert found.constraint_violations == 3


def test_code_plans_may_not_go_to_a_precision_that_their_class_does_not_tolerate():
    plan = request("a") | {"task": "code_planning", "body": {"model": "llama-3.1-70b"}}
    fp4 = replace(US, model_variant="llama-3.1-70b-fp4", precision="fp4")
    silicon = FLEET.pools["silicon-us"]
    four_bits = (
        Serve(model="llama-3.1-70b", variant="llama-3.1-70b-fp4", precision="fp4", max_batch=64),
    )
    pools = FLEET.pools | {"silicon-us": silicon.model_copy(update={"serves": four_bits})}
    rules = Rules(FLEET.model_copy(update={"pools": pools}), load_policy(None))
    found = judge({"a": plan}, ledger("a", placement=fp4), rules)
    assert found.constraint_violations == 3
    assert all("precision fp4 is not among" in each for each in found.problems)


@pytest.mark.parametrize("missing", [0, 1])
def test_evidence_must_have_the_decision_and_the_end(missing):
    books = ledger("a")
    del books.evidence["a"][missing]
    found = verdict(books, request("a"))
    assert (found.unexplained, found.is_good) == (1, False)


def test_what_was_not_of_the_trace_is_left_out():
    books = ledger("a", "warm")
    books.dead_letters["warm"] = 1
    assert verdict(books.without({"warm"}), request("a")).is_good
