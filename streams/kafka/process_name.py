"""The identity that a process announces, distinct from its predecessors'."""

import os
import re
import secrets
import socket
from functools import cache
from typing import NamedTuple

_HOST_LENGTH_MAX = 64
_WORD = re.compile(r"shunter\.([\w.-]{1,64})\.(\d{1,10})\.[0-9a-f]{16}", re.ASCII)


class Process(NamedTuple):
    """A process, as it identifies itself."""

    word: str
    host: str
    pid: int

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}"


@cache
def this_process() -> Process:
    """Return an identity that no other process has, restarts of this one included."""
    host = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII)[:_HOST_LENGTH_MAX] or "_"
    pid = os.getpid()
    return Process(f"shunter.{host}.{pid}.{secrets.token_hex(8)}", host, pid)


def read_process(word: str) -> Process | None:
    """Return the process with this identity, or None if it is not one."""
    found = _WORD.fullmatch(word)
    return found and Process(word, found[1], int(found[2]))
