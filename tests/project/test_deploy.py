"""Containers: the Compose file is valid, complete, closed to other machines, and starts Shunter."""

import re
import socketserver
import subprocess
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jsonschema
import orjson
import pytest
import yaml
from typer.testing import CliRunner

from gateway.http.keys import ApiKeys
from policies import compile_options
from streams.config.declarations import load_fleet, load_policy
from streams.engine.clock import SystemClock
from streams.live.page import LivePage
from topics import Settings
from topics.admin import provisioning as admin_provisioning
from topics.admin.replication import Replication
from topics.admin.topic_report import CatalogueReport
from topics.embedded_broker.settings import NODE_SETTINGS

ROOT = Path(__file__).parents[2]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
IMAGE = "shunter"
OURS = {name: service for name, service in SERVICES.items() if service["image"] == IMAGE}
RUNNING = {name: service for name, service in OURS.items() if name != "topics"}
# The processes that move requests; the gateway has a web server, and traces, of its own kind.
MOVING = {name: service for name, service in RUNNING.items() if name != "gateway"}
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
        ["gateway"],
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

    async def start_gateway(settings: Settings) -> None:
        started.append(("gateway", settings))

    async def create_topics(settings: Settings, _pools: object) -> CatalogueReport:
        started.append(("topics", settings))
        return CatalogueReport((), Replication(-1, 1))

    monkeypatch.setattr("shunter.commands.router.run_router", start_router)
    monkeypatch.setattr("shunter.commands.worker.run_worker", start_worker)
    monkeypatch.setattr("shunter.commands.gateway.run_gateway", start_gateway)
    monkeypatch.setattr(admin_provisioning, "apply", create_topics)
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
    targets = sorted(f"{name}:{port_of(name)}" for name in RUNNING)
    assert sorted(job["static_configs"][0]["targets"]) == targets
    # The alerts name the job.
    assert job["job_name"] == "shunter"
    assert all((ROOT / "deploy/prometheus" / name).exists() for name in config["rule_files"])
    # Another container can't reach a server that listens on its own loopback.
    hosts = {service["environment"]["SHUNTER_WEB_HOST"] for service in MOVING.values()}
    hosts.add(OURS["gateway"]["environment"]["SHUNTER_GATEWAY_HOST"])
    assert hosts == {"0.0.0.0"}  # noqa: S104  published to this machine alone, if at all
    assert [n for n, service in RUNNING.items() if service.get("ports")] == ["router", "gateway"]


def port_of(name: str) -> str:
    """Return where a process answers for its health."""
    of_all: dict[str, str] = OURS[name]["environment"]
    return of_all["SHUNTER_GATEWAY_PORT" if name == "gateway" else "SHUNTER_WEB_PORT"]


def test_the_gateway_has_keys_and_a_folder_that_it_may_write() -> None:
    environment, volumes = OURS["gateway"]["environment"], OURS["gateway"]["volumes"]
    port = environment["SHUNTER_GATEWAY_PORT"]
    assert OURS["gateway"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    keys = Path(environment["SHUNTER_GATEWAY_KEYS"])
    assert f"./deploy/gateway:{keys.parent}:ro" in volumes
    caller = ApiKeys(ROOT / "deploy/gateway" / keys.name, "0.0.0.0")  # noqa: S104
    assert caller.caller("Bearer shunter-local").tenant == "default"
    folder = environment["SHUNTER_GATEWAY_FILES"]
    assert f"gateway-files:{folder}" in volumes
    assert "gateway-files" in COMPOSE["volumes"]
    # A new volume has the owner of what the image has there.
    assert f"install --directory --owner=shunter --group=shunter {folder}" in stages()[1]


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


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - OURS.keys()))
def test_images_are_pinned_to_a_version(name: str) -> None:
    assert re.search(r":v?\d+\.\d+\.\d+$", SERVICES[name]["image"])


