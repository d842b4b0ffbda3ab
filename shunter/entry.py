"""The entry point of a process: handles signals before any slow import."""

import os
import signal
import sys
from types import FrameType
from typing import Never

# Servers run until they are stopped, so that a stop is not a failure; that of a check is.
SERVING = frozenset({"router", "worker", "gateway", "ledger"})
TERMINATED = 128 + signal.SIGTERM
INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Run the command line, which can be stopped from its first moment on.

    Process 1 of a container ignores a signal without a handler, and Kafka, the imports and the
    settings may take a minute on a busy machine. Servers install their own handlers later, before
    they join a group; other commands that do so replace these handlers too.
    """
    words = sys.argv[1:]
    is_once = "--check" in words or (words[:1] == ["ledger"] and "--follow" not in words)
    if words and words[0] in SERVING and not is_once:
        signal.signal(signal.SIGTERM, _end_well)
        signal.signal(signal.SIGINT, _end_well)
    elif os.getpid() == 1:
        signal.signal(signal.SIGTERM, _end_as_terminated)
    try:
        from shunter.cli import main as run  # noqa: PLC0415  takes most of a start
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    run()


def _end_well(_number: int, _frame: FrameType | None) -> Never:
    # There is nothing to close or release yet, and stopping a half-started part may wait.
    os.write(2, f"shunter {sys.argv[1]}: told to stop before it had started\n".encode())
    os._exit(0)


def _end_as_terminated(_number: int, _frame: FrameType | None) -> Never:
    os._exit(TERMINATED)
