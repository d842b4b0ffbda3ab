"""The Kubernetes example follows the schemas, and fits the fleet it brings along."""

import copy
from functools import reduce
from operator import getitem
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import orjson
import pytest
import yaml
from promql import uses

from gateway import server
from policies import compile_options
from streams.config.declarations import load_fleet
from streams.hosting import stop_limit
from streams.metrics.registry import REPLICAS_BY_DUE
from streams.tracing.setup import from_environment
from topics import Settings

HERE = Path(__file__).parents[2] / "deploy" / "kubernetes"
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
TRACES = "OTEL_EXPORTER_OTLP_ENDPOINT"
SCALED = {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == "ScaledObject"}
DEPLOYMENTS = {each["metadata"]["name"]: each for each in OBJECTS if each["kind"] == "Deployment"}
WORKLOADS = [each for each in OBJECTS if each["kind"] in {"Deployment", "StatefulSet", "Job"}]
SERVING = [each for each in WORKLOADS if each["kind"] != "Job"]
SETTINGS = dict(
    line.split("=", 1)
    for line in (HERE / "settings.env").read_text().splitlines()
    if line and not line.startswith("#")
)
# Closing consumers, producers and the trace exporter, after the drain.
CLOSE_S_MAX = 15
PDB = "PodDisruptionBudget"
KEDA = orjson.loads((HERE.parent.parent / "tests" / "data" / "keda-2.21.0.json").read_bytes())


