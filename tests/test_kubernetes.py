"""The Kubernetes example follows the schemas, and fits the fleet it brings along."""

import copy
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import yaml
from promql import uses

from policies import compile_options
from streams.declarations import load_fleet
from streams.metrics.catalogue import REPLICAS_BY_DUE
from topics import Settings

HERE = Path(__file__).parent.parent / "deploy" / "kubernetes"
DOCUMENT = HERE.parent.parent / "docs" / "workers.md"
KUBERNETES = "1.31"
TESTED = [
    each["expr"]
    for case in yaml.safe_load((HERE.parent / "prometheus" / "tests.yml").read_text())["tests"]
    for each in case.get("promql_expr_test", ())
]
KUSTOMIZATION = yaml.safe_load((HERE / "kustomization.yaml").read_text())
OBJECTS: list[dict[str, Any]] = [
    document
    for name in KUSTOMIZATION["resources"]
    for document in yaml.safe_load_all((HERE / name).read_text())
]
CORE = [each for each in OBJECTS if not each["apiVersion"].startswith("keda.sh")]
SCALED = {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == "ScaledObject"}
DEPLOYMENTS = {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == "Deployment"}
WORKLOADS = [each for each in OBJECTS if each["kind"] in {"Deployment", "StatefulSet", "Job"}]
SETTINGS = dict(
    line.split("=", 1) for line in (HERE / "settings.env").read_text().splitlines() if line
)
# Closing consumers, producers and the trace exporter, after the drain.
CLOSE_S_MAX = 15
# A ScaledObject by the reference of KEDA 2 (keda.sh/v1alpha1), as far as it is used here. Unknown
# fields and metadata, which KEDA itself may pass over, are errors, and all metadata is text.
PROMETHEUS = {
    "type": "object",
    "required": ["serverAddress", "query", "threshold"],
    "additionalProperties": False,
    "properties": {
        name: {"type": "string"}
        for name in (
            *("serverAddress", "query", "queryParameters", "threshold", "activationThreshold"),
            *(
                "namespace",
                "customHeaders",
                "ignoreNullValues",
                "unsafeSsl",
                "timeout",
                "authModes",
            ),
        )
    },
}
SCALED_OBJECT = {
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "keda.sh/v1alpha1"},
        "kind": {"const": "ScaledObject"},
        "metadata": {"type": "object", "required": ["name"]},
        "spec": {
            "type": "object",
            "required": ["scaleTargetRef", "triggers"],
            "additionalProperties": False,
            "properties": {
                "scaleTargetRef": {
                    "type": "object",
                    "required": ["name"],
                    "additionalProperties": False,
                    "properties": {
                        name: {"type": "string"}
                        for name in ("apiVersion", "kind", "name", "envSourceContainerName")
                    },
                },
                "minReplicaCount": {"type": "integer", "minimum": 0},
                "maxReplicaCount": {"type": "integer", "minimum": 1},
                "pollingInterval": {"type": "integer", "minimum": 1},
                "cooldownPeriod": {"type": "integer", "minimum": 0},
                "triggers": {
                    "type": "array",
                    "minItems": 1,
                    "items": {
                        "type": "object",
                        "required": ["type", "metadata"],
                        "additionalProperties": False,
                        "properties": {
                            "type": {"const": "prometheus"},
                            "metadata": PROMETHEUS,
                        },
                    },
                },
            },
        },
    },
}


def named(each: dict[str, Any]) -> str:
    return f"{each['kind']}-{each['metadata']['name']}"


@pytest.mark.parametrize("each", CORE, ids=named)
def test_objects_follow_the_schemas_of_kubernetes(each: dict[str, Any]) -> None:
    kubernetes_validate.validate(each, KUBERNETES, strict=True)


def test_the_schemas_of_kubernetes_find_a_misspelt_field() -> None:
    broken = {**CORE[0], "kindd": "Namespace"}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, KUBERNETES, strict=True)


