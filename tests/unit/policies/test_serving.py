"""Constants of servers: what they add to a roofline, where they are declared, what errs without."""

from dataclasses import replace

import pytest
import yaml
from accelerator_cases import LLAMA_8B

from policies.config.fleet import parse_fleet
from policies.config.hardware import Device, HardwareCatalogue, Model
from policies.config.options import compile_options
from policies.config.rooflines import roofline_of
from policies.config.schema import DeclarationError, digest, parse_declaration
from policies.config.serving import Serving
from policies.fleet_state.candidate_load import PoolLoad
from shunter.hardware.devices import load_catalogue

SERVING = Serving(
    compute_share=0.8,
    experts_share=0.5,
    bandwidth_share=0.9,
    layer_us=40,
    expert_layer_us=10,
    sequence_layer_us=0.5,
    prompt_layer_us=150,
    all_reduce_us=14,
    link_share=0.5,
    first_token_ms=30,
    error=0.3,
    error_datasheet=0.4,
    error_assumed=0.6,
)
PLAIN = Device(
    kind="premium_gpu",
    memory_gb=80,
    memory_bandwidth_tb_s=3,
    tflops={"bf16": 1000, "fp8": 2000},
    usd_per_hour=1,
)
SERVED = PLAIN.model_copy(update={"serving": SERVING, "link_gb_s": 400})
MODEL = Model(
    parameters_b=8, layers=32, query_heads=32, kv_heads=8, head_dim=128, hidden_size=4000,
    context_tokens=8192,
)  # fmt: skip
EXPERTS = MODEL.model_copy(update={"active_declared_b": 2.0})


def test_a_device_without_constants_has_the_plain_roofline() -> None:
    found = roofline_of(PLAIN, MODEL, "fp8", 2)
    assert (found.traffic_token_s, found.sequence_overhead_s, found.prompt_overhead_s) == (0, 0, 0)
    assert found.step_overhead_s == 32 * 3e-6
    assert (found.compute_efficiency, found.bandwidth_efficiency) == (0.6, 0.61)
    assert found.kv_bytes_per_token == MODEL.kv_bytes_per_token


def test_an_error_that_a_device_does_not_tell_is_the_packaged_one() -> None:
    told = SERVING.model_dump(exclude={"error", "error_datasheet", "error_assumed"})
    found, packaged = Serving(**told), load_catalogue().devices["h100"].serving
    assert packaged is not None
    assert (found.error, found.error_datasheet, found.error_assumed) == (
        packaged.error,
        packaged.error_datasheet,
        packaged.error_assumed,
    )


def test_constants_add_their_times() -> None:
    alone = roofline_of(SERVED, MODEL, "bf16")
    assert alone.compute_efficiency == pytest.approx(0.6 * 0.8)
    assert alone.bandwidth_efficiency == 0.9
    assert alone.step_overhead_s == pytest.approx(32 * 40e-6)
    assert alone.sequence_overhead_s == pytest.approx(32 * 0.5e-6)
    assert alone.prompt_overhead_s == pytest.approx(32 * 150e-6)
    assert alone.traffic_token_s == 0
    two = roofline_of(SERVED, MODEL, "bf16", 2)
    assert two.step_overhead_s == pytest.approx(32 * (40e-6 + 2 * 14e-6))
    # Two exchanges a layer; of two devices each sends all it has once.
    assert two.traffic_token_s == pytest.approx(2 * 32 * 4000 * 2 / (0.5 * 400e9))
    mixture = roofline_of(SERVED, EXPERTS, "bf16")
    assert mixture.compute_efficiency == pytest.approx(alone.compute_efficiency * 0.5)
    assert mixture.step_overhead_s == pytest.approx(32 * 50e-6)


def test_a_link_that_nobody_declares_is_a_tenth_of_the_memory() -> None:
    undeclared = SERVED.model_copy(update={"link_gb_s": None})
    found = roofline_of(undeclared, MODEL, "bf16", 4)
    declared = SERVED.model_copy(update={"link_gb_s": 300})
    assert found == roofline_of(declared, MODEL, "bf16", 4)


def test_the_width_of_a_model_is_estimated_where_nobody_declares_it() -> None:
    models = load_catalogue().models
    found = {
        name: model.model_copy(update={"hidden_size": None}).width / (model.hidden_size or 0)
        for name, model in models.items()
        if "embeddings" not in model.operations
    }
    assert 0.95 < min(found.values()) < max(found.values()) < 1.37, found


