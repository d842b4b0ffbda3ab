"""The processes of a demo: started, restarted when they die, stopped together."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from shunter.console import UserError
from topics import Settings
from topics.embedded_broker.settings import HOST

RESTARTS_MAX = 5
STOP_S_MAX = 12.0
KILLED_S_MAX = 5.0
STOP_POLL_S = 0.05
LOG_TAIL_LINES = 8
# Work running at an interruption is of no use to anyone.
DRAIN_S_MAX = 2.0


@dataclass(slots=True)
class _Member:
    name: str
    command: Sequence[str]
    log: Path
    web_port: int
    process: "subprocess.Popen[bytes]"
    restarts: int = 0


class System:
    """Router and workers as child processes; they end when this process does, however it ends."""

    def __init__(
        self,
        run_dir: Path,
        settings: Settings,
        say: Callable[[str], object],
        more: Mapping[str, str] | None = None,
    ) -> None:
        """Take the log directory, the common settings, and the listener for restarts.

        ``more`` is added to the environment of the processes.
        """
        self._run_dir = run_dir
        self._environment = {**os.environ, **variables(settings), **(more or {})}
        self._say = say
        self._members: list[_Member] = []

    @property
    def restarts(self) -> int:
        """Processes that died unexpectedly and were started again."""
        return sum(member.restarts for member in self._members)

    def start(self, name: str, command: Sequence[str], web_port: int = 0) -> None:
        """Start a command of Shunter, such as ``["worker", "premium-eu"]``.

        With a ``web_port`` it serves its page there, to this machine alone.
        """
        log = self._run_dir / f"{name}.log"
        process = self._launch(name, command, log, web_port)
        self._members.append(_Member(name, command, log, web_port, process))

    def tend(self) -> None:
        """Restart dead processes, and report that.

        Raises:
            UserError: the same process keeps dying.
        """
        for member in self._members:
            code = member.process.poll()
            if code is None:
                continue
            if member.restarts == RESTARTS_MAX:
                raise UserError(
                    f"{member.name} ended {RESTARTS_MAX + 1} times, the last time with exit code"
                    f" {code}; its log {member.log} ends with:\n{log_tail(member.log)}"
                )
            _close(member.process)
            member.restarts += 1
            member.process = self._launch(member.name, member.command, member.log, member.web_port)
            self._say(
                f"{member.name} ended with exit code {code} and was started again; its log is"
                f" {member.log}"
            )

    def stop(self) -> None:
        """Terminate all processes, and kill those that do not end in time."""
        end_processes([member.process for member in self._members], STOP_S_MAX)
        for member in self._members:
            _close(member.process)
        self._members.clear()

    def _launch(
        self, name: str, command: Sequence[str], log: Path, web_port: int
    ) -> "subprocess.Popen[bytes]":
        own = {"SHUNTER_INSTANCE": f"{name}-0", "SHUNTER_WEB_PORT": str(web_port)}
        with log.open("ab") as output:
            return subprocess.Popen(  # noqa: S603  the command is our own
                [sys.executable, "-m", "shunter.demo.member", *command],
                env={**self._environment, **own},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C at the terminal is ours to pass on
            )


def variables(settings: Settings) -> dict[str, str]:
    """Return the environment of a process of this system."""
    return {
        "SHUNTER_BOOTSTRAP_SERVERS": settings.bootstrap_servers,
        "SHUNTER_TOPIC_PREFIX": settings.topic_prefix,
        "SHUNTER_FLEET": str(settings.fleet),
        "SHUNTER_POLICY": str(settings.policy),
        "SHUNTER_SECURITY_PROTOCOL": settings.security_protocol,
        "SHUNTER_DRAIN_S_MAX": str(DRAIN_S_MAX),
        "SHUNTER_LOG_LEVEL": "info",
        # One port can't serve them all, and the page is for this machine.
        "SHUNTER_WEB_PORT": "0",
        "SHUNTER_WEB_HOST": HOST,
        "SHUNTER_WEB_PAGE": "true",
    }


def log_tail(log: Path) -> str:
    """Return the last lines of a log."""
    lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    return "\n".join(lines[-LOG_TAIL_LINES:])


def members_of(pools: Mapping[str, object]) -> Iterator[tuple[str, list[str]]]:
    """Yield name and command of each process: the router, and a worker per pool."""
    yield "router", ["router"]
    for pool in pools:
        yield pool, ["worker", pool]


def end_processes(processes: Sequence["subprocess.Popen[bytes]"], within_s: float) -> None:
    """Terminate processes, and kill those that have not ended after so many seconds."""
    living = [process for process in processes if process.poll() is None]
    for process in living:
        process.send_signal(signal.SIGTERM)
    if not _wait(living, within_s):
        for process in living:
            process.kill()
        _wait(living, KILLED_S_MAX)


def _wait(processes: Sequence["subprocess.Popen[bytes]"], timeout_s: float) -> bool:
    """Wait for all to end; return whether they have."""
    end = time.monotonic() + timeout_s
    while any(process.poll() is None for process in processes):
        if time.monotonic() > end:
            return False
        time.sleep(STOP_POLL_S)
    return True


def _close(process: "subprocess.Popen[bytes]") -> None:
    if process.stdin is not None:
        process.stdin.close()
