"""The name of a process among its kind: its own while it runs, and the same after a restart.

A lock on a file tells whether a process of this host has a name. It ends with the process,
however that ends.
"""

import contextlib
import fcntl
import hashlib
import logging
import os
import re
import secrets
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from streams.logs import set_up_logging
from topics import Settings

logger = logging.getLogger(__name__)

# Of processes of one kind on one host that are given no name.
SLOTS_MAX = 1000
# Of a name: more than can be in its group still, if it is started again at each second.
HOLDERS_MAX = 64
HOLDERS_BYTES_MAX = 64 * 1024
PROCESS = re.compile(r"shunter\.[\w.-]+\.\d+\.[0-9a-f]{16}", re.ASCII)


class NameTakenError(Exception):
    """Another process has the name; the message says which, and what to do."""


@dataclass(frozen=True, slots=True)
class Lock:
    """The lock on a name. It is held for as long as this object, and so its file, is there."""

    file: int
    earlier: tuple[str, ...]
    """Processes that have held it, none of which runs any more; the newest last."""

    def __del__(self) -> None:
        os.close(self.file)


@dataclass(frozen=True, slots=True)
class Claim:
    """A name that no other process of its kind has on this host, for as long as this is there."""

    settings: Settings
    """Those of the process, with its name."""
    lock: Lock | None
    """None where no directory takes one."""


@cache
def this_process() -> str:
    """Return what no other process is called, restarts of this one included."""
    host = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII)[:64]
    return f"shunter.{host}.{os.getpid()}.{secrets.token_hex(8)}"


def claim_name(settings: Settings, kind: str) -> Claim:
    """Return the name that the settings give, or else the first that is free on this host.

    That is the host's name, and with other processes of the kind there ``-1``, ``-2`` and so on
    behind it.

    Args:
        settings: of the process.
        kind: of process, among which names must differ.

    Raises:
        NameTakenError: a process on this host has the name.
    """
    is_chosen = "instance" in settings.model_fields_set
    directory = _directory(settings)
    if directory is None:
        set_up_logging(settings.log_level, settings.log_format)
        logger.warning(
            "no directory takes a lock on the name %r (SHUNTER_STATE_DIR): nothing on this host"
            " keeps another %s from taking it",
            settings.instance,
            kind,
        )
        return Claim(settings, None)
    for name in _names(settings.instance, is_chosen=is_chosen):
        path = directory / _file_name(kind, name)
        lock = _lock(path)
        if lock is not None:
            return Claim(settings.model_copy(update={"instance": name}), lock)
        if is_chosen:
            raise NameTakenError(
                f"a {kind} named {name!r} runs on this host already{_holder(path)}; give this one"
                " another --instance (SHUNTER_INSTANCE), or none, or stop that one first"
            )
    raise NameTakenError(
        f"{SLOTS_MAX} processes of the kind {kind} run on this host; give this one a name of its"
        " own: --instance (SHUNTER_INSTANCE)"
    )


def _names(first: str, *, is_chosen: bool) -> Iterator[str]:
    yield first
    if not is_chosen:
        yield from (f"{first}-{number}" for number in range(1, SLOTS_MAX))


def _directory(settings: Settings) -> Path | None:
    """Return a directory of this user for the locks of this installation, if one can be had."""
    brokers = ",".join(sorted(settings.bootstrap_servers.replace(" ", "").split(",")))
    installation = f"{settings.topic_prefix}-{hashlib.sha256(brokers.encode()).hexdigest()[:8]}"
    for place in _places(settings):
        directory = place / installation
        with contextlib.suppress(OSError):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=directory) as tried:
                fcntl.flock(tried, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return directory
    return None


def _places(settings: Settings) -> Iterator[Path]:
    if settings.state_dir is not None:
        yield settings.state_dir
        return
    if state := os.environ.get("XDG_STATE_HOME"):
        yield Path(state) / "shunter"
    elif home := os.environ.get("HOME"):
        yield Path(home) / ".local" / "state" / "shunter"
    shared = Path(tempfile.gettempdir()) / f"shunter-{os.geteuid()}"
    with contextlib.suppress(OSError):
        shared.mkdir(mode=0o700, exist_ok=True)
        found = shared.lstat()
        # Anybody may write where it is, and may have been quicker.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            yield shared


def _file_name(kind: str, name: str) -> str:
    readable = re.sub(r"[^\w.-]", "_", f"{kind}.{name}", flags=re.ASCII)[:100]
    return f"{readable}.{hashlib.sha256(f'{kind}/{name}'.encode()).hexdigest()[:8]}.lock"


def _lock(path: Path) -> Lock | None:
    """Take the lock and leave word of who has it, or return None where another has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    earlier = _holders(os.pread(file, HOLDERS_BYTES_MAX, 0))
    told = "".join(f"{holder}\n" for holder in [*earlier, this_process()]).encode()
    # A full disk keeps nobody from the lock.
    with contextlib.suppress(OSError):
        os.pwrite(file, told, 0)
        os.ftruncate(file, len(told))
    return Lock(file, earlier)


def _holders(told: bytes) -> tuple[str, ...]:
    words = told.decode(errors="replace").split()
    return tuple(word for word in words if PROCESS.fullmatch(word))[-HOLDERS_MAX:]


def _holder(path: Path) -> str:
    """Return, for a message, which process has a lock, if it left word of that."""
    with contextlib.suppress(OSError):
        for holder in reversed(_holders(path.read_bytes()[:HOLDERS_BYTES_MAX])):
            return f" (process {holder.split('.')[-2]})"
    return ""
