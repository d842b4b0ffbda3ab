"""`shunter policy explain`: each candidate with its figures and why it is or isn't it."""

import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from client_commands import CANDIDATES, evidence, producing
from policy_cases import profile
from typer.testing import CliRunner

from policies import compile_options
from policies.fleet_state.view import idle_reports
from policies.scoring.reasons import has_choice, reasons
from shunter.cli import app
from streams.config.declarations import load_fleet, load_policy
from streams.router.accounts import home_of
from topics import Catalogue, Evidence, QualityEntry, Settings, VariantQuality, encode
from topics.admin.provisioning import apply
from topics.iso_time import iso_time
from topics.records.money import Account, Amounts, BudgetState
from topics.records.quality import quality_key

REQUEST = {"id": "r1", "body": {"model": "llama-3.1-8b", "messages": []}}


def explained(directory: Path, *options: str, **fields: Any) -> str:
    """What the command prints, with the packaged fleet and policy."""
    file = directory / "request.json"
    file.write_text(json.dumps(REQUEST | fields))
    done = CliRunner().invoke(app, ["policy", "explain", str(file), *options])
    assert done.exit_code == 0, done.output
    return done.stdout


def why(directory: Path, **fields: Any) -> dict[tuple[str, str], str]:
    """The reason of each candidate by pool and path, from the JSON."""
    told = json.loads(explained(directory, "--json", **fields))
    return {(each["pool"], each["path"]): each["reason"] for each in told["candidates"]}


def test_each_candidate_is_told_with_cost_latency_chance_and_reason(tmp_path: Path) -> None:
    limits = {"exclude_pools": ["premium-us"], "precisions": ["any"]}
    text = explained(tmp_path, constraints=limits, slo={"ttft_ms": 1000, "tpot_ms": 10})
    lines = [" ".join(line.split()) for line in text.splitlines()]
    told = json.loads(
        explained(tmp_path, "--json", constraints=limits, slo={"ttft_ms": 1000, "tpot_ms": 10})
    )
    shown = [
        f"{'→ ' if number == 0 else ''}{c['path']} {c['pool']} {c['region']} {c['model_variant']}"
        f" {c['precision']} {c['reason'].replace('_', ' ')} {c['cost_usd']:.7f}"
        for number, c in enumerate(told["candidates"])
        if c["refused"] is None
    ]
    assert [c["reason"] for c in told["candidates"]] == [
        "cheapest_in_time", "costs_more", "chance_too_low", "pool_excluded", "lane",
    ]  # fmt: skip
    rows = [line for line in lines if line.removeprefix("→ ").startswith(("direct ", "hold "))]
    assert len(rows) == len(shown) == 3
    for row, beginning in zip(rows, shown, strict=True):
        assert row.startswith(beginning)
        ttft_s, finish_s, chance = map(float, row.removeprefix(beginning).split())
        assert 0 < ttft_s < finish_s
        assert 0 <= chance <= 1
    assert "refused premium-us us-east, llama-3.1-8b-fp8 fp8: pool_excluded" in lines
    assert any("placed: cheapest_in_time" in line for line in lines)
    assert told["assumed_pools"] == ["silicon-us", "lpddr-eu", "lpddr-us", "cpu-eu"]
    assert lines[-1].endswith("measured: silicon-us, lpddr-eu, lpddr-us, cpu-eu")
    assert f"versions policy {told['policy_version']} · fleet {told['fleet_version']}" in lines


def test_waiting_and_what_nobody_can_do_in_time_are_explained(tmp_path: Path) -> None:
    waits = why(tmp_path, task="summarization", constraints={"pools": ["silicon-us", "lpddr-us"]})
    assert waits["lpddr-us", "hold"] == "waiting_is_cheapest"
    assert waits["silicon-us", "direct"] == waits["silicon-us", "hold"] == "costs_more"
    late = why(tmp_path, constraints={"precisions": ["any"]}, slo={"ttft_ms": 1})
    assert [reason for reason in late.values() if reason != "lane"] == [
        "best_chance", *["lower_chance"] * 3,
    ]  # fmt: skip


