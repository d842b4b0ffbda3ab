"""`shunter policy check` warns of what is valid and can't work."""

import json

import pytest
from typer.testing import CliRunner

from policies import Fleet, Policy, compile_options, parse_policy, review
from shunter.cli import app
from streams.declarations import load_fleet, load_policy, packaged

FLEET, POLICY = load_fleet(None), load_policy(None)


def warnings(fleet: Fleet = FLEET, policy: Policy = POLICY) -> list[str]:
    return review(fleet, compile_options(fleet), policy)


def changed(old: str, new: str) -> Policy:
    text = packaged("policy.yaml")
    assert old in text
    return parse_policy(text.replace(old, new, 1), "policy.yaml")


def without(*names: str) -> Fleet:
    pools = {name: pool for name, pool in FLEET.pools.items() if name not in names}
    return FLEET.model_copy(update={"pools": pools})


def test_the_packaged_declarations_have_lone_pools_and_no_other_warning() -> None:
    lone = (
        ("eu-west", "premium-eu", "gpt-oss-120b"),
        ("us-east", "premium-us", "minilm-embedding"),
        ("us-east", "premium-us", "llama-guard-3-8b"),
    )
    end = "what must stay in the region has no fallback"
    assert warnings() == [f"region {r}: only {p} serves {m}; {end}" for r, p, m in lone]


def test_a_model_that_no_pool_serves() -> None:
    found = warnings(without("premium-us", "premium-eu", "cpu-eu"))
    assert (
        "model minilm-embedding: no pool serves it, though silicon-us could; each request for it"
        " is rejected"
    ) in found


def test_a_model_that_no_pool_could_hold() -> None:
    huge = load_fleet(None).models["llama-3.1-70b"].model_copy(update={"parameters_b": 9000.0})
    fleet = FLEET.model_copy(update={"models": {**FLEET.models, "huge": huge}})
    (found,) = [each for each in warnings(fleet) if each.startswith("model")]
    assert "no pool could hold its weights" in found


@pytest.mark.parametrize("limit", ["ttft_ms: 1500\n    tpot_ms: 80", "ttft_ms: 1500"])
def test_a_class_that_no_pool_serves_in_time(limit: str) -> None:
    strict = limit.replace("1500", "0.5").replace("80", "0.5")
    found = [each for each in warnings(policy=changed(limit, strict)) if "chat" in each]
    assert any(
        each.startswith("class chat: no pool serves llama-3.1-70b within its TTFT (0.5 ms)")
        for each in found
    )


def test_a_class_whose_precisions_no_pool_has() -> None:
    policy = changed("precisions: [fp32, bf16, fp16, fp8, int8, mxfp4]", "precisions: [fp32]")
    found = [each for each in warnings(policy=policy) if each.startswith("class code_planning")]
    assert len(found) == 5  # each model but the embedding one
    assert "none has a lane for it at a precision it tolerates (fp32)" in found[0]


def test_the_command_tells_them() -> None:
    result = CliRunner().invoke(app, ["policy", "check"])
    assert result.exit_code == 0
    assert "warning: region eu-west" in result.stdout
    report = json.loads(CliRunner().invoke(app, ["policy", "check", "--json"]).stdout)
    assert report["warnings"] == warnings()
