"""Twenty tenants under kills, for a while; and the judge of them must find what is wrong."""

import copy
import json
import os
import random
from typing import Any

import pytest
import tenants
from books_audit import Judge

SEED = int(os.environ.get("CHAOS_SEED", "0")) or random.randrange(1, 2**31)
ACCOUNT = {"rule": "tenants.t", "owner": "t", "window_s": 60.0, "number": 5}
KEPT = {"requests": 1, "tokens": 100, "nano_usd": 300_000, "nano_wh": 9_000}
USED = {"requests": 1, "tokens": 150, "nano_usd": 270_000, "nano_wh": 8_500}
PRICE = {"usd_per_million": {"input": 1.0, "cached_input": 0.1, "output": 4.0}}
FLEET = {
    "pools": {
        "ours": {"region": "eu-west", "serves": [{"precision": "fp8"}]},
        "vendor": {"region": "us-east", "serves": [{"precision": "fp8"}], "token_price": PRICE},
    }
}
BUDGET = {"window_s": 60.0, "requests": 1, "usd": 0.0003, "wh": 0.00001}
POLICY = {"tenants": {"t": {"bound": {"regions": ["us-east"]}, "budgets": [BUDGET]}}}
PLACE = {"pool": "vendor", "region": "us-east", "precision": "fp8"}


def story(rule: str = "tenants.t") -> dict[str, Any]:
    """A request that was tried in vain, and then answered by the vendor."""
    account = ACCOUNT | {"rule": rule}
    reserved = {"home": 0, "accounts": [account], "amounts": KEPT}
    usage = {"input_tokens": 100, "output_tokens": 40, "cached_tokens": 50}
    spent = {
        "nano_usd": 55_000,
        "input_tokens": 7,
        "output_tokens": 3,
        "device_s": 0.1,
        "nano_wh": 500,
    }
    cost_usd = (50 * 1.0 + 50 * 0.1 + 40 * 4.0) / 1e6
    settled = {"reserved": reserved, "used": dict(USED)}
    state = {"account": account, "reserved": KEPT, "used": dict.fromkeys(KEPT, 0)}
    ended = {"account": account, "reserved": dict.fromkeys(KEPT, 0), "used": USED}
    told = {"request_id": "r", "tenant": "t"}
    return {
        "evidence": [
            told | {"step": "placed", "reserved": copy.deepcopy(reserved)},
            told | {"step": "fell_back", "spent": spent},
            told
            | {
                "step": "executed",
                "placement": PLACE,
                "usage": usage,
                "got": {"cost_usd": cost_usd},
                "energy_wh": 8e-6,
                "settled": settled,
            },
        ],
        "results": [{"id": "r", "status": "completed", "placement": PLACE, "error": None}],
        "budgets": [(b"k", json.dumps(each).encode()) for each in (state, ended)],
    }


def judged(found: dict[str, Any], pool: str = "vendor") -> list[str]:
    judge = Judge(FLEET, POLICY)
    headers = [("shunter-placement", json.dumps(PLACE | {"pool": pool}).encode())]
    judge.placed(pool, headers, json.dumps({"id": "r", "tenant": "t"}).encode())
    judge.judge(found["evidence"], found["results"], found["budgets"])
    return judge.amiss


def test_a_right_story_is_right() -> None:
    assert judged(story()) == []


def test_a_pool_outside_the_binding_is_found() -> None:
    assert any("sent to ours" in each for each in judged(story(), "ours"))


def _set(found: dict[str, Any], path: str, value: Any) -> None:
    *way, last = path.split("/")
    at: Any = found
    for part in way:
        at = at[int(part) if isinstance(at, list) else part]
    at[last] = value


@pytest.mark.parametrize(
    ("path", "value", "sign"),
    [
        ("evidence/2/got/cost_usd", 0.001, "not 0.000215"),
        ("evidence/1/spent/nano_usd", 54_999, "settled"),
        ("evidence/2/settled/used/nano_usd", 269_999, "the evidence has"),
        ("evidence/2/settled/used/nano_wh", 8_499, "the evidence has"),
        ("evidence/1/spent/nano_wh", 499, "settled"),
        ("evidence/0/reserved/amounts/nano_usd", 300_001, "are kept for what has ended"),
        ("results/0/placement/region", "eu-west", "sent to vendor"),
    ],
)
def test_what_is_wrong_by_one_is_found(path: str, value: Any, sign: str) -> None:
    found = copy.deepcopy(story())
    _set(found, path, value)
    assert any(sign in each for each in judged(found)), judged(found)


def test_books_beyond_the_limit_and_results_twice_are_found() -> None:
    found = story()
    state = json.loads(found["budgets"][0][1])
    state["reserved"]["requests"] = 2
    found["budgets"].insert(0, (b"k", json.dumps(state).encode()))
    assert any("2 requests, of 1" in each for each in judged(found))
    again = story()
    again["results"] *= 2
    assert any("2 results" in each for each in judged(again))


def test_the_books_of_a_class_are_judged_by_its_budgets() -> None:
    policy = {"tenants": {}, "classes": {"chat": {"budgets": [BUDGET]}}}
    for requests, is_beyond in ((1, False), (2, True)):
        found = story("classes.chat")
        state = json.loads(found["budgets"][0][1])
        state["reserved"]["requests"] = requests
        found["budgets"].insert(0, (b"k", json.dumps(state).encode()))
        judge = Judge(FLEET, policy)
        judge.judge(found["evidence"], found["results"], found["budgets"])
        assert any("2 requests, of 1" in each for each in judge.amiss) == is_beyond


@pytest.mark.slow
@pytest.mark.kafka
async def test_bindings_and_budgets_hold_under_kills() -> None:
    print(f"CHAOS_SEED={SEED}")
    judge, done = await tenants.run(15.0, SEED)
    assert not judge.amiss, f"CHAOS_SEED={SEED}\n{judge.amiss[:20]}"
    assert done["router"] + done["worker"] > 0
    assert judge.counts["accepted within budgets"] > 10
    assert judge.counts["beyond a budget"] > 0
