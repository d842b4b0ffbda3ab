"""The name of a process among its kind: unique while it runs, and the same after a restart.

A lock on a file shows if a process of this host has a name. It ends with the process, however that
ends. The groups show if a process elsewhere has it, but can't tell a running one from one that died
within its session, unless it had this lock, or has said farewell. In doubt, the newcomer waits
until the session would be over.
"""

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import re
import stat
import tempfile
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.client import CoordinationType
from aiokafka.errors import GroupAuthorizationFailedError, KafkaError

from streams.kafka.group_members import DescribeGroup, GroupMember, member_named
from streams.kafka.process_name import Process, read_process, this_process
from streams.kafka.reader import reader
from streams.logs import set_up_logging
from topics import Settings
from topics.admin.provisioning import AdminError

logger = logging.getLogger(__name__)

# Limit of unnamed processes of one kind on one host.
SLOTS_MAX = 1000
# Limit for a name: more than its group can still hold, if it is restarted every second.
HOLDERS_MAX = 64
HOLDERS_BYTES_MAX = 64 * 1024
# Beyond a session: the broker ends it a little late, and then notifies the group.
PATIENCE_S = 2.0
ASK_AGAIN_S = 0.3
# On a new cluster the request itself creates the topic of the groups.
COORDINATOR_S_MAX = 30.0


class NameTakenError(Exception):
    """Another process has the name; the message says which, and the remedy."""


@dataclass(frozen=True, slots=True)
class Lock:
    """The lock on a name, held as long as this object, and so its file, exists."""

    file: int
    earlier: tuple[Process, ...]
    """Former holders, none of which runs any more; the newest last."""

    def __del__(self) -> None:
        os.close(self.file)


@dataclass(frozen=True, slots=True)
class Claim:
    """A name that no other process of its kind has, as long as this exists."""

    settings: Settings
    """The process's settings, with its name."""
    lock: Lock | None
    """None if no directory takes one."""


def claim_name(settings: Settings, kind: str, groups: Sequence[str]) -> Claim:
    """Return the name in the settings, or else the first that is free.

    That is the host's name, or, if other processes of the kind run there, the name followed by
    ``-1``, ``-2`` and so on.

    Args:
        settings: of the process.
        kind: of process, among which names must differ.
        groups: that it is going to be a member of.

    Raises:
        NameTakenError: another process has the name.
        AdminError: no broker tells who is in the groups.
    """
    set_up_logging(settings.log_level, settings.log_format)
    return asyncio.run(_Claims(settings, kind, groups).first_free())


class _Claims:
    """Tries one name after the other."""

    def __init__(self, settings: Settings, kind: str, groups: Sequence[str]) -> None:
        self._settings = settings
        self._kind = kind
        self._groups = groups
        self._is_chosen = "instance" in settings.model_fields_set
        self._directory = _directory(settings)
        self._end_at = 0.0

    async def first_free(self) -> Claim:
        session_s = self._settings.session_timeout_ms / 1000
        self._end_at = asyncio.get_running_loop().time() + session_s + PATIENCE_S
        if self._directory is None:
            logger.warning(
                "no directory takes a lock on the name %r (SHUNTER_STATE_DIR): a %s that is"
                " started again waits up to %g s for the session of the one before",
                self._settings.instance,
                self._kind,
                session_s,
            )
        async with contextlib.AsyncExitStack() as stack:
            client = None
            if self._groups:
                client = await stack.enter_async_context(reader(self._settings))
            for name in self._names():
                claim = await self._try(name, client)
                if claim is not None:
                    return claim
        raise NameTakenError(
            f"{SLOTS_MAX} processes of the kind {self._kind} have the names of this host; give this"
            " one another: --instance (SHUNTER_INSTANCE)"
        )

    def _names(self) -> Iterator[str]:
        first = self._settings.instance
        yield first
        if not self._is_chosen:
            yield from (f"{first}-{number}" for number in range(1, SLOTS_MAX))

    async def _try(self, name: str, client: AIOKafkaConsumer | None) -> Claim | None:
        lock = None
        if self._directory is not None:
            path = self._directory / _file_name(self._kind, name)
            lock = _lock(path)
            if lock is None:
                self._refuse(name, f"runs on this host already{_holder(path)}")
                return None
        if client is not None:
            member = await self._outlives(name, client, () if lock is None else lock.earlier)
            if member is not None:
                who = f"as {member.process} " if member.process else ""
                self._refuse(
                    name, f"is a member of its group {who}from {member.address}, and stays one"
                )
                return None
        return Claim(self._settings.model_copy(update={"instance": name}), lock)

    def _refuse(self, name: str, why: str) -> None:
        """Skip an automatic name.

        Raises:
            NameTakenError: it was chosen.
        """
        if self._is_chosen:
            raise NameTakenError(
                f"a {self._kind} named {name!r} {why}; give this one another --instance"
                " (SHUNTER_INSTANCE), or none, or stop that one first"
            )
        logger.info("a %s named %r %s", self._kind, name, why)

    async def _outlives(
        self, name: str, client: AIOKafkaConsumer, gone: Collection[Process]
    ) -> GroupMember | None:
        """Return who has a name elsewhere, after waiting for its session to end."""
        loop = asyncio.get_running_loop()
        is_told = False
        while True:
            found = await asyncio.gather(*(_ask(client, group, name) for group in self._groups))
            others = [
                member
                for member in found
                if member is not None and not member.has_left and member.process not in gone
            ]
            if not others:
                return None
            if loop.time() >= self._end_at:
                return next((m for m in others if m.process is not None), others[0])
            if not is_told:
                is_told = True
                logger.info(
                    "a %s named %r is a member of its group from %s; waiting up to %.0f s to see"
                    " whether it has ended",
                    *(self._kind, name, others[0].address, self._end_at - loop.time()),
                )
            await asyncio.sleep(ASK_AGAIN_S)


