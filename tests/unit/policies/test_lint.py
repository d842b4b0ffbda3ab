"""`shunter policy check` warns of what is valid and can't work."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from policies import Fleet, Policy, compile_options, parse_policy, review
from shunter.cli import app
from streams.config.declarations import load_fleet, load_policy, packaged

FLEET, POLICY = load_fleet(None), load_policy(None)
SERVED = set(compile_options(FLEET).by_model)


WATCH = """\
    watch:
      reference: llama-3.1-8b-fp8
      reference_pool: silicon-us
      share: 0.1
      compare: tokens
      within: 0.3
      budget_usd_per_day: 1
"""


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


def test_a_class_that_waits_and_that_no_pool_can_end_before_its_deadline() -> None:
    summary = """latency_sensitive: false
    batchable: true
    deadline_s: 3600"""
    enough = changed(summary, summary.replace("3600", "30"))
    assert warnings(policy=enough) == warnings()
    short = changed(summary, summary.replace("3600", "0.4"))
    found = [each for each in warnings(policy=short) if each.startswith("class")]
    assert (
        "class summarization: no pool serves llama-3.1-70b before its deadline (0.4 s), even idle"
        " and for a prompt of 256 tokens and a reply of 300; each such request expires"
    ) in found
    assert all(each.startswith("class summarization: no pool serves") for each in found)
    # A class without replies is done with its prompt.
    embedding = summary.replace("3600", "600")
    assert warnings(policy=changed(embedding, embedding.replace("600", "1"))) == warnings()


def test_data_that_may_stay_where_there_is_no_pool() -> None:
    nowhere = changed("regulated: {regions: [eu-west]}", "regulated: {regions: [eu-north, mars]}")
    (found,) = [each for each in warnings(policy=nowhere) if each.startswith("data class")]
    assert found == (
        "data class regulated: the regions that it may stay in have no pool (eu-north, mars);"
        " each request of it is rejected"
    )


@pytest.mark.parametrize(
    ("limits", "pools", "told"),
    [
        ("regions: [eu-west]", ("premium-eu",), {"gpt-oss-120b": "eu-west"}),
        (
            "regions: [eu-west], precisions: [mxfp4]", (),
            dict.fromkeys(SERVED - {"gpt-oss-120b", "llama-3.1-70b"}, "eu-west, mxfp4"),
        ),
        ("labels: {cooling: magic}", (), dict.fromkeys(SERVED, "cooling=magic")),
    ],
)  # fmt: skip
def test_a_model_that_no_pool_serves_where_data_may_stay(
    limits: str, pools: tuple[str, ...], told: dict[str, str]
) -> None:
    policy = changed("regulated: {regions: [eu-west]}", f"regulated: {{{limits}}}")
    found = [each for each in warnings(without(*pools), policy) if each.startswith("data class")]
    assert sorted(found) == sorted(
        f"data class regulated: no pool serves {model} where it may stay ({limit}); each such"
        " request is rejected"
        for model, limit in told.items()
    )


def test_the_command_tells_them() -> None:
    result = CliRunner().invoke(app, ["policy", "check"])
    assert result.exit_code == 0
    assert "warning: region eu-west" in result.stdout
    report = json.loads(CliRunner().invoke(app, ["policy", "check", "--json"]).stdout)
    assert report["warnings"] == warnings()


def test_pools_that_are_never_used_are_no_fallback_and_serve_nothing() -> None:
    never = "never: [{name: far, regions: [us-east]}, {name: gone, labels: {operator: x}}]\n"
    text = packaged("policy.yaml").replace("public: {}", "local: {regions: [us-east]}")
    text = text.replace("    quality_min: 0.99\n", "    quality_min: 0.99\n" + WATCH, 1)
    found = warnings(policy=parse_policy(text + never, "policy.yaml"))
    # Of us-east nothing is said but what it is needed for: nothing goes there.
    assert not [each for each in found if each.startswith("region us-east")]
    assert "never: no pool of the fleet belongs to the group gone" in found
    assert "class chat: its watch has the reference llama-3.1-8b-fp8, not served by silicon-us" in (
        found
    )
    assert (
        "data class local: the regions that it may stay in have no pool (us-east); each request of"
        " it is rejected"
    ) in found
    everywhere = "never: [{name: all, regions: [us-east, eu-west]}]\n"
    found = warnings(policy=parse_policy(packaged("policy.yaml") + everywhere, "policy.yaml"))
    assert (
        "model gpt-oss-120b: the policy never uses the pools that serve it (lpddr-us, premium-eu,"
        " premium-us, silicon-us); each request for it is rejected"
    ) in found


def bound(**declared: str) -> list[str]:
    """Return what is told of bounds, given as lines of the policy by where they stand."""
    text = packaged("policy.yaml").replace("tenants: {}", "")
    for place, lines in declared.items():
        text += f"\n{place}:\n  {lines}\n"
    found = warnings(policy=parse_policy(text, "policy.yaml"))
    return [each for each in found if "bound" in each]


def test_a_bound_that_names_what_the_fleet_has_not() -> None:
    told = "a: {bound: {regions: [eu-wset, eu-west], pools: [premium-eu, other]}}"
    assert bound(tenants=told) == [
        "tenants.a: its bound names pools that the fleet has not: other",
        "tenants.a: its bound names regions that the fleet has not: eu-wset",
    ]


@pytest.mark.parametrize(
    ("limits", "is_homeless"),
    [
        ("regions: [eu-west], pools: [premium-us]", True),
        ("precisions: [fp32]", True),
        ("data_classes: [regulated], regions: [us-east]", True),
        ("data_classes: [regulated, public], regions: [us-east]", False),
        ("regions: [eu-west], precisions: [mxfp4]", False),
    ],
)
def test_a_bound_that_leaves_no_pool(limits: str, is_homeless: bool) -> None:
    told = "no pool is within its bound; each such request is rejected"
    assert bound(tenants=f"a: {{bound: {{{limits}}}}}") == [f"tenants.a: {told}"] * is_homeless


def test_bounds_that_leave_no_pool_together() -> None:
    found = bound(
        tenants="a: {bound: {regions: [eu-west]}}\n  b: {bound: {regions: [us-east]}}",
        keys="k: {tenant: a, bound: {pools: [premium-us]}}",
    )
    told = "no pool is within its bound and that of keys.k; each such request is rejected"
    assert found == [f"tenants.a: {told}"]


def test_many_tenants_outside_the_bound_of_a_class_are_one_warning() -> None:
    tenants = "\n  ".join(f"t{i}: {{bound: {{regions: [eu-west]}}}}" for i in range(8))
    text = packaged("policy.yaml").replace("tenants: {}", f"tenants:\n  {tenants}")
    text = text.replace("  chat:\n", "  chat:\n    bound: {regions: [us-east]}\n", 1)
    found = [e for e in warnings(policy=parse_policy(text, "policy.yaml")) if "bound" in e]
    names = ", ".join(f"tenants.t{i}" for i in range(5))
    told = f"classes.chat: no pool is within its bound and that of {names} and 3 others;"
    assert found == [f"{told} each such request is rejected"]


def test_a_class_that_no_variant_is_good_enough_for() -> None:
    silicon = without(*(name for name in FLEET.pools if name != "lpddr-us"))
    found = [each for each in warnings(silicon) if each.startswith("class chat: no pool serves")]
    assert found
    assert all(each.endswith("and a quality of 0.99") for each in found)


H100 = """\
pools:
  one: {device: h100, count: 2, region: eu-west, serves: [%(serves)s], %(pool)s}
  two: {device: h100, count: 1, region: eu-west, serves: [%(serves)s], site: hall}