def test_a_request_that_no_pool_may_serve_is_explained(tmp_path: Path) -> None:
    text = explained(tmp_path, constraints={"regions": ["mars"]})
    assert "rejected: no_pool" in text
    assert set(why(tmp_path, constraints={"regions": ["mars"]}).values()) == {"region"}


HELD = evidence()[0]


@pytest.mark.parametrize(
    ("step", "told"),
    [
        (HELD, ["waiting_is_cheapest", "costs_more", "region"]),
        (replace(HELD, step="released", reason="full"), ["cheapest_in_time", "costs_more"]),
        (replace(HELD, reason="best_chance"), ["best_chance", "lower_chance", "region"]),
        # It costs less, and something else that was weighed made the difference.
        (
            replace(HELD, candidates=CANDIDATES[1::-1], reason="leaves_scarce_places"),
            ["leaves_scarce_places", "counts_as_dearer"],
        ),
        (
            replace(
                HELD,
                profile=profile(target_chance=0.995),
                candidates=CANDIDATES[1::-1],
                reason="cheapest_in_time",
            ),
            ["cheapest_in_time", "chance_too_low"],
        ),
        (
            replace(HELD, step="released", profile=profile(target_chance=0.9999)),
            ["best_chance", "lower_chance"],
        ),
        (
            replace(HELD, step="rejected", promised=None, candidates=CANDIDATES[2:]),
            ["region"],
        ),
    ],
)
def test_the_reasons_of_a_decision_s_candidates(step: Evidence, told: list[str]) -> None:
    assert [*reasons(step)][: len(told)] == told
    assert has_choice(step) == (step.promised is not None)


def otherwise(directory: Path, *options: str, **fields: Any) -> list[tuple[str, str | None]]:
    """What is done, and where, as one pool after another becomes unavailable, from the JSON."""
    told = json.loads(explained(directory, "--json", *options, **fields))
    return [(each["action"], each["pool"]) for each in told["otherwise"]]


def test_where_it_goes_as_pools_become_unavailable(tmp_path: Path) -> None:
    told = json.loads(explained(tmp_path, "--json"))
    best = told["candidates"][0]["pool"]
    chain = otherwise(tmp_path)
    assert chain[-1] == ("hold", None)
    pools = [best, *(pool for _, pool in chain[:-1])]
    assert sorted(filter(None, pools)) == sorted(
        each["pool"] for each in told["candidates"] if each["refused"] is None
    )
    assert [each["without"] for each in told["otherwise"]] == [
        pools[: number + 1] for number in range(len(pools))
    ]
    # The same, one step on.
    assert otherwise(tmp_path, "--without", best) == chain[1:]
    second = json.loads(explained(tmp_path, "--json", "--without", best))
    assert second["candidates"][0]["pool"] == pools[1]
    assert f"without {best}: placed at {pools[1]}" in explained(tmp_path)


def test_a_pool_that_is_not_in_the_fleet_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(REQUEST))
    outcome = CliRunner().invoke(app, ["policy", "explain", str(file), "--without", "nowhere"])
    assert outcome.exit_code == 1
    assert "--without 'nowhere': the fleet has premium-" in str(outcome.exception)


