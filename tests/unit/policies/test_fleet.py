"""Declarations: what is read, what is refused, and how the refusal reads."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from policies.config.fleet import Fleet, Pool, parse_fleet
from policies.config.hardware import BYTES_PER_WEIGHT, Device, Model
from policies.config.schema import DeclarationError, digest
from policies.config.yaml_loader import DEPTH_MAX, TEXT_BYTES_MAX

ROOT = Path(__file__).parents[3]
DEFAULTS = ROOT / "policies" / "defaults"
DEVICES, MODELS, FLEET = (
    (DEFAULTS / f"{name}.yaml").read_text() for name in ("devices", "models", "fleet")
)
SERVE = "{model: llama-3.1-8b, variant: llama-3.1-8b-fp8, precision: fp8, max_batch: 64}"
# The example of the fleet format that users are shown.
EXAMPLE = f"""
devices:
  h200: {{kind: premium_gpu, memory_gb: 141, memory_bandwidth_tb_s: 4.8,
         tflops: {{bf16: 989, fp8: 1979}}, usd_per_hour: 3.50}}
models:
  llama-3.1-8b: {{parameters_b: 8.03, layers: 32, kv_heads: 8, head_dim: 128,
                 context_tokens: 131072}}
pools:
  premium-eu:
    device: h200
    count: 2
    region: eu-west
    lanes: [direct, batch]
    labels: {{cooling: liquid, operator: acme}}
    serves:
      - {SERVE}
    backend: {{type: simulated}}