@pytest.mark.parametrize(
    ("device", "precision", "given", "wide", "share"),
    [
        (PLAIN, "fp8", None, 1, 1),
        (SERVED, "fp8", None, 1, 0.5),
        (SERVED, "bf16", None, 1, 1),
        (SERVED, "mxfp4", None, 1, 1),  # widened to 16 bits
        (SERVED, "bf16", "fp8", 1, 0.5),
        (SERVED, "fp8", "bf16", 1, 1),
        (SERVED, "fp8", "bf16", 8, 1),
        (SERVED, "fp8", "bf16", 16, 2),  # each of 8 heads on two devices
    ],
)
def test_the_cache_takes_the_bytes_of_its_precision_and_copies(
    device: Device, precision: str, given: str | None, wide: int, share: float
) -> None:
    found = roofline_of(device, MODEL, precision, wide, given)  # type: ignore[arg-type]
    assert found.kv_bytes_per_token == MODEL.kv_bytes_per_token * share


MEASURED = replace(LLAMA_8B, traffic_token_s=2e-6, sequence_overhead_s=1e-4, prompt_overhead_s=5e-3)


def test_fast_forms_of_a_roofline_are_those_of_an_iteration() -> None:
    pairs = 700 * 350.0
    assert MEASURED.prefill_s(700) == pytest.approx(MEASURED.iteration_s(700, 0, pairs, prompts=1))
    step_s = MEASURED.iteration_s(6, 6000, 6000, sequences=6)
    assert MEASURED.step_s(6, 6000) == pytest.approx(step_s)
    assert step_s == pytest.approx(LLAMA_8B.step_s(6, 6000) + 6 * (2e-6 + 1e-4))
    steps = [MEASURED.step_s(6, 6000 + 6 * step) for step in range(50)]
    assert MEASURED.decode_run_s(6, 6000, 50) == pytest.approx(sum(steps))


FLEET = """
devices: {mine: {kind: premium_gpu, memory_gb: 80, memory_bandwidth_tb_s: 3,
  tflops: {bf16: 1000}, usd_per_hour: 1%s}}
models: {m: {parameters_b: 8, layers: 32, kv_heads: 8, head_dim: 128, context_tokens: 8192}}
pools: {p: {device: mine, count: 1, region: r, serves: [
  {model: m, variant: v, precision: bf16, max_batch: 8}]}}
"""
PACKAGED = yaml.safe_dump({"serving": {"usual": SERVING.model_dump()}}, sort_keys=False)


def test_a_fleet_that_uses_none_of_it_keeps_its_version() -> None:
    assert parse_fleet(FLEET % "", "f").version == "7bf2b3cf23ec"
    dumped = parse_fleet(FLEET % "", "f", PACKAGED).model_dump_json(by_alias=True)
    for word in ("serving", "link_gb_s", "measured", "hidden_size", "kv_precision", "status"):
        assert word not in dumped


def test_constants_are_named_and_stand_in_the_fleet_in_full() -> None:
    fleet = parse_fleet(FLEET % ", serving: usual", "f", PACKAGED)
    assert fleet.devices["mine"].serving == SERVING
    again = parse_fleet(fleet.model_dump_json(by_alias=True), "published")
    assert again.version == fleet.version != parse_fleet(FLEET % "", "f").version
    own = parse_fleet(FLEET % ", serving: mine" + PACKAGED.replace("usual", "mine"), "f", PACKAGED)
    assert digest(own) == fleet.version
    with pytest.raises(DeclarationError, match=r"devices.mine.serving.*did you mean usual"):
        parse_fleet(FLEET % ", serving: usul", "f", PACKAGED)
    with pytest.raises(DeclarationError, match="layer_us"):
        parse_declaration(PACKAGED.replace("    layer_us: 40.0\n", ""), "f", HardwareCatalogue)


def test_a_device_errs_by_what_is_known_of_it() -> None:
    assert (PLAIN.status, PLAIN.error) == ("datasheet", 0)
    assert (SERVED.status, SERVED.error) == ("datasheet", 0.4)
    guessed = SERVED.model_copy(update={"assumptions": {"tflops.bf16": "from memory"}})
    assert (guessed.status, guessed.error) == ("assumed", 0.6)
    priced = SERVED.model_copy(update={"assumptions": {"usd_per_hour": "from memory"}})
    assert priced.status == "datasheet"
    measured = guessed.model_copy(update={"measured": "a thousand rows"})
    assert (measured.status, measured.error) == ("measured", 0.3)
    devices = (PLAIN, SERVED, guessed, priced, measured)
    assert [each.is_assumed for each in devices] == [True, True, True, True, False]


def test_an_option_knows_latency_and_error_of_its_device() -> None:
    (plain,) = compile_options(parse_fleet(FLEET % "", "f")).by_pool["p"]
    assert (plain.latency_s, plain.error, plain.is_assumed) == (0.0, 0.0, True)
    fleet = parse_fleet(FLEET % ", serving: usual", "f", PACKAGED)
    (option,) = compile_options(fleet).by_pool["p"]
    assert (option.latency_s, option.error, option.is_assumed) == (0.03, 0.4, True)
    idle = PoolLoad(workers=1)
    # Before its first token, and beside the device: it is no part of the pool's backlog.
    assert idle.standing(option).backlog_s == pytest.approx(0.03)