def test_what_may_reject_or_end_it_is_told(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    packaged = yaml.safe_load(Path("policies/defaults/policy.yaml").read_bytes())
    limited = {"tenants": {"acme": {"rate_per_s": 5, "share": 2}}, "attempts_max": 7}
    policy.write_text(yaml.safe_dump(packaged | limited))
    deadline = 4_000_000_000.0
    text = explained(tmp_path, "--policy", str(policy), tenant="acme", deadline=deadline)
    assert "beyond 5 requests/s of tenant 'acme', counted over 10 s: rejected" in text
    assert "more than its share (2)" in text
    assert "7 attempts in all" in text
    assert "by 2096-10-02T07:06:40Z: expired" in text
    assert "tenant 'default' has no rate" in explained(tmp_path, "--policy", str(policy))


BOUND = """
tenants:
  acme: {bound: {regions: [eu-west]}}
  vault: {needs_key: true}
keys:
  k1: {tenant: acme, bound: {pools: [premium-eu]}}
"""


def bound_policy(directory: Path) -> str:
    policy = directory / "policy.yaml"
    packaged = yaml.safe_load(Path("policies/defaults/policy.yaml").read_bytes())
    policy.write_text(yaml.safe_dump(packaged | yaml.safe_load(BOUND)))
    return str(policy)


def test_what_binds_a_request_is_named_with_its_key_too(tmp_path: Path) -> None:
    words = ["--policy", bound_policy(tmp_path), "--key", "k1"]
    text = explained(tmp_path, *words, tenant="acme")
    assert "bound by keys.k1, tenants.acme" in " ".join(text.split())
    told = json.loads(explained(tmp_path, *words, "--json", tenant="acme"))
    assert told["bound_by"] == ["keys.k1", "tenants.acme"]
    assert {c["pool"] for c in told["candidates"] if c["refused"] is None} == {"premium-eu"}


@pytest.mark.parametrize(
    ("words", "fields", "reason"),
    [
        ([], {"tenant": "acme", "constraints": {"regions": ["us-east"]}}, "outside_bound"),
        (["--key", "k1"], {"tenant": "other"}, "key_of_another_tenant"),
        ([], {"tenant": "vault"}, "key_required"),
        ([], {"url": "/v1/responses"}, "operation_not_served"),
    ],
)
def test_what_is_rejected_before_a_decision_is_told_as_a_router_would(
    tmp_path: Path, words: list[str], fields: dict[str, Any], reason: str
) -> None:
    words = [*words, "--policy", bound_policy(tmp_path)]
    assert f"rejected: {reason}" in explained(tmp_path, *words, **fields)
    told = json.loads(explained(tmp_path, *words, "--json", **fields))
    assert (told["action"], told["reason"], told["candidates"]) == ("reject", reason, [])


@pytest.mark.kafka
async def test_live_goes_by_the_pools_that_report_and_by_what_is_in_force(
    kafka: str, prefix: str, tmp_path: Path
) -> None:
    settings = Settings(bootstrap_servers=kafka, topic_prefix=prefix)
    at = ["--bootstrap-servers", kafka, "--topic-prefix", prefix]
    fleet = load_fleet(None)
    await apply(settings, fleet.pools)
    alive, late = idle_reports(compile_options(fleet), time.time())[:2]
    async with producing(settings) as producer:
        for status in (alive, replace(late, at=time.time() - 3600)):
            key = f"{status.pool}/{status.instance}".encode()
            topic = Catalogue(settings).pool_status
            await producer.send_and_wait(topic, encode(status), key=key)
    policy = tmp_path / "policy.yaml"
    packaged = yaml.safe_load(Path("policies/defaults/policy.yaml").read_bytes())
    policy.write_text(yaml.safe_dump(packaged | {"attempts_max": 5}))
    words = ["policy", "apply", "--policy", str(policy), *at]
    outcome = await asyncio.to_thread(CliRunner().invoke, app, words)
    assert outcome.exit_code == 0, outcome.output

    told = json.loads(await asyncio.to_thread(explained, tmp_path, "--live", "--json", *at))
    reasons_by_pool = {each["pool"]: each["reason"] for each in told["candidates"]}
    assert [pool for pool, reason in reasons_by_pool.items() if reason == "only_candidate"] == [
        alive.pool
    ]
    assert reasons_by_pool[late.pool] == "pool_unavailable"
    assert told["policy_version"] == load_policy(policy).version
    assert any("5 attempts in all" in each for each in told["limits"])


@pytest.mark.kafka
async def test_live_knows_what_has_drifted(kafka: str, prefix: str, tmp_path: Path) -> None:
    settings = Settings(bootstrap_servers=kafka, topic_prefix=prefix)
    at = ["--bootstrap-servers", kafka, "--topic-prefix", prefix]
    fleet, catalogue = load_fleet(None), Catalogue(settings)
    await apply(settings, fleet.pools)
    async with producing(settings) as producer:
        for status in idle_reports(compile_options(fleet), time.time()):
            key = f"{status.pool}/{status.instance}".encode()
            await producer.send_and_wait(catalogue.pool_status, encode(status), key=key)
    words = ("--live", "--json", *at)
    sound = json.loads(await asyncio.to_thread(explained, tmp_path, *words))
    best = sound["candidates"][0]
    state = VariantQuality(best["pool"], best["model_variant"], "reference", verdict="drifted")
    entry = QualityEntry(variant=state)
    async with producing(settings) as producer:
        await producer.send_and_wait(catalogue.quality, encode(entry), key=quality_key(entry))
    told = json.loads(await asyncio.to_thread(explained, tmp_path, *words))
    refused = {each["pool"]: each["refused"] for each in told["candidates"]}
    assert refused[best["pool"]] == "drifted"
    assert told["candidates"][0]["pool"] != best["pool"]


@pytest.mark.kafka
async def test_live_tells_what_a_budget_has_used(kafka: str, prefix: str, tmp_path: Path) -> None:
    settings = Settings(bootstrap_servers=kafka, topic_prefix=prefix)
    at = ["--bootstrap-servers", kafka, "--topic-prefix", prefix]
    await apply(settings, load_fleet(None).pools)
    policy = tmp_path / "policy.yaml"
    packaged = yaml.safe_load(Path("policies/defaults/policy.yaml").read_bytes())
    month_s = 30 * 86_400.0
    budgets = [{"window_s": month_s, "requests": 9000, "usd": 2.5}]
    policy.write_text(yaml.safe_dump(packaged | {"tenants": {"acme": {"budgets": budgets}}}))
    number = int(time.time() // month_s)
    topic, home = Catalogue(settings).budgets, home_of("acme", settings.partitions)
    old, new = (Account("tenants.acme", "acme", month_s, n) for n in (number - 1, number))
    async with producing(settings) as producer:
        for account, requests in ((old, 8000), (new, 1), (new, 1234)):
            used = Amounts(requests, 0, 1_500_000_000)
            state = encode(BudgetState(account, Amounts(7, 0, 250_000_000), used))
            key = encode([account.rule, account.number])
            await producer.send_and_wait(topic, state, key=key, partition=home)
        await producer.send_and_wait(topic, b"{}", key=b"another", partition=home)
    words = ("--live", "--policy", str(policy), *at)
    text = await asyncio.to_thread(explained, tmp_path, *words, tenant="acme")
    assert (
        "beyond 9,000 requests, 2.5 USD in 2,592,000 s (tenants.acme): rejected as budget; used"
        " 1,234 requests, 1.5 USD, kept for open ones 7 requests, 0.25 USD, until"
        f" {iso_time(new.ends_at)}"
    ) in text
    told = json.loads(await asyncio.to_thread(explained, tmp_path, *words, "--json", tenant="acme"))
    (state_now,) = told["budgets"]
    assert (state_now["account"]["number"], state_now["used"]["requests"]) == (number, 1234)
    idle = explained(tmp_path, "--policy", str(policy), tenant="acme")
    assert "(tenants.acme): rejected as budget\n" in idle


def test_the_end_of_a_wait_and_a_second_run_are_told(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    packaged = yaml.safe_load(Path("policies/defaults/policy.yaml").read_bytes())
    watch = {"reference": "llama-3.1-8b-fp8", "share": 0.02, "compare": "labels"}
    watch |= {"within": 0.1, "budget_usd_per_day": 1}
    packaged["classes"]["chat"] |= {"watch": watch, "longest_wait_s": 12}
    packaged["tenants"] = {"shy": {"watch": False}}
    policy.write_text(yaml.safe_dump(packaged))
    text = explained(tmp_path, "--policy", str(policy))
    assert "is alive for 12 s: rejected as pool_unavailable" in text
    second = "in 2.0% of the cases: run a second time on llama-3.1-8b-fp8"
    assert second in text
    assert second not in explained(tmp_path, "--policy", str(policy), tenant="shy")