def strict(schema: Any) -> Any:
    """Return a schema of Kubernetes where an unknown field is an error, as it is for kubectl."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {"additionalProperties": False} if isinstance(schema.get("properties"), dict) else {}
    return closed | {name: strict(each) for name, each in schema.items()}


def scaler_schema() -> dict[str, Any]:
    """Return what KEDA declares for the metadata of its Prometheus scaler, as a JSON Schema."""
    readable = [p for p in KEDA["scaler"]["parameters"] if p.get("metadataVariableReadable")]
    return {
        "type": "object",
        "required": [p["name"] for p in readable if not p.get("optional") and "default" not in p],
        "additionalProperties": False,
        "properties": {
            p["name"]: {"type": p["type"]}
            | ({"enum": p["allowedValue"]} if "allowedValue" in p else {})
            for p in readable
        },
    }


SCALED_OBJECT = jsonschema.Draft202012Validator(strict(KEDA["openAPIV3Schema"]))
SCALER = jsonschema.Draft202012Validator(scaler_schema())


def validate_scaled(each: dict[str, Any]) -> None:
    SCALED_OBJECT.validate(each)
    for trigger in each["spec"]["triggers"]:
        assert trigger["type"] == KEDA["scaler"]["type"]
        SCALER.validate(trigger["metadata"])


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
def test_scaled_objects_follow_the_schemas_of_keda(each: dict[str, Any]) -> None:
    assert (each["apiVersion"], each["kind"]) == (KEDA["apiVersion"], KEDA["kind"])
    validate_scaled(each)


@pytest.mark.parametrize(
    ("path", "change"),
    [
        (["spec"], {"minReplicas": 1}),
        (["spec"], {"maxReplicaCount": "12"}),
        (["spec", "scaleTargetRef"], {"namespace": "shunter"}),
        (["spec", "triggers", 0], {"metadata": None}),
        (["spec", "triggers", 0, "metadata"], {"tresholdd": "1"}),
        (["spec", "triggers", 0, "metadata"], {"threshold": 1}),
        (["spec", "triggers", 0, "metadata"], {"query": None}),
    ],
)
def test_the_schemas_of_keda_find_what_is_odd(path: list[Any], change: dict[str, Any]) -> None:
    broken = copy.deepcopy(next(iter(SCALED.values())))
    reduce(getitem, path, broken).update(change)
    with pytest.raises(jsonschema.ValidationError):
        validate_scaled(broken)


def test_each_pool_has_its_workers_and_their_scaling() -> None:
    pools = load_fleet(HERE / "fleet.yaml").pools
    workers = {f"worker-{pool}" for pool in pools}
    assert SCALED.keys() == workers
    assert DEPLOYMENTS.keys() == {*workers, "gateway"}
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


def test_the_gateway_answers_where_it_is_looked_for_and_has_its_keys() -> None:
    pod = DEPLOYMENTS["gateway"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert container["args"] == ["gateway"]
    port = int(SETTINGS["SHUNTER_GATEWAY_PORT"])
    assert container["ports"][0]["containerPort"] == port
    (policy,) = (
        each["spec"]
        for each in OBJECTS
        if each["kind"] == "NetworkPolicy" and each["metadata"]["name"] == "gateway"
    )
    assert policy["ingress"] == [{"ports": [{"port": port, "protocol": "TCP"}]}]
    mounted = {each["mountPath"]: each["name"] for each in container["volumeMounts"]}
    keys = Path(SETTINGS["SHUNTER_GATEWAY_KEYS"])
    volume = mounted[str(keys.parent)]
    (secret,) = (each["secret"]["secretName"] for each in pod["volumes"] if each["name"] == volume)
    told = (HERE / "kustomization.yaml").read_text()
    assert f"create secret generic {secret} --from-file={keys.name}" in told


@pytest.mark.parametrize("each", SERVING, ids=named)
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


def test_a_gateway_takes_requests_until_nobody_is_sent_to_it() -> None:
    pod = DEPLOYMENTS["gateway"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    sleep, seconds = container["lifecycle"]["preStop"]["exec"]["command"]
    assert (sleep, int(seconds) >= 5) == ("sleep", True)
    needed = int(seconds) + server.STOP_S_MAX + stop_limit.STOP_S_MAX
    assert pod["terminationGracePeriodSeconds"] >= needed


def test_no_drain_of_nodes_takes_all_routers_or_gateways_at_once() -> None:
    budgets = {each["metadata"]["name"]: each["spec"] for each in OBJECTS if each["kind"] == PDB}
    several = {
        e["metadata"]["name"]: e["spec"] for e in SERVING if e["spec"].get("replicas", 1) > 1
    }
    assert budgets.keys() == several.keys() == {"router", "gateway"}
    for name, budget in budgets.items():
        assert budget["maxUnavailable"] == 1
        labels = several[name]["template"]["metadata"]["labels"]
        assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_settings_are_settings() -> None:
    known = {f"SHUNTER_{name.upper()}" for name in Settings.model_fields}
    assert SETTINGS.keys() <= {*known, TRACES}
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


@pytest.mark.parametrize("each", SERVING, ids=named)
def test_a_slow_start_is_waited_for_and_a_busy_process_is_not_ended(each: dict[str, Any]) -> None:
    """Starts took 60 s under load, and what is killed as it starts makes the load no less."""
    (container,) = each["spec"]["template"]["spec"]["containers"]
    start, live, ready = (
        container[f"{kind}Probe"] for kind in ("startup", "liveness", "readiness")
    )
    assert start["periodSeconds"] * start["failureThreshold"] >= 300
    assert live["periodSeconds"] * live["failureThreshold"] >= 30
    # Before the start is over, Kubernetes asks for nothing else.
    assert "initialDelaySeconds" not in live
    assert start["httpGet"] == live["httpGet"] == {"path": "/healthz", "port": "web"}
    assert ready["httpGet"] == {"path": "/readyz", "port": "web"}
    # One second is the default.
    assert min(probe["timeoutSeconds"] for probe in (start, live, ready)) >= 5


@pytest.mark.parametrize("each", WORKLOADS, ids=named)
def test_a_workload_says_what_it_needs_and_process_1_is_not_ours(each: dict[str, Any]) -> None:
    pod = each["spec"]["template"]["spec"]
    # Process 1 ignores a signal that it does not handle yet.
    assert pod["shareProcessNamespace"] is True
    for container in pod["containers"]:
        resources = container["resources"]
        assert resources["requests"].keys() == {"cpu", "memory"}
        assert "memory" in resources["limits"]


def test_the_topics_can_be_applied_again_when_settings_have_changed() -> None:
    """A Job that is there can't be given another template, such as another name of settings."""
    (job,) = (each for each in WORKLOADS if each["kind"] == "Job")
    assert 0 < job["spec"]["ttlSecondsAfterFinished"] <= 60
    # It ends, one way or the other.
    assert 0 < job["spec"]["activeDeadlineSeconds"] <= 600


def test_a_second_apply_finds_the_policies_as_they_are() -> None:
    """What a server fills into a list counts as a change of it each time."""
    policies = [each["spec"] for each in OBJECTS if each["kind"] == "NetworkPolicy"]
    ports = [port for each in policies for rule in each["ingress"] for port in rule["ports"]]
    assert [port["protocol"] for port in ports] == ["TCP"] * len(policies)


@pytest.mark.parametrize("endpoint", ["", "http://127.0.0.1:9"])
def test_traces_are_switched_on_by_one_line_of_the_settings(
    endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert SETTINGS[TRACES] == ""
    for workload in WORKLOADS:
        for container in workload["spec"]["template"]["spec"]["containers"]:
            assert container["envFrom"] == [{"configMapRef": {"name": "shunter-settings"}}]
    monkeypatch.setenv(TRACES, endpoint)
    telemetry = from_environment("router", "router-0")
    try:
        assert telemetry.is_on is bool(endpoint)
    finally:
        telemetry.close()