def test_kafka_is_where_this_machines_clients_look_for_it_by_default() -> None:
    assert advertised_listener("MACHINE") == Settings.model_fields["bootstrap_servers"].default
    assert "127.0.0.1:9092:9092" in SERVICES["kafka"]["ports"]


def test_names_of_instances_are_stable_and_differ() -> None:
    names = [service["environment"]["SHUNTER_INSTANCE"] for service in MOVING.values()]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("name", RUNNING)
def test_a_long_running_container_is_watched_restarted_and_given_time_to_drain(name: str) -> None:
    service = RUNNING[name]
    assert service["restart"] == "unless-stopped"
    assert probe_of(name).count(f"/{port_of(name)} ") == 1
    drain_s = Settings.model_fields["drain_s_max"].default
    assert seconds(service["stop_grace_period"]) >= drain_s + CLOSE_S_MAX
    if name in MOVING:
        assert service["environment"]["OTEL_EXPORTER_OTLP_ENDPOINT"] == "http://jaeger:4317"
    assert service["depends_on"]["topics"] == {"condition": "service_completed_successfully"}


def probe_of(name: str) -> str:
    """Return the text that bash is given, after Compose has read it."""
    command, option, text = SERVICES[name]["healthcheck"]["test"][1:]
    assert SERVICES[name]["healthcheck"]["test"][0] == "CMD"
    assert (command, option) == ("bash", "-c")
    assert not re.search(r"(?<!\$)\$(?!\$)", text), "Compose replaces a lone $"
    return str(text.replace("$$", "$"))


def probe(text: str, address: str, port: int) -> int:
    assert address in text
    command = ["bash", "-c", text.replace(address, f"127.0.0.1/{port}")]
    return subprocess.run(command, check=False, capture_output=True, timeout=30).returncode


@contextmanager
def answering(content: bytes) -> Iterator[int]:
    """Yield a port where each who connects, and asks for what is healthy, is answered with this."""

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            asked = b""
            # bash sends each line by itself.
            while not asked.endswith(b"\r\n\r\n") and (more := self.request.recv(1024)):
                asked += more
            if asked == b"GET /healthz HTTP/1.0\r\n\r\n":
                self.request.sendall(content)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()
            thread.join()


def test_kafka_is_probed_by_a_connection_and_no_java_is_started_for_it() -> None:
    text = probe_of("kafka")
    address = advertised_listener("INSIDE").replace(":", "/")
    assert text == f"exec 3<>/dev/tcp/{address}"
    with answering(b"") as port:
        assert probe(text, address, port) == 0
    assert probe(text, address, port) == 1


@pytest.mark.parametrize("name", RUNNING)
def test_the_probe_of_a_process_reads_what_it_says_of_its_health(name: str) -> None:
    text, address = probe_of(name), f"127.0.0.1/{port_of(name)}"
    for answer, status in {
        b"HTTP/1.0 200 OK\r\n\r\n{}": 0,
        b"HTTP/1.1 200 OK\r\n\r\n{}": 0,
        b"HTTP/1.0 503 Service Unavailable\r\n\r\n200": 1,
        b"200": 1,
        b"": 1,
    }.items():
        with answering(answer) as port:
            assert probe(text, address, port) == status, answer
    assert probe(text, address, port) == 1


@pytest.mark.parametrize("name", ["kafka", *RUNNING])
def test_a_start_on_a_busy_machine_is_no_sickness(name: str) -> None:
    """Where Kafka is unhealthy, `docker compose up` gives up; a start took 60 s under load."""
    check = SERVICES[name]["healthcheck"]
    assert seconds(check["start_period"]) >= 120
    assert seconds(check["timeout"]) >= 10


def test_kafka_bounds_what_a_client_that_hangs_keeps_unread() -> None:
    given = SERVICES["kafka"]["environment"]["KAFKA_TRANSACTION_MAX_TIMEOUT_MS"]
    assert given == NODE_SETTINGS["transaction.max.timeout.ms"] == "60000"


