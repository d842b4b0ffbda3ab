"""Budgets in a backtest: what requests may use is kept to, and energy counts as dollars do."""

from dataclasses import replace
from typing import Any

import pytest
from backtest_cases import FLEET, POLICY, sample

from policies import Fleet, Policy, compile_options
from policies.backtest.fault_model import Reality
from shunter.backtest.suite import ScoredRun, Setting, run_one, shunter

ROWS = 120
DAY = 86_400.0
NAMES = {"wh": "nano_wh", "usd": "nano_usd", "tokens": "tokens", "requests": "requests"}
TENANTS = ("green", "free", "green")


def run(budget: dict[str, Any], fleet: Fleet = FLEET) -> ScoredRun:
    """Replay the sample's beginning, two thirds of it of a tenant with this budget."""
    tenants = {"green": {"budgets": [{"window_s": DAY, **budget}]}}
    policy = Policy.model_validate(POLICY.model_dump(exclude_none=True) | {"tenants": tenants})
    arrivals = [replace(a, tenant=TENANTS[a.row % 3]) for a in sample(ROWS)]
    case = Setting(arrivals, fleet, policy, Reality())
    options = compile_options(fleet)
    return run_one("shunter", case, options, shunter(case, options))


@pytest.mark.parametrize("unit", ["wh", "usd", "tokens", "requests"])
def test_a_tenant_uses_no_more_than_its_budget_and_others_are_served(unit: str) -> None:
    free = run({unit: 10**6})
    (account,) = free.scores["budgets"]
    assert account["refused"] == 0
    limit = account["used"][unit] / 2 if unit in ("wh", "usd") else account["used"][unit] // 2
    kept = run({unit: limit})
    (account,) = kept.scores["budgets"]
    green = [o for o in kept.run.outcomes if o.profile.tenant == "green"]
    refused = [o for o in green if o.reason == "budget"]
    assert account["refused"] == len(refused) > 0
    assert all(o.reason != "budget" for o in kept.run.outcomes if o.profile.tenant == "free")
    own = {
        "wh": sum(o.energy_wh for o in green),
        "usd": sum(o.cost_usd for o in green),
        "tokens": sum(o.input_tokens + o.output_tokens for o in green if o.status == "completed"),
        "requests": len(green) - len(refused),
    }
    assert account["used"][unit] == pytest.approx(own[unit], abs=1e-6)
    # Beyond the limit goes only what a request used more than was kept for it.
    counted = [(o.used, o.profile.reserved.amounts) for o in green if o.profile.reserved]
    over = sum(max(0, getattr(u, NAMES[unit]) - getattr(k, NAMES[unit])) for u, k in counted)
    assert 0 < account["used"][unit] <= 1e-6 + limit + over * (1e-9 if unit in ("wh", "usd") else 1)


def test_energy_counts_only_where_a_budget_is_in_it_and_the_device_tells() -> None:
    spared = run({"usd": 1000.0})
    (account,) = spared.scores["budgets"]
    assert account["used"]["wh"] == 0.0
    silicon = FLEET.pools["silicon-us"].device
    untold = FLEET.devices[silicon].model_copy(update={"power_w": None})
    fleet = FLEET.model_copy(update={"devices": FLEET.devices | {silicon: untold}})
    counted = run({"wh": 1000.0}, fleet)
    unknown = {n for n, p in fleet.pools.items() if fleet.devices[p.device].power_w is None}
    green = [o for o in counted.run.outcomes if o.profile.tenant == "green"]
    assert not {send.option.pool for o in green for send in o.sends} & unknown
    assert {s.option.pool for o in counted.run.outcomes for s in o.sends} & unknown
