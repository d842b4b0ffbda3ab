"""The demo as a supervisor of processes."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import assert_eventually, lives

from shunter.console import UserError
from shunter.demo import system as system_module
from shunter.demo.lifeline import END_S_MAX
from shunter.demo.scaling import fleet_text, policy_text
from shunter.demo.system import System
from streams.config.declarations import load_fleet, load_policy
from topics import Settings

STARTED_S_MAX = 60.0
PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "shunter.demo.member", "router"],
                         stdin=subprocess.PIPE, stdout=2, start_new_session=True)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.fixture
def silent_kafka() -> Iterator[socket.socket]:
    """A port that takes connections and never says a word, so that who connects waits for long."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(STARTED_S_MAX)
        yield server


def address(server: socket.socket) -> str:
    host, port = server.getsockname()
    return f"{host}:{port}"


@pytest.mark.slow
def test_what_dies_is_started_again_until_it_dies_too_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(system_module, "RESTARTS_MAX", 1)
    said: list[str] = []
    system = System(tmp_path, Settings(fleet=tmp_path / "missing.yaml"), said.append)
    system.start("victim", ["worker", "some-pool"])
    try:
        with pytest.raises(UserError, match=r"(?s)victim ended 2 times.*missing\.yaml"):
            assert_eventually(system.tend, "it has died too often", STARTED_S_MAX)
        assert system.restarts == 1
        assert len(said) == 1
        assert said[0].startswith("victim ended with exit code 1 and was started again")
    finally:
        system.stop()


def test_stop_ends_what_runs(tmp_path: Path, silent_kafka: socket.socket):
    fleet, policy = tmp_path / "fleet.yaml", tmp_path / "policy.yaml"
    fleet.write_text(fleet_text(load_fleet(None), 1.0))
    policy.write_text(policy_text(load_policy(None), 1.0))
    settings = Settings(bootstrap_servers=address(silent_kafka), fleet=fleet, policy=policy)
    system = System(tmp_path, settings, print)
    system.start("router", ["router"])
    connection, _ = silent_kafka.accept()
    process = system._members[0].process
    assert process.poll() is None
    system.stop()
    assert process.returncode is not None
    connection.close()


def test_only_who_is_given_a_port_serves_a_page_and_to_this_machine_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    seen: list[dict[str, str]] = []

    class Started:
        def __init__(self, _command: object, *, env: dict[str, str], **_options: object) -> None:
            seen.append(env)

    monkeypatch.setenv("SHUNTER_WEB_HOST", "192.0.2.1")
    monkeypatch.setattr(subprocess, "Popen", Started)
    system = System(tmp_path, Settings(), print)
    system.start("router", ["router"], web_port=12345)
    system.start("cpu-eu", ["worker", "cpu-eu"])
    told = [(env["SHUNTER_WEB_PORT"], env["SHUNTER_WEB_HOST"]) for env in seen]
    assert told == [("12345", "127.0.0.1"), ("0", "127.0.0.1")]


def test_a_member_ends_when_its_parent_is_gone(silent_kafka: socket.socket):
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "SHUNTER_BOOTSTRAP_SERVERS": address(silent_kafka)},
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    connection, _ = silent_kafka.accept()  # it runs, and waits for an answer
    assert lives(child)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    parent.stdout.close()
    assert_eventually(lambda: not lives(child), "the member has ended", END_S_MAX + 5)
    connection.close()
