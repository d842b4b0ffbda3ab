"""The process between Shunter and the broker's JVM, here over commands that stand in for it."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import assert_eventually, lives

from topics.embedded_broker import guard


class Guarded:
    """A guard over a command, run as ``EmbeddedBroker`` runs it."""

    def __init__(self, command: list[str], temporary_dir: Path, parent_pid: int) -> None:
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(guard.__file__)),
                *(str(parent_pid), "0.5", str(temporary_dir), *command),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.stdin = self.process.stdin
        self.child_pid = int(self.process.stdout.readline())

    def close(self) -> None:
        self.process.kill()
        with self.process:
            pass


@pytest.fixture
def temporary_dir(tmp_path: Path) -> Path:
    made = tmp_path / "temporary"
    made.mkdir()
    return made


@pytest.fixture
def guarded(temporary_dir: Path) -> Iterator[Guarded]:
    made = Guarded(["sleep", "60"], temporary_dir, os.getpid())
    yield made
    made.close()


class TestGuard:
    def test_a_closed_pipe_ends_the_child_and_its_directory(
        self, guarded: Guarded, temporary_dir: Path
    ) -> None:
        guarded.stdin.close()
        assert guarded.process.wait(90) == 128 + signal.SIGTERM
        assert not lives(guarded.child_pid)
        assert not temporary_dir.exists()

    @pytest.mark.parametrize(
        ("order", "by"), [(guard.STOP, signal.SIGTERM), (guard.KILL, signal.SIGKILL)]
    )
    def test_stop_and_kill_keep_the_directory(
        self, guarded: Guarded, temporary_dir: Path, order: bytes, by: int
    ) -> None:
        guarded.stdin.write(order)
        assert guarded.process.wait(90) == 128 + by
        assert not lives(guarded.child_pid)
        assert temporary_dir.exists()

    def test_sigterm_ends_the_child(self, guarded: Guarded) -> None:
        guarded.process.terminate()
        assert guarded.process.wait(90) == 128 + signal.SIGTERM
        assert not lives(guarded.child_pid)

    def test_a_child_that_ends_by_itself_ends_the_guard(self, guarded: Guarded) -> None:
        os.kill(guarded.child_pid, signal.SIGINT)
        assert guarded.process.wait(90) == 128 + signal.SIGINT

    @pytest.mark.skipif(sys.platform != "linux", reason="sees the trap in /proc")
    def test_a_child_deaf_to_sigterm_is_killed(self, temporary_dir: Path) -> None:
        deaf = "trap '' TERM; while :; do sleep 0.1; done"
        made = Guarded(["sh", "-c", deaf], temporary_dir, os.getpid())
        assert_eventually(lambda: _ignores_sigterm(made.child_pid), "the trap is set")
        made.stdin.close()
        assert made.process.wait(90) == 128 + signal.SIGKILL
        made.close()

    def test_a_parent_gone_ends_the_child_though_the_pipe_is_open(
        self, temporary_dir: Path
    ) -> None:
        made = Guarded(["sleep", "60"], temporary_dir, parent_pid=os.getpid() + 1)
        assert made.process.wait(90) == 128 + signal.SIGTERM
        assert not temporary_dir.exists()
        made.close()

    @pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the parent-death signal")
    def test_a_killed_guard_takes_the_child_along(self, guarded: Guarded) -> None:
        guarded.process.kill()
        assert_eventually(lambda: _gone_or_zombie(guarded.child_pid), "the child is gone")


def _status(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def _ignores_sigterm(pid: int) -> bool:
    return bool(int(_status(pid)["SigIgn"], 16) & 1 << (signal.SIGTERM - 1))


def _gone_or_zombie(pid: int) -> bool:
    """In a container nobody may reap an orphan."""
    try:
        return _status(pid)["State"].startswith("Z")
    except FileNotFoundError:
        return True
