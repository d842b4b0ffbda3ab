"""Containers: the Compose file is valid, complete, closed to other machines, and starts Shunter."""

import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import yaml
from typer.testing import CliRunner

from streams.declarations import load_fleet
from topics import Settings, admin

ROOT = Path(__file__).parent.parent
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = {name: service for name, service in SERVICES.items() if "build" in service}
RUNNING = {name: service for name, service in OURS.items() if name != "topics"}
# Closing consumers, producers and the trace exporter, after the drain.
CLOSE_S_MAX = 15


def seconds(duration: str) -> int:
    match = re.fullmatch(r"(\d+)s", duration)
    assert match, f"{duration!r} is not a number of seconds"
    return int(match[1])


def test_the_compose_file_follows_the_compose_specification() -> None:
    schema = orjson.loads((ROOT / "tests" / "data" / "compose-spec.json").read_bytes())
    jsonschema.Draft202012Validator(schema).validate(COMPOSE)


def test_each_pool_of_the_packaged_fleet_has_a_worker_and_there_is_no_other() -> None:
    commands = [service["command"] for service in OURS.values()]
    workers = [command[1] for command in commands if command[0] == "worker"]
    assert sorted(workers) == sorted(load_fleet(None).pools)
    assert [command for command in commands if command[0] != "worker"] == [
        ["topics", "apply"],
        ["router"],
    ]


