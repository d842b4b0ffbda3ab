"""Pools that are paid by tokens: price, choice, overflow, tier, bound."""

from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import FLEET, NOW, POLICY, PROPERTY, a_policy, a_situation, profile, some_options

from policies import DeclarationError, compile_options, decide, inputs_of, parse_fleet
from policies.config.prices import TokenPrice, TokenRates, UsdPerMillion, nano_of
from policies.scoring.premium import Work, premium_usd
from shunter.backtest.bound_work import token_usd
from shunter.backtest.demand import Demand
from topics.records.decision_rows import NANO

VENDOR = (
    FLEET
    + """
  vendor:
    device: chip
    count: 8
    region: us-east
    labels: {operator: vendor}
    token_price: {usd_per_million: {input: 0.6, cached_input: 0.06, output: 2.4}}
    serves: [{model: llama, variant: llama-fp8, precision: fp8, max_batch: 64}]
"""
)
USD = 400 * 0.6e-6 + 200 * 2.4e-6


def rates(**changes: float) -> TokenRates:
    price = TokenPrice(
        usd_per_million=UsdPerMillion(input=0.6, cached_input=0.06, output=2.4), **changes
    )
    return TokenRates.of(price)


def test_a_request_is_paid_by_its_tokens() -> None:
    assert rates().nano_usd(400, 200) == 720_000
    assert rates().nano_usd(400, 200, 300) == 720_000 - 300 * 540
    assert rates().nano_usd(400, 0, 999) == 400 * 60
    assert rates(request_usd=0.001).nano_usd(400, 200) == 1_720_000
    assert rates(minimum_usd=0.001).nano_usd(400, 200) == 1_000_000


@PROPERTY
@given(
    st.floats(0, 1000).map(lambda usd: round(usd, 6)),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
    st.integers(0, 10**7),
)
def test_the_sum_is_exact_to_half_a_nano_dollar(
    usd: float, read: int, written: int, cached: int
) -> None:
    price = TokenPrice(usd_per_million=UsdPerMillion(input=usd, cached_input=usd / 4, output=usd))
    found = TokenRates.of(price).nano_usd(read, written, cached)
    per_token = [Fraction(round(each * NANO), 10**15) for each in (usd, usd / 4)]
    held = min(cached, read)
    exact = per_token[0] * (read - held + written) + per_token[1] * held
    assert abs(Fraction(found, 10**9) - exact) <= Fraction(1, 2 * 10**9)


def test_a_pool_has_one_price() -> None:
    with pytest.raises(DeclarationError, match="token_price or by usd_per_hour"):
        parse_fleet(VENDOR.replace("count: 8", "count: 8\n    usd_per_hour: 1.0"), "fleet.yaml")


def test_a_fleet_without_a_token_price_keeps_its_version() -> None:
    fleet = parse_fleet(FLEET, "fleet.yaml")
    assert "token_price" not in fleet.model_dump_json()
    assert compile_options(fleet).by_pool["premium"][0].rates is None


def test_an_estimate_is_the_price_of_the_tokens() -> None:
    here = a_situation(fleet=VENDOR)
    decision = decide(profile(), inputs_of(profile(), here, NOW), here.options, here.policy, NOW)
    vendor = next(each for each in decision.candidates if each.pool == "vendor")
    assert vendor.cost_usd == pytest.approx(USD, abs=1e-12)
    cheap = next(each for each in decision.candidates if each.pool == "silicon")
    assert cheap.cost_usd != vendor.cost_usd


def test_work_flows_over_to_a_vendor_when_ours_is_full_and_order_says_so() -> None:
    ours = "{name: ours, labels: {cooling: liquid}}"
    rest = "{name: rest, labels: {operator: vendor}}"
    ordered = POLICY + f"order: [{ours}, {rest}]\n"
    here = a_situation(fleet=VENDOR, policy=ordered)
    asked = profile(precisions=("fp8",))

    def chosen() -> tuple[str, str]:
        found = decide(asked, inputs_of(asked, here, NOW), here.options, here.policy, NOW)
        assert found.option is not None
        return found.option.pool, found.reason

    assert chosen()[0] in {"premium", "silicon"}
    for pool in ("premium", "silicon"):
        load = here.view.loads()[pool]
        load.backlog_s = 100.0
        load.has_changed()
    assert chosen() == ("vendor", "next_in_order")
    never = a_policy(POLICY + "never: [{name: outside, labels: {operator: vendor}}]\n")
    found = decide(asked, inputs_of(asked, here, NOW), here.options, never, NOW)
    refused = {each.pool: each.refused for each in found.candidates}
    assert refused["vendor"] == "never"


def test_a_tier_is_promised_at_its_price_and_limited_by_it() -> None:
    here = a_situation(fleet=VENDOR)
    usual, dear = profile(), profile(price_factor=2.5)
    plain, priced = (
        decide(each, inputs_of(each, here, NOW), here.options, here.policy, NOW)
        for each in (usual, dear)
    )
    assert plain.promised is not None
    assert priced.promised is not None
    assert priced.option == plain.option
    assert priced.promised.cost_usd == pytest.approx(2.5 * plain.promised.cost_usd)
    limited = replace(dear, max_cost_usd=2.0 * plain.promised.cost_usd)
    found = decide(limited, inputs_of(limited, here, NOW), here.options, here.policy, NOW)
    codes = {(each.pool, each.model_variant): each.refused for each in found.candidates}
    assert plain.option is not None
    assert codes[plain.option.pool, plain.option.variant] == "max_cost"


def test_work_without_its_answer_costs_a_vendor_nothing_before_the_first_token() -> None:
    vendor = some_options(VENDOR).by_pool["vendor"][0]
    assert vendor.cut_cost_usd(3.0, 400, 0) == 0.0
    assert vendor.cut_cost_usd(3.0, 400, 10) == pytest.approx(400 * 0.6e-6 + 10 * 2.4e-6)
    ours = some_options(VENDOR).by_pool["premium"][0]
    assert ours.cut_cost_usd(3.0, 0, 0) == 3.0 * ours.usd_per_s


def test_premium_and_bound_know_the_price_of_tokens() -> None:
    options = some_options(VENDOR.replace("kind: inference_silicon", "kind: premium_gpu"))
    vendor, board = options.by_pool["vendor"][0], options.by_pool["board"][0]
    assert premium_usd(Work(400, 200), board, 0.001, [vendor]) == pytest.approx(USD)
    demand = Demand(profile(), 400, 200, 0.0)
    assert token_usd(demand, vendor) == pytest.approx(400 * 0.06e-6 + 200 * 2.4e-6)
    assert token_usd(demand, board) == 0.0
    assert nano_of(1.5) == 1_500_000_000
