"""The packaged catalogue and fleet: complete, sourced, and priced as the documentation says."""

import doctest
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from policies import DeclarationError, compile_options, review
from policies.config.fleet import parse_fleet
from policies.config.hardware import HardwareCatalogue
from policies.config.schema import parse_declaration
from shunter.cli import app
from streams.config.declarations import FULL, load_fleet, load_policy

ROOT = Path(__file__).parents[2]
DEFAULTS = ROOT / "policies" / "defaults"
DEVICES, MODELS, FLEET = (
    (DEFAULTS / f"{name}.yaml").read_text() for name in ("devices", "models", "fleet")
)
TRACE_MODELS = {
    "llama-3.1-8b",
    "llama-3.1-70b",
    "gpt-oss-120b",
    "minilm-embedding",
    "llama-guard-3-8b",
    "qwen2-audio-7b",
}
TRACE = (
    "arrival_s,task,model,input_tokens,output_tokens,prefix_tokens,session,source\n"
    "0.0,chat,llama-3.1-8b,374,44,0,,a:1\n"
    "0.3,embedding,minilm-embedding,600,0,0,,c:1\n"
    "4.0,chat,llama-3.1-70b,900,200,0,,a:2\n"
)
PUBLISHED_DEVICES = {
    "h100", "h200", "b200", "gb200", "b300", "mi300x", "mi355x", "mi455x", "a100", "l40s", "l4",
    "a10g", "tpu-v5e", "tpu-v6e", "tpu7x", "maia-100", "maia-200", "gaudi-3", "inferentia2",
    "trainium2", "crescent-island", "ai200", "gb10", "epyc-turin", "epyc-venice", "xeon-6900p",
}  # fmt: skip


def test_packaged_catalogue_is_complete_and_sourced() -> None:
    devices = parse_declaration(DEVICES, "devices.yaml", HardwareCatalogue).devices
    models = parse_declaration(MODELS, "models.yaml", HardwareCatalogue).models
    assert set(devices) == PUBLISHED_DEVICES
    assert set(models) >= TRACE_MODELS
    assert [name for name, each in (devices | models).items() if not each.source] == []
    assert models["llama-3.1-70b"].kv_bytes_per_token == 320 * 1024
    assert models["gpt-oss-120b"].active_weights_bytes("mxfp4") < 3e9


def test_packaged_fleet_serves_the_open_trace() -> None:
    fleet = parse_fleet(FLEET, "fleet.yaml", DEVICES, MODELS)
    pools = fleet.pools.values()
    served = {name: {each.model for each in pool.serves} for name, pool in fleet.pools.items()}
    assert {fleet.devices[pool.device].kind for pool in pools} == {
        "premium_gpu",
        "inference_silicon",
        "lpddr_board",
        "cpu",
    }
    assert all("batch" in pool.lanes for pool in pools)
    for model in TRACE_MODELS:
        assert sum(model in models for models in served.values()) >= 2, model
    premium = {
        pool.region: served[name]
        for name, pool in fleet.pools.items()
        if fleet.devices[pool.device].kind == "premium_gpu"
    }
    assert premium == {"us-east": TRACE_MODELS, "eu-west": TRACE_MODELS}


def test_table_of_prices_in_the_documentation_is_what_the_roofline_gives() -> None:
    failed, tried = doctest.testfile(str(ROOT / "docs" / "hardware.md"), module_relative=False)
    assert (failed, tried > 0) == (0, True)


def test_the_full_fleet_has_every_kind_of_device_and_serves_the_open_trace() -> None:
    fleet = load_fleet(FULL)
    devices = {pool.device for pool in fleet.pools.values()}
    assert devices >= {"mi455x", "maia-200", "tpu7x", "tpu-v6e", "crescent-island", "epyc-venice"}
    options = compile_options(fleet)
    assert not review(fleet, options, load_policy(None))
    marked = {each.device for pool in options.by_pool.values() for each in pool if each.is_assumed}
    assert marked == devices - {"h200"}
    for model in TRACE_MODELS:
        assert {each.region for each in options.by_model[model]} == {"us-east", "eu-west"}, model
    # As good as the strictest class of the policy wants them, in both regions.
    strictest = max(each.quality_min or 0.0 for each in load_policy(None).classes.values())
    for model in ("gpt-oss-120b", "llama-3.1-8b", "llama-3.1-70b"):
        good = {each.region for each in options.by_model[model] if each.quality >= strictest}
        assert good == {"us-east", "eu-west"}, model


def test_a_file_of_that_name_comes_before_the_packaged_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_fleet(FULL).version == load_fleet(Path("full")).version
    (tmp_path / "full").write_text("pools: 5")
    with pytest.raises(DeclarationError, match="full"):
        load_fleet(FULL)


@pytest.mark.parametrize(
    "command",
    [
        ["policy", "check"],
        ["policy", "explain", "--json"],
        ["policy", "backtest", "--trace", "TRACE", "--no-baselines", "--no-bound", "--json"],
    ],
)
def test_commands_take_the_full_fleet_by_its_name(command: list[str], tmp_path: Path) -> None:
    trace = tmp_path / "trace.csv"
    trace.write_text(TRACE)
    command = [str(trace) if word == "TRACE" else word for word in command]
    if "explain" in command:
        request = tmp_path / "request.json"
        request.write_text('{"id": "r", "body": {"model": "llama-3.1-8b", "prompt": "hello"}}')
        command = [*command, str(request)]
    found = CliRunner().invoke(app, [*command, "--fleet", "full"])
    assert found.exit_code == 0, found.output
    if "explain" in command:
        assert "premium-us" in orjson.loads(found.output)["assumed_pools"]
