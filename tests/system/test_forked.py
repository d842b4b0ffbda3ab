"""Processes that tests fork: they end, are stopped, killed and waited for as those of Popen are."""

import os
import signal
import subprocess
from pathlib import Path

import pytest
from forked import FORKER, Forked
from processes import assert_eventually, lives

# Nothing listens there.
NOWHERE = {"SHUNTER_BOOTSTRAP_SERVERS": "127.0.0.1:9"}


def start(place: Path, *arguments: str) -> Forked:
    with (place / "out").open("wb") as out, (place / "log").open("wb") as log:
        env = os.environ | NOWHERE
        return FORKER.start(arguments, env, stdout=out.fileno(), stderr=log.fileno())


def test_one_runs_the_command_in_its_own_environment(tmp_path: Path) -> None:
    assert start(tmp_path, "--version").wait(60) == 0
    assert (tmp_path / "out").read_text().startswith("shunter ")
    failed = start(tmp_path, "router")
    assert failed.wait(60) == failed.poll() == 1
    assert "no Kafka broker answers at 127.0.0.1:9" in (tmp_path / "log").read_text()
    failed.kill()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_is_sent_signals_and_waited_for(tmp_path: Path, number: signal.Signals) -> None:
    # It tries again until it is told to stop.
    asked = ("results", "--follow")
    running = start(tmp_path, *asked)
    running.send_signal(signal.SIGSTOP)
    assert running.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(0.01)
    assert lives(running.pid)
    running.send_signal(number)
    running.send_signal(signal.SIGCONT)
    assert running.wait(60) == -number
    assert_eventually(lambda: not lives(running.pid), "it is gone")