sites: {hall: %(site)s}
"""
SERVES = "{model: llama-3.1-8b, variant: llama-3.1-8b-fp8, precision: fp8, max_batch: 8}"


@pytest.mark.parametrize(
    ("pool", "site", "told"),
    [
        # One of two busy at 700 + 350 W, the other idle at 105 + 210 W.
        ("power_kw_max: 1.4", "{}", []),
        ("power_kw_max: 1.3", "{}", ["one: its power_kw_max is 1.3"]),
        ("site: hall", "{power_kw_max: 1.7}", []),
        # Of the second, 1.05 kW beside 0.63 idle.
        (
            "site: hall",
            "{power_kw_max: 1.6}",
            ["one: the power_kw_max of its site hall is 1.6", "two: the power_kw_max of its site"],
        ),
    ],
)
def test_a_limit_of_power_that_leaves_room_for_nothing(
    tmp_path: Path, pool: str, site: str, told: list[str]
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(H100 % {"serves": SERVES, "pool": pool, "site": site})
    found = [each for each in warnings(load_fleet(file)) if each.endswith("nothing is sent there")]
    assert len(found) == len(told)
    for each, expected in zip(found, told, strict=True):
        name, _, limit = expected.partition(": ")
        assert each.startswith(f"pool {name}: ")
        assert limit in each


def test_errors_of_a_class_that_there_is_not_are_told() -> None:
    errors = "quotes: {errors: {any: {}, chat: {}, chta: {direct: [[0.9, 1.0]]}}}\n"
    found = warnings(policy=parse_policy(packaged("policy.yaml") + errors, "policy.yaml"))
    assert [each for each in found if "quotes" in each] == [
        "quotes.errors: no class is called chta; did you mean chat?"
    ]
