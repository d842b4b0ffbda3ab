"""The packaged catalogue and fleet: complete, sourced, and priced as the documentation says."""

import doctest
from pathlib import Path

from policies.config.fleet import parse_fleet
from policies.config.hardware import HardwareCatalogue
from policies.config.schema import parse_declaration

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
