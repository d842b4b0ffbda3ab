"""Processes of the machine, looked at from outside."""

import time
from collections.abc import Callable
from pathlib import Path


def lives(pid: int) -> bool:
    """Tell whether a process runs; a zombie that nobody reaps has ended."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def assert_eventually(condition: Callable[[], object], what: str, within_s: float = 30.0) -> None:
    """Wait until the condition holds, however busy the machine."""
    give_up_at = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < give_up_at, f"not within {within_s} s: {what}"
        time.sleep(0.02)
