"""Guard process between Shunter and the broker's JVM; run as a script without Shunter's imports.

It holds a pipe from its parent. When the parent ends, even by ``kill -9``, the pipe closes: the
guard then stops the JVM and removes the broker's temporary directory. A parent's own signal and
exit hooks can't guarantee that, and macOS has no equivalent of Linux's parent-death signal.
"""

import ctypes
import os
import select
import shutil
import signal
import subprocess
import sys
from pathlib import Path

STOP = b"s"  # end politely, keep the data
KILL = b"k"  # SIGKILL, keep the data
END = b""  # the pipe has closed: end politely, remove the temporary directory

STDIN = 0
STDERR = 2
PR_SET_PDEATHSIG = 1


def guard(parent_pid: int, grace_s: float, temporary_dir: str, command: list[str]) -> int:
    """Run ``command`` until it ends, an order arrives or the parent ends; return its exit code.

    Args:
        parent_pid: whose death ends the command.
        grace_s: seconds between SIGTERM and SIGKILL.
        temporary_dir: removed at the end; empty for none.
        command: its standard output and error both go to the guard's standard error.
    """
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    for number in (signal.SIGCHLD, signal.SIGTERM):
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(  # noqa: S603  the command is our own
        command,
        stdin=subprocess.DEVNULL,
        stdout=STDERR,
        stderr=STDERR,
        preexec_fn=_end_with_the_guard,  # noqa: PLW1509  there are no threads here
    )
    sys.stdout.write(f"{child.pid}\n")
    sys.stdout.flush()
    order = _next_order(child, parent_pid, wake_read)
    if order == KILL:
        child.kill()
    elif order is not None:
        child.terminate()
    try:
        exit_code = child.wait(timeout=grace_s)
    except subprocess.TimeoutExpired:
        child.kill()
        exit_code = child.wait()
    if order == END and temporary_dir:
        shutil.rmtree(Path(temporary_dir), ignore_errors=True)
    return exit_code


def _next_order(child: "subprocess.Popen[bytes]", parent_pid: int, wake_read: int) -> bytes | None:
    """Return the parent's order, or None if the child has ended by itself."""
    while child.poll() is None:
        ready, _, _ = select.select([STDIN, wake_read], [], [], 1.0)
        if STDIN in ready:
            return os.read(STDIN, 1)
        if wake_read in ready and signal.SIGTERM in os.read(wake_read, 64):
            return END
        # A fork of the parent may hold the pipe open after the parent's death.
        if os.getppid() != parent_pid:
            return END
    return None


def _end_with_the_guard() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    code = guard(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3], sys.argv[4:])
    sys.exit(code if code >= 0 else 128 - code)