@pytest.mark.parametrize("name", SERVICES)
def test_ports_are_open_to_this_machine_only(name: str) -> None:
    assert [p for p in SERVICES[name].get("ports", ()) if not p.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", OURS)
def test_the_command_of_a_container_starts_what_its_name_says(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real command line and settings are read; only what would then run for ever is not."""
    from shunter.cli import app

    environment: dict[str, str] = OURS[name]["environment"]
    for variable, value in environment.items():
        assert isinstance(value, str), f"{variable} needs quotes"
        monkeypatch.setenv(variable, value)
        if variable.startswith("SHUNTER_"):
            assert variable.removeprefix("SHUNTER_").lower() in Settings.model_fields
    started: list[tuple[str, Settings]] = []

    def start_router(settings: Settings) -> None:
        started.append(("router", settings))

    def start_worker(pool: str, settings: Settings, *, evacuates: bool) -> None:
        assert not evacuates
        started.append((f"worker-{pool}", settings))

    async def create_topics(settings: Settings, _pools: object) -> admin.Report:
        started.append(("topics", settings))
        return admin.Report(())

    monkeypatch.setattr("shunter.commands.router.run_router", start_router)
    monkeypatch.setattr("shunter.commands.worker.run_worker", start_worker)
    monkeypatch.setattr(admin, "apply", create_topics)
    outcome = CliRunner().invoke(app, OURS[name]["command"])
    assert outcome.exit_code == 0, outcome.output
    [(what, settings)] = started
    assert what == name
    assert settings.bootstrap_servers == advertised_listener("INSIDE")


def advertised_listener(name: str) -> str:
    listeners: str = SERVICES["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    return dict(each.split("://") for each in listeners.split(","))[name]


def test_prometheus_reads_each_process_and_has_rules_that_are_there() -> None:
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    (job,) = config["scrape_configs"]
    port = RUNNING["router"]["environment"]["SHUNTER_WEB_PORT"]
    assert sorted(job["static_configs"][0]["targets"]) == sorted(f"{n}:{port}" for n in RUNNING)
    # The alerts name the job.
    assert job["job_name"] == "shunter"
    assert all((ROOT / "deploy/prometheus" / name).exists() for name in config["rule_files"])
    # Another container can't reach a server that listens on its own loopback.
    hosts = {service["environment"]["SHUNTER_WEB_HOST"] for service in RUNNING.values()}
    assert hosts == {"0.0.0.0"}  # noqa: S104  no port is published
    assert not any(service.get("ports") for service in RUNNING.values())


@pytest.mark.parametrize("name", ["prometheus", "grafana"])
def test_what_is_mounted_is_there_and_can_not_be_written(name: str) -> None:
    mounts = [v for v in SERVICES[name]["volumes"] if v.startswith("./")]
    assert mounts
    for mount in mounts:
        source, _, mode = mount.split(":")
        assert (ROOT / source).is_dir()
        assert mode == "ro"


def test_grafana_finds_its_sources_and_its_dashboards() -> None:
    provisioning = ROOT / "deploy/grafana/provisioning"
    sources = yaml.safe_load((provisioning / "datasources/shunter.yaml").read_text())["datasources"]
    hosts = {source["url"].split("//")[1].split(":")[0] for source in sources}
    assert hosts <= SERVICES.keys()
    (provider,) = yaml.safe_load((provisioning / "dashboards/shunter.yaml").read_text())[
        "providers"
    ]
    mounted = [v.split(":")[1] for v in SERVICES["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert (ROOT / "deploy/grafana/dashboards" / Path(home).name).exists()


def test_an_exemplar_leads_to_the_published_page_of_jaeger() -> None:
    folder = ROOT / "deploy/grafana/provisioning/datasources"
    (prometheus,) = yaml.safe_load((folder / "shunter.yaml").read_text())["datasources"]
    (link,) = prometheus["jsonData"]["exemplarTraceIdDestinations"]
    (page,) = [port for port in SERVICES["jaeger"]["ports"] if port.endswith(":16686")]
    address = page.removesuffix(":16686")
    # Where no user logs in there is no Explore, which a link to a source would open.
    assert "datasourceUid" not in link
    assert link["name"] == "trace_id"
    # Read from a file, $$ is a $, and what stands alone a variable of the environment.
    assert not re.search(r"(?<!\$)\$(?!\$)", link["url"])
    assert link["url"].replace("$$", "$") == f"http://{address}/trace/${{__value.raw}}"


@pytest.mark.parametrize("name", [n for n, s in SERVICES.items() if "image" in s])
def test_images_are_pinned_to_a_version(name: str) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])


def test_kafka_is_where_this_machines_clients_look_for_it_by_default() -> None:
    assert advertised_listener("MACHINE") == Settings.model_fields["bootstrap_servers"].default
    assert "127.0.0.1:9092:9092" in SERVICES["kafka"]["ports"]


def test_names_of_instances_are_stable_and_differ() -> None:
    names = [service["environment"]["SHUNTER_INSTANCE"] for service in RUNNING.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", RUNNING)
def test_a_long_running_container_is_watched_restarted_and_given_time_to_drain(name: str) -> None:
    service = RUNNING[name]
    assert service["restart"] == "unless-stopped"
    assert f":{service['environment']['SHUNTER_WEB_PORT']}/healthz" in str(service["healthcheck"])
    drain_s = Settings.model_fields["drain_s_max"].default
    assert seconds(service["stop_grace_period"]) >= drain_s + CLOSE_S_MAX
    assert service["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4317"
    assert service["depends_on"]["topics"] == {"condition": "service_completed_successfully"}


def test_the_image_runs_without_root_and_is_built_apart_from_its_tools() -> None:
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    build, image = dockerfile.split("\nFROM ")[1:]
    assert build.startswith("python:3.12-slim AS build\n")
    assert image.startswith("python:3.12-slim\n")
    assert re.findall(r"^USER (\S+)$", image, re.MULTILINE) == ["10001:10001"]
    assert re.findall(r"^COPY (.+)$", image, re.MULTILINE) == [
        "--from=build /opt/shunter /opt/shunter"
    ]
    assert 'ENTRYPOINT ["shunter"]' in image


def test_the_image_is_built_from_exactly_what_the_wheel_is_made_of() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        "pyproject.toml",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert let_in == needed
    assert all((ROOT / path).exists() for path in needed)
