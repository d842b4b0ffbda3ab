"""Processes of Shunter that are forked from one which has its modules: a start without imports.

Imports are 1.4 s of processor time, and the tests start hundreds of routers and workers. What is
forked runs the console script from its first line on, in an environment, a directory and with files
of its own. It is a process like any other: it can be killed, stopped and waited for.

Run as a program this is the process that forks: it takes orders on the socket given as descriptor,
and ends with it; all that it has forked ends then too.
"""

import atexit
import contextlib
import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import weakref
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
ORDER_BYTES_MAX = 256 * 1024
# From <sys/prctl.h>.
_PR_SET_PDEATHSIG = 1
# The status of a process whose forker has ended, which ends it too.
UNKNOWN = -signal.SIGKILL
# The commands that tests start again and again.
COMMANDS = ("router", "worker", "gateway", "topics", "submit", "cancel")


class Forked:
    """A process that was forked; of ``subprocess.Popen`` what the tests use."""

    def __init__(self, arguments: Sequence[str], pid: int, ended: int) -> None:
        self.args = arguments
        self.pid = pid
        self.returncode: int | None = None
        # The exit status comes through it.
        self._ended = ended
        weakref.finalize(self, os.close, ended)
        self._lock = threading.Lock()

    def poll(self) -> int | None:
        """Return the exit status; None while it runs."""
        return self._look(0.0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end and return the exit status.

        Raises:
            subprocess.TimeoutExpired: it still runs after so many seconds.
        """
        status = self._look(timeout)
        if status is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0.0)
        return status

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def terminate(self) -> None:
        """Send SIGTERM, unless it has ended."""
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def _look(self, timeout_s: float | None) -> int | None:
        if self.returncode is None and _is_readable(self._ended, timeout_s):
            with self._lock:
                if self.returncode is None:
                    self.returncode = int(os.read(self._ended, 16) or UNKNOWN)
        return self.returncode


def _is_readable(descriptor: int, timeout_s: float | None) -> bool:
    waiting = select.poll()
    waiting.register(descriptor, select.POLLIN)
    return bool(waiting.poll(None if timeout_s is None else timeout_s * 1000))


class Forker:
    """The process that forks, started with the first order."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._orders: socket.socket | None = None

    def start(
        self, arguments: Sequence[str], env: Mapping[str, str], *, stdout: int = 1, stderr: int = 2
    ) -> Forked:
        """Run ``shunter`` with these arguments in the project's directory.

        Output goes to the descriptors, of which the process has copies.
        """
        order = json.dumps({"arguments": [*arguments], "env": {**env}}).encode()
        ended, told = os.pipe()
        with self._lock:
            orders = self._orders = self._orders or self._started()
            socket.send_fds(orders, [order], [stdout, stderr, told])
            pid = int(orders.recv(16) or b"0")
        os.close(told)
        if not pid:
            raise RuntimeError("the process that forks has ended")
        return Forked(arguments, pid, ended)

    def _started(self) -> socket.socket:
        ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with its:
            process = subprocess.Popen(
                [sys.executable, __file__, str(its.fileno())],
                cwd=ROOT,
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                pass_fds=[its.fileno()],
            )
        atexit.register(process.wait)
        atexit.register(ours.close)
        return ours


FORKER = Forker()


def ran(
    *words: object, env: Mapping[str, str], timeout_s: float = 120.0
) -> subprocess.CompletedProcess[str]:
    """Run ``shunter`` with these words to its end; return its status and what it printed.

    Args:
        words: the command and its arguments.
        env: variables beside those of this process.
        timeout_s: after so many seconds it is killed.

    Raises:
        subprocess.TimeoutExpired: it was.
    """
    arguments = [str(word) for word in words]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        files = {"stdout": out.fileno(), "stderr": err.fileno()}
        process = FORKER.start(arguments, os.environ | env, **files)
        try:
            status = process.wait(timeout_s)
        finally:
            process.kill()
        told = []
        for file in (out, err):
            file.seek(0)
            told.append(file.read().decode())
    return subprocess.CompletedProcess(arguments, status, *told)


def serve(orders: socket.socket) -> list[str]:
    """Fork by order; return in each process that was forked, with its arguments."""
    running: dict[int, int] = {}
    wakes, woken = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(woken)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([orders, wakes], [], [])
        if wakes in ready:
            os.read(wakes, 4096)
            _reap(running)
        if orders not in ready:
            continue
        order, files, _, _ = socket.recv_fds(orders, ORDER_BYTES_MAX, 3)
        if not order:
            sys.exit()
        stdout, stderr, told = files
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            os.dup2(stdout, 1)
            os.dup2(stderr, 2)
            for other in (orders.detach(), wakes, woken, *files, *running.values()):
                os.close(other)
            # What forks has one thread, whose end is the end of its process.
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            asked = json.loads(order)
            os.environ.clear()
            os.environ.update(asked["env"])
            return list(asked["arguments"])
        os.close(stdout)
        os.close(stderr)
        running[pid] = told
        orders.send(str(pid).encode())


def _reap(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if not pid:
            return
        told = running.pop(pid)
        with contextlib.suppress(BrokenPipeError):
            os.write(told, str(os.waitstatus_to_exitcode(status)).encode())
        os.close(told)


if __name__ == "__main__":
    # Ctrl-C at the terminal is for those who ask.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    load = import_module("shunter.cli").load
    for command in COMMANDS:
        load(command)
    # A lock that a thread of this process holds would stay locked in what is forked.
    if len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208  the names alone
        raise SystemExit("a module has started a thread as it was imported")
    sys.argv = ["shunter", *serve(socket.socket(fileno=int(sys.argv[1])))]
    signal.signal(signal.SIGINT, signal.default_int_handler)
    import_module("shunter.entry").main()