async def _ask(consumer: AIOKafkaConsumer, group: str, name: str) -> GroupMember | None:
    """Return the member of a group that has an instance's name.

    Raises:
        AdminError: no broker tells.
    """
    client = consumer._client  # noqa: SLF001 - for a request that aiokafka doesn't have
    loop = asyncio.get_running_loop()
    end_at = loop.time() + COORDINATOR_S_MAX

    async def send(request: DescribeGroup) -> Any:
        node = await client.coordinator_lookup(CoordinationType.GROUP, group)
        return await client.send(node, request)

    while True:
        try:
            return await member_named(send, group, static_name(group, name))
        except GroupAuthorizationFailedError:
            # A member that joins without the right gets an error that names it.
            return None
        except KafkaError as error:
            if not error.retriable or loop.time() >= end_at:
                raise AdminError(
                    f"no broker tells who is in the group {group}: {error}; is the cluster healthy?"
                ) from error
        await asyncio.sleep(ASK_AGAIN_S)


def static_name(group: str, instance: str) -> str:
    """Return what an instance is called in a group."""
    return f"{group}-{instance}"


def _directory(settings: Settings) -> Path | None:
    """Return this user's directory for the locks of this installation, if possible."""
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
        # The place is writable for all; another process may have been faster.
        if stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid():
            yield shared


def _file_name(kind: str, name: str) -> str:
    readable = re.sub(r"[^\w.-]", "_", f"{kind}.{name}", flags=re.ASCII)[:100]
    return f"{readable}.{hashlib.sha256(f'{kind}/{name}'.encode()).hexdigest()[:8]}.lock"


def _lock(path: Path) -> Lock | None:
    """Take the lock and write its owner down, or return None if another has it."""
    file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(file)
        return None
    earlier = _holders(os.pread(file, HOLDERS_BYTES_MAX, 0))
    told = "".join(f"{holder.word}\n" for holder in [*earlier, this_process()]).encode()
    # A full disk doesn't prevent the lock.
    with contextlib.suppress(OSError):
        os.pwrite(file, told, 0)
        os.ftruncate(file, len(told))
    return Lock(file, earlier)


def _holders(told: bytes) -> tuple[Process, ...]:
    words = map(read_process, told.decode(errors="replace").split())
    return tuple(word for word in words if word is not None)[-HOLDERS_MAX:]


def _holder(path: Path) -> str:
    """Return, for a message, the process that has a lock, if it wrote itself down."""
    with contextlib.suppress(OSError):
        for holder in _holders(path.read_bytes()[:HOLDERS_BYTES_MAX])[-1:]:
            return f" (process {holder.pid})"
    return ""