"""


def refusal(text: str, **packaged: str) -> DeclarationError:
    with pytest.raises(DeclarationError) as caught:
        parse_fleet(text, "fleet.yaml", **packaged)
    return caught.value


def changed(old: str, new: str) -> str:
    assert old in EXAMPLE
    return EXAMPLE.replace(old, new, 1)


def device(**fields: Any) -> Device:
    figures = {
        "kind": "premium_gpu",
        "memory_gb": 80,
        "memory_bandwidth_tb_s": 2,
        "tflops": {"bf16": 312},
        "usd_per_hour": 1,
    }
    return Device.model_validate(figures | fields)


def test_example_is_read() -> None:
    fleet = parse_fleet(EXAMPLE, "fleet.yaml")
    pool = fleet.pools["premium-eu"]
    assert (pool.count, pool.region, pool.lanes) == (2, "eu-west", ("direct", "batch"))
    assert fleet.devices["h200"].flops("fp8") == 1979e12
    assert fleet.devices["h200"].memory_bytes == 141e9
    assert fleet.devices["h200"].bandwidth_bytes_per_s == 4.8e12
    assert fleet.models["llama-3.1-8b"].kv_bytes_per_token == 128 * 1024


def test_defaults_of_a_pool() -> None:
    serve = {"model": "m", "variant": "v", "precision": "fp8", "max_batch": 1}
    fields = {"device": "d", "count": 1, "region": "r", "serves": [serve]}
    pool = Pool.model_validate(fields)
    assert pool.lanes == ("direct", "batch")
    assert pool.backend.type == "simulated"
    assert pool.serves[0].tensor_parallel == 1


@pytest.mark.parametrize(
    ("old", "new", "field", "value", "message"),
    [
        ("count: 2", "count: -2", "count", "-2", "must be at least 1"),
        ("count: 2", "count: true", "count", "True", "must be a valid integer"),
        ("count: 2", "cuont: 2", "cuont", "2", "unknown field; did you mean count?"),
        ("count: 2", "cuont: 2", "count", "", "required field is missing"),
        ("eu-west", "EU West", "region", "'EU West'", "must match"),
        ("batch]", "btach]", "lanes[1]", "'btach'", "unknown; did you mean batch?"),
        ("batch]", "direct]", "lanes", "[2 items]", "names a lane twice"),
        ("device: h200", "device: h20", "device", "'h20'", "unknown device; did you mean h200?"),
        ("model: llama-3.1-8b,", "model: llama-3-8b,", "serves[0].model", "'llama-3-8b'",
         "unknown model; did you mean llama-3.1-8b?"),
        (SERVE, f"{SERVE}\n      - {SERVE}", "serves[1].variant", "'llama-3.1-8b-fp8'", "twice"),
        ("precision: fp8", "precision: int8", "serves[0].precision", "'int8'",
         "h200 can't compute it; use one of"),
        ("precision: fp8", "precision: fp9", "serves[0].precision", "'fp9'",
         "unknown; did you mean fp8?"),
        ("64}", "64, tensor_parallel: 3}", "serves[0].tensor_parallel", "3", "divide its count"),
        ("memory_gb: 141", "memory_gb: 9", "serves", "[1 item]", "8.0 GB of weights and 1.1 GB"),
        ("{type: simulated}", "{type: simulatd}", "backend", "{type}", "unknown 'type'"),
        ("{type: simulated}", "{seed: 1}", "backend", "", "required field 'type' is missing"),
        ("{type: simulated}", "{type: simulated, time_scale: 0}", "backend.time_scale", "0",
         "must be greater than 0"),
        ("{type: simulated}", "{type: openai, base_url: 'file:///etc'}", "backend.base_url",
         "'file:///etc'", "must be a URL that begins with http:// or https://"),
        ("{type: simulated}", "{type: openai, base_url: 'http://[x'}", "backend.base_url",
         "'http://[x'", "Invalid IPv6 URL"),
        ("{type: simulated}", "{type: openai, base_url: 'http://x', served_name: {llama: y}}",
         "backend.served_name.llama", "'llama'", "not a variant of this pool"),
        ("{type: simulated}", "{type: openai, base_url: 'http://x', metrics_url: 'x'}",
         "backend.metrics_url", "'x'", "must be a URL"),
        ("{type: simulated}", "{type: openai, base_url: 'http://x', metrics_names: {load: y}}",
         "backend.metrics_names.load", "'load'", "use one of kv_usage, queued, running"),
        ("{type: simulated}", "{type: openai, base_url: 'http://x', answer_bytes_max: 1}",
         "backend.answer_bytes_max", "1", "must be at least 1024"),
        ("{type: simulated}", "{type: cpu, model_file: m.onnx}", "backend.model_file", "'m.onnx'",
         "must be given together"),
        ("backend:", "failure_rate: 1.5\n    backend:", "failure_rate", "1.5", "at most 1"),
        ("backend:", "usd_per_hour: .nan\n    backend:", "usd_per_hour", "nan", "finite"),
    ],
)  # fmt: skip
def test_refusal_of_a_pool_names_field_and_value(
    old: str, new: str, field: str, value: str, message: str
) -> None:
    problems = refusal(changed(old, new)).problems
    found = [each for each in problems if each.field == f"pools.premium-eu.{field}"]
    assert [(each.file, each.value) for each in found] == [("fleet.yaml", value)], problems
    assert message in found[0].message


def test_a_list_is_not_called_too_short_for_what_is_wrong_within_it() -> None:
    problems = refusal(changed("max_batch", "max_bach")).problems
    place = "pools.premium-eu.serves[0]"
    assert {each.field for each in problems} == {f"{place}.max_batch", f"{place}.max_bach"}
    empty = refusal(changed(f"- {SERVE}", "[]")).problems
    assert [each.message for each in empty] == ["must hold at least 1"]


@pytest.mark.parametrize(
    ("old", "new", "field", "message"),
    [
        ("  premium-eu:", "  Premium_EU:", "pools.Premium_EU", "must match"),
        ("kind: premium_gpu", "kind: premium", "devices.h200.kind", "did you mean premium_gpu?"),
        ("fp8: 1979", "fp7: 1979", "devices.h200.tflops.fp7", "did you mean fp8?"),
        ("usd_per_hour: 3.50", "usd_per_hour: 3.50, assumptions: {price: guess}",
         "devices.h200.assumptions.price", "no such field"),
        ("kv_heads: 8, ", "", "models.llama-3.1-8b.kv_bytes_per_token", "required unless"),
        ("layers: 32", "layers: 32, active_parameters_b: 9",
         "models.llama-3.1-8b.active_parameters_b", "must be at most parameters_b, 8.03"),
        ("pools:", "pols: {}\npools:", "pols", "unknown field; did you mean pools?"),
        ("device: h200", "device: h200\n    device: h200", "pools.premium-eu.device", "twice"),
        ("- {model: llama-3.1-8b,", "- {model: a, model: b,", "pools.premium-eu.serves[0].model",
         "key 'model' is given twice"),
        ("count: 2", "count: &two 2", "", "anchors and aliases are not read"),
        ("count: 2", "count: *two", "", "anchors and aliases are not read"),
        ("count: 2", "count: !!python/name:os.system 2", "", "is not read; leave it out"),
        ("cooling: liquid", "1: liquid", "pools.premium-eu.labels", "key 1 is not text"),
        ("cooling: liquid", "'", "", "not valid YAML"),
    ],
)  # fmt: skip
def test_refusal_names_the_field(old: str, new: str, field: str, message: str) -> None:
    problems = refusal(changed(old, new)).problems
    assert any(each.field == field and message in each.message for each in problems), problems


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("- a", "must be a mapping of field: value, not a sequence"),
        ("a: 1\n---\na: 1", "another document"),
        ("a: " + "[" * (DEPTH_MAX + 1), "nested deeper"),
        ("[" * 200_000, "nested deeper"),
        ("a: " + "9" * 5_000, "not valid YAML"),
        ("a: \ud800", "not valid YAML"),
        ("#" + "é" * (TEXT_BYTES_MAX // 2), f"at most {TEXT_BYTES_MAX} are read"),
    ],
)
def test_text_that_is_no_declaration(text: str, message: str) -> None:
    (problem,) = refusal(text).problems
    assert problem.file == "fleet.yaml"
    assert message in problem.message


def test_every_problem_has_its_line() -> None:
    text = changed("count: 2", "count: -2").replace("region: eu-west", "region: EU")
    assert str(refusal(text)).splitlines() == [
        "fleet.yaml: pools.premium-eu.count: -2: must be at least 1",
        "fleet.yaml: pools.premium-eu.region: 'EU': must match ^[a-z0-9][a-z0-9-]{0,62}$",
    ]


def test_long_values_are_cut() -> None:
    (problem,) = refusal(changed("region: eu-west", f"region: {'x' * 5_000}")).problems
    assert len(problem.value) <= 60


@pytest.mark.parametrize(
    "backend",
    [
        "{type: openai, base_url: 'http://me:hunter2@x'}",
        "{type: openai, base_url: 'http://x', api_key: hunter2}",
        "{type: openai, base_url: 'http://x', api_key_env: hunter-2-hunter2}",
        "{api_key: hunter2}",
        "{type: openai, base_url: 'http://x', api_key: {value: hunter2}}",
    ],
)
def test_secrets_stay_out_of_errors(backend: str) -> None:
    error = refusal(changed("{type: simulated}", backend))
    assert "hunter2" not in str(error)
    assert error.__cause__ is None
    assert error.__suppress_context__


def test_one_variant_name_means_one_thing_in_the_fleet() -> None:
    second = EXAMPLE[EXAMPLE.index("  premium-eu:") :].replace("premium-eu", "other")
    (problem,) = refusal(EXAMPLE + second.replace("precision: fp8", "precision: bf16")).problems
    assert problem.field == "pools.other.serves[0].variant"
    assert "at fp8 in pool premium-eu" in problem.message


def test_scalars_are_those_of_yaml_1_2() -> None:
    text = changed("region: eu-west", "region: no").replace(
        "usd_per_hour: 3.50", "usd_per_hour: 4e0"
    )
    fleet = parse_fleet(text, "fleet.yaml")
    assert fleet.pools["premium-eu"].region == "no"
    assert fleet.devices["h200"].usd_per_hour == 4


def test_pools_may_name_packaged_entries_and_override_them() -> None:
    pools = EXAMPLE[EXAMPLE.index("pools:") :]
    packaged = {"packaged_devices_text": DEVICES, "packaged_models_text": MODELS}
    fleet = parse_fleet(pools, "fleet.yaml", **packaged)
    assert set(fleet.devices) == {"h200"}
    assert set(fleet.models) == {"llama-3.1-8b"}
    assert fleet.devices["h200"].usd_per_hour == 4.0
    assert parse_fleet(EXAMPLE, "fleet.yaml", **packaged).devices["h200"].usd_per_hour == 3.5
    assert "did you mean h200?" in str(refusal(pools.replace("h200", "h201"), **packaged))
    assert "did you mean" in str(refusal(pools.replace("3.1-8b,", "3.1-b,"), **packaged))
    assert refusal("devices: 5\n" + pools, **packaged).problems[0].field == "devices"


def test_broken_packaged_text_is_named() -> None:
    error = refusal(EXAMPLE, packaged_devices_text="devices: {x: {}}")
    assert {each.file for each in error.problems} == {"packaged devices.yaml"}


@pytest.mark.parametrize(
    ("tflops", "precision", "computed_in"),
    [
        ({"bf16": 1, "fp8": 2}, "fp8", "fp8"),
        ({"bf16": 1, "fp8": 2}, "fp16", "bf16"),
        ({"bf16": 1, "fp8": 2}, "mxfp4", "bf16"),
        ({"bf16": 1, "fp8": 2, "fp4": 4}, "mxfp4", "fp4"),
        ({"bf16": 1, "mxfp4": 4}, "fp4", "bf16"),
        ({"bf16": 1}, "int4", "bf16"),
        ({"bf16": 1, "int8": 2}, "fp8", None),
        ({"bf16": 1}, "fp32", None),
    ],
)
def test_rate_of_a_precision(
    tflops: dict[str, float], precision: Any, computed_in: str | None
) -> None:
    accelerator = device(tflops=tflops)
    assert accelerator.computes_in(precision) == computed_in
    if computed_in is None:
        with pytest.raises(ValueError, match=f"declare tflops.{precision}"):
            accelerator.flops(precision)
    else:
        assert accelerator.flops(precision) == tflops[computed_in] * 1e12


def test_sizes_of_a_mixture_of_experts() -> None:
    figures: dict[str, Any] = {
        "parameters_b": 100,
        "active_parameters_b": 10,
        "layers": 10,
        "context_tokens": 1,
        "kv_bytes_per_token": 7,
        "weights_gb": {"mxfp4": 60},
    }
    model = Model.model_validate(figures)
    assert model.kv_bytes_per_token == 7
    assert model.active_parameters == 10e9
    assert model.weights_bytes("bf16") == 200e9
    assert model.weights_bytes("mxfp4") == 60e9
    assert model.active_weights_bytes("mxfp4") == pytest.approx(6e9)
    assert BYTES_PER_WEIGHT["mxfp4"] * 8 == 4.25


def shuffled(value: Any) -> Any:
    """`value` with the keys of every mapping in reverse."""
    if isinstance(value, dict):
        return {key: shuffled(value[key]) for key in reversed(value)}
    return [shuffled(each) for each in value] if isinstance(value, list) else value


def test_version_depends_on_values_and_not_on_order_or_process() -> None:
    version = parse_fleet(FLEET, "fleet.yaml", DEVICES, MODELS).version
    reverse = yaml.safe_dump(shuffled(yaml.safe_load(FLEET)), sort_keys=False)
    assert reverse.index("cpu-eu:") < reverse.index("premium-us:")
    assert parse_fleet(reverse, "other.yaml", DEVICES, MODELS).version == version
    dearer = FLEET.replace("usd_per_hour: 0.06", "usd_per_hour: 0.07")
    assert parse_fleet(dearer, "fleet.yaml", DEVICES, MODELS).version != version
    unused = DEVICES.replace("usd_per_hour: 12.10", "usd_per_hour: 12.20")
    assert parse_fleet(FLEET, "fleet.yaml", unused, MODELS).version == version
    program = (
        "import pathlib; from policies.config.fleet import parse_fleet; print(parse_fleet(*("
        "(pathlib.Path('policies/defaults') / f).read_text() if f != 'x' else f"
        " for f in ('fleet.yaml', 'x', 'devices.yaml', 'models.yaml'))).version)"
    )
    other = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert other.stdout.strip() == version


def test_version_is_the_same_with_a_default_written_out() -> None:
    bare = parse_fleet(changed("    backend: {type: simulated}\n", ""), "fleet.yaml")
    assert bare.version == parse_fleet(EXAMPLE, "fleet.yaml").version
    assert digest(bare) == bare.version
    assert len(bare.version) == 12


KEYS = st.sampled_from(
    ["devices", "models", "pools", "h200", "p", "kind", "tflops", "fp8", "serves", "model",
     "variant", "precision", "backend", "type", "base_url", "count", "device", "region", "[key]"]
) | st.text(max_size=5)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["h200", "fp8", "simulated", "openai", "premium_gpu", "http://[", "eu-west"])
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
YAMLISH = st.text(
    alphabet=" \n\t-:,?[]{}#&*!|>'\"%@`~<=.0123456789eaxX_nNo\\é\0\ud800", max_size=60
)


DEVICES_SMALL = EXAMPLE[EXAMPLE.index("devices:") : EXAMPLE.index("models:")]


def assert_read_or_refused(text: str) -> None:
    refused = None
    try:
        parse_fleet(text, "fleet.yaml", DEVICES_SMALL)
    except DeclarationError as error:
        refused = error
    if refused:
        assert refused.problems
        assert str(refused).startswith("fleet.yaml: ")


@settings(deadline=None)
@given(text=YAMLISH | st.text(max_size=60))
def test_any_text_is_read_or_refused(text: str) -> None:
    assert_read_or_refused(text)


@settings(deadline=None)
@given(tree=st.dictionaries(KEYS, TREES, max_size=4))
def test_any_tree_is_read_or_refused(tree: dict[str, Any]) -> None:
    assert_read_or_refused(json.dumps(tree))


@settings(deadline=None)
@given(data=st.data(), replacement=TREES)
def test_any_damage_to_a_fleet_is_read_or_refused(data: st.DataObject, replacement: Any) -> None:
    tree = yaml.safe_load(EXAMPLE)
    node = tree
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = data.draw(st.sampled_from(keys))
        if not (isinstance(node[key], (dict, list)) and node[key]) or data.draw(st.booleans()):
            break
        node = node[key]
    node[key] = replacement
    assert_read_or_refused(json.dumps(tree))


def test_fleets_are_frozen() -> None:
    fleet = parse_fleet(EXAMPLE, "fleet.yaml")
    assert isinstance(fleet, Fleet)
    with pytest.raises(ValueError, match="frozen"):
        fleet.pools["premium-eu"].__setattr__("count", 3)