def test_one_image_is_built_once_and_none_is_asked_of_a_registry() -> None:
    assert [name for name, service in SERVICES.items() if "build" in service] == ["topics"]
    assert OURS["topics"]["build"] == {"context": ".", "dockerfile": "deploy/Dockerfile"}
    assert all(service["pull_policy"] == "never" for service in OURS.values())
    for service in RUNNING.values():
        assert service["depends_on"]["topics"] == {"condition": "service_completed_successfully"}


@pytest.mark.parametrize("name", OURS)
def test_a_signal_reaches_a_container_from_its_first_moment_on(name: str) -> None:
    assert OURS[name]["init"] is True


def test_the_live_view_is_shown_to_this_machine() -> None:
    environment = OURS["router"]["environment"]
    port = environment["SHUNTER_WEB_PORT"]
    assert OURS["router"]["ports"] == [f"127.0.0.1:{port}:{port}"]
    settings = Settings(
        web_page=environment["SHUNTER_WEB_PAGE"], web_host=environment["SHUNTER_WEB_HOST"]
    )
    page = LivePage(settings, compile_options(load_fleet(None)), load_policy(None), SystemClock())
    assert "/" in page.views()
    others = {**RUNNING, "router": {"environment": {}}}.values()
    assert not any("SHUNTER_WEB_PAGE" in service["environment"] for service in others)


def stages() -> tuple[str, str]:
    build, image = (ROOT / "deploy" / "Dockerfile").read_text().split("\nFROM ")[1:]
    return build, image


def test_the_image_runs_without_root_and_is_built_apart_from_its_tools() -> None:
    build, image = stages()
    assert build.startswith("python:3.12-slim AS build\n")
    assert image.startswith("python:3.12-slim\n")
    assert re.findall(r"^COPY (.+)$", image, re.MULTILINE) == [
        "--from=build /opt/shunter /opt/shunter"
    ]
    assert 'ENTRYPOINT ["shunter"]' in image


def test_the_user_of_the_image_and_its_group_have_names() -> None:
    _, image = stages()
    assert re.findall(r"^USER (\S+)$", image, re.MULTILINE) == ["10001:10001"]
    assert "groupadd --gid 10001 shunter" in image
    assert "useradd --uid 10001 --gid shunter " in image


def test_a_change_of_a_source_leaves_the_layer_of_the_dependencies_as_it_is() -> None:
    build, _ = stages()
    steps = re.findall(r"^(COPY|RUN) ((?:\\\n|.)+)$", build, re.MULTILINE)
    copies = [i for i, (kind, _) in enumerate(steps) if kind == "COPY"]
    assert [steps[i][1] for i in copies] == ["pyproject.toml constraints.txt ./", ". ."]
    dependencies = [step for kind, step in steps[copies[0] : copies[1]] if kind == "RUN"]
    assert ["[${EXTRAS}]" in step for step in dependencies] == [True]
    ours = [step for kind, step in steps[copies[1] :] if kind == "RUN"]
    assert ["--no-deps" in step for step in ours] == [True]


def test_the_image_holds_what_routers_and_workers_need_and_no_more() -> None:
    build, _ = stages()
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    # Traces; the archive's pyarrow and duckdb weigh more than all the rest.
    assert re.findall(r"^ARG EXTRAS=(.+)$", build, re.MULTILINE) == ["otlp"]
    assert {"pyarrow", "duckdb"} <= {re.split(r"[<>=]", each)[0] for each in extras["archive"]}
    for text in ((ROOT / "deploy/Dockerfile").read_text(), OPERATIONS):
        assert "--build-arg EXTRAS=archive,otlp" in text
        for chosen in re.findall(r"EXTRAS=([\w,]+)", text):
            assert set(chosen.split(",")) <= extras.keys()


def test_the_image_is_built_from_what_the_wheel_is_made_of_and_from_its_versions() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed = {
        "pyproject.toml",
        "constraints.txt",
        project["project"]["readme"],
        *project["project"]["license-files"],
        *project["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"],
    }
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_in = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert let_in == needed
    assert all((ROOT / path).exists() for path in needed)