@pytest.mark.parametrize("each", SCALED.values(), ids=named)
def test_scaled_objects_follow_their_schema(each: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator(SCALED_OBJECT).validate(each)


@pytest.mark.parametrize("change", [{"tresholdd": "1"}, {"threshold": 1}, {"query": None}])
def test_the_schema_of_scaled_objects_finds_odd_metadata(change: dict[str, Any]) -> None:
    broken = copy.deepcopy(next(iter(SCALED.values())))
    broken["spec"]["triggers"][0]["metadata"] |= change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.Draft202012Validator(SCALED_OBJECT).validate(broken)


def test_each_pool_has_its_workers_and_their_scaling() -> None:
    pools = load_fleet(HERE / "fleet.yaml").pools
    assert DEPLOYMENTS.keys() == SCALED.keys() == {f"worker-{pool}" for pool in pools}
    for pool in pools:
        (container,) = DEPLOYMENTS[f"worker-{pool}"]["spec"]["template"]["spec"]["containers"]
        assert container["args"] == ["worker", pool]
        spec = SCALED[f"worker-{pool}"]["spec"]
        assert spec["scaleTargetRef"] == {"kind": "Deployment", "name": f"worker-{pool}"}
        assert spec["maxReplicaCount"] <= int(SETTINGS["SHUNTER_PARTITIONS"])


def test_what_is_yours_to_bring_is_named() -> None:
    told = [(HERE / "kustomization.yaml").read_text(), DOCUMENT.read_text()]
    images = {each["name"] for each in KUSTOMIZATION["images"]}
    for workload in WORKLOADS:
        (container,) = workload["spec"]["template"]["spec"]["containers"]
        assert container["image"] in images
        assert all(container["image"] in text for text in told)
        for env in container.get("env", ()):
            if (secret := env["valueFrom"].get("secretKeyRef")) is not None:
                assert all(secret[part] in text for part in ("name", "key") for text in told)


@pytest.mark.parametrize("each", [w for w in WORKLOADS if w["kind"] != "Job"], ids=named)
def test_prometheus_finds_the_web_port(each: dict[str, Any]) -> None:
    template = each["spec"]["template"]
    (container,) = template["spec"]["containers"]
    assert template["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(container["ports"][0]["containerPort"]),
    }


def test_the_scaler_reads_what_routers_tell() -> None:
    options = compile_options(load_fleet(HERE / "fleet.yaml"))
    for name, each in SCALED.items():
        pool = name.removeprefix("worker-")
        (trigger,) = each["spec"]["triggers"]
        query = trigger["metadata"]["query"]
        found = uses(query)
        assert {use.name for use in found} <= set(REPLICAS_BY_DUE.series)
        assert all(use.labels == set(REPLICAS_BY_DUE.labels) for use in found)
        # What it gives is tested by `promtool`.
        assert query.replace(f'pool="{pool}"', 'pool="p"') in TESTED
        assert trigger["metadata"]["threshold"] == str(options.by_pool[pool][0].replicas)


def test_settings_are_settings() -> None:
    known = {f"SHUNTER_{name.upper()}" for name in Settings.model_fields}
    assert SETTINGS.keys() <= known
    for workload in WORKLOADS:
        for container in workload["spec"]["template"]["spec"]["containers"]:
            own = {env["name"] for env in container.get("env", ()) if env["name"] != "VLLM_API_KEY"}
            assert own <= known


@pytest.mark.parametrize("each", WORKLOADS, ids=named)
def test_no_workload_is_root_or_may_become_it(each: dict[str, Any]) -> None:
    pod = each["spec"]["template"]["spec"]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["automountServiceAccountToken"] is False
    for container in pod["containers"]:
        security = container["securityContext"]
        assert security["allowPrivilegeEscalation"] is False
        assert security["readOnlyRootFilesystem"] is True
        assert security["capabilities"] == {"drop": ["ALL"]}
    if each["kind"] != "Job":
        needed = float(SETTINGS["SHUNTER_DRAIN_S_MAX"]) + CLOSE_S_MAX
        assert pod["terminationGracePeriodSeconds"] >= needed
