"""Batches in a directory: a folder for each, and the lock on it that says who owns it."""

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
from collections.abc import AsyncIterator, Collection, Iterator
from pathlib import Path
from typing import Any

from gateway.batches.directory_log import DirectoryLog
from gateway.batches.record import CANCELLABLE, FINAL, BatchRecord, Status
from gateway.batches.store import NotCancellableError, is_batch_id, told
from gateway.exchange.request_ids import tenant_tag
from topics import decode, durable_files, encode

# A folder that was begun so long ago was never finished: its gateway died.
BEGUN_S_MAX = 3600.0
# What the record of an ended batch makes superfluous.
WORKING_FILES = ("input", "journal", "output", "errors")


class DirectoryBatch:
    """One batch: its record, its files, its owner. Everything in it survives any process."""

    def __init__(self, path: Path, mark: Path) -> None:
        self.path = path
        self._mark = mark

    def file(self, name: str) -> Path:
        """Return where one of the batch's files stands."""
        return self.path / name

    def read(self) -> BatchRecord:
        """Return the record as it is now."""
        return decode(BatchRecord, (self.path / "batch.json").read_bytes())

    def write(self, batch: BatchRecord) -> None:
        """Replace the record; only the owner does."""
        durable_files.write_whole(self.path / "batch.json", encode(batch))

    def cancelling_at(self) -> float | None:
        """Return when somebody cancelled the batch; None if nobody has."""
        try:
            return float((self.path / "cancel").read_bytes())
        except FileNotFoundError:
            return None

    def seen_cancelling_at(self) -> float | None:
        """Return the same, which a directory tells at once."""
        return self.cancelling_at()

    def cancel(self, now: float) -> None:
        """Ask for the batch to be cancelled; once this returns, it is never completed.

        Raises:
            NotCancellableError: it has ended, or its files are being written.
        """
        with self.gate():
            status = self.read().status
            if self.cancelling_at() is not None and status not in FINAL:
                return
            if status not in CANCELLABLE:
                raise NotCancellableError(status)
            durable_files.create_exclusive(self.path / "cancel", repr(now).encode())

    @contextlib.contextmanager
    def gate(self) -> Iterator[None]:
        """Keep a cancellation and the end of the batch apart, for as long as this is entered."""
        with _locked(self.path / "gate", wait=True):
            yield

    def settle(self, batch: BatchRecord, status: Status, now: float) -> None:
        """Enter a status after which nobody may cancel, or ``cancelling`` if somebody has."""
        with self.gate():
            cancelling_at = self.cancelling_at()
            if cancelling_at is not None:
                status, now = "cancelling", cancelling_at
            if batch.status != status:
                batch.enter(status, now)
            self.write(batch)

    @contextlib.asynccontextmanager
    async def owned(self) -> AsyncIterator[bool]:
        """Try to own the batch; the kernel takes that away from a process that is killed."""
        try:
            with _locked(self.path / "lock", wait=False):
                yield True
        except BlockingIOError:
            yield False

    def check_owned(self) -> None:
        """Return: the lock is there as long as the process is."""

    def open_input(self) -> int:
        """Return a descriptor of the input."""
        return os.open(self.path / "input", os.O_RDONLY)

    def open_log(self, total: int) -> DirectoryLog:
        """Return the log of a batch with so many lines, as its last owner left it."""
        return DirectoryLog(self.path, total)

    def close(self) -> None:
        """Forget what an ended batch needs no more."""
        durable_files.remove(self._mark)
        for name in WORKING_FILES:
            durable_files.remove(self.path / name)


class DirectoryBatches:
    """Batches of all tenants below one folder that all gateways share.

    A mark in ``open`` is there for each batch that has not ended.
    """

    def __init__(self, root: Path) -> None:
        self._batches = root / "batches"
        self._open = root / "open"
        self._begun = root / "begun"
        for folder in (self._batches, self._open, self._begun):
            folder.mkdir(parents=True, exist_ok=True)

    def start(self) -> None:
        """Begin: locks need no more."""

    def beat(self) -> None:
        """Tell nobody: locks do."""

    def stop(self) -> None:
        """End: each lock was given up."""

    def create(self, batch: BatchRecord, place: str) -> None:
        """Make a batch whose input is a link to the contents; it is there as a whole, or not.

        One of that id which is there already stays as it is.

        Raises:
            FileNotFoundError: the contents were deleted.
        """
        begun = self._begun / f"{batch.id}.{secrets.token_hex(8)}"
        begun.mkdir()
        try:
            _link(Path(place), begun / "input")
            for name in ("lock", "gate", "journal", "output", "errors"):
                (begun / name).touch()
            durable_files.write_whole(begun / "batch.json", encode(batch))
            home = self._home(batch.tenant)
            home.mkdir(exist_ok=True)
            # Before the batch is there: a mark alone is no harm, a batch without one is forgotten.
            durable_files.write_whole(self._open / batch.id, tenant_tag(batch.tenant).encode())
            try:
                durable_files.replace(begun, home / batch.id)
            except OSError as error:
                if error.errno not in {errno.ENOTEMPTY, errno.EEXIST}:
                    raise
        finally:
            shutil.rmtree(begun, ignore_errors=True)

    def get(self, tenant: str, batch_id: str) -> DirectoryBatch | None:
        """Return a tenant's batch, or None."""
        if not is_batch_id(batch_id):
            return None
        return self._folder(self._home(tenant) / batch_id)

    def told(self, tenant: str, batch_ids: Collection[str]) -> dict[str, dict[str, Any]]:
        """Return OpenAI's objects of those that are there, by id."""
        folders = {each: self.get(tenant, each) for each in batch_ids}
        return {each: told(folder) for each, folder in folders.items() if folder is not None}

    def ids(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's batches, the oldest first."""
        return sorted(path.name for path in self._home(tenant).glob("batch_*"))

    def open_batches(self) -> list[tuple[str, DirectoryBatch]]:
        """Return the batches that have not ended, the oldest first."""
        found = []
        for mark in sorted(self._open.glob("batch_*")):
            with contextlib.suppress(FileNotFoundError):
                folder = self._folder(self._batches / mark.read_text() / mark.name)
                if folder is not None:
                    found.append((mark.name, folder))
        return found

    def sweep(self, now: float) -> None:
        """Delete what gateways began and died before it was a batch."""
        for path in self._begun.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - BEGUN_S_MAX:
                    shutil.rmtree(path, ignore_errors=True)
                    self._forget_mark(self._open / path.name.partition(".")[0])

    def _forget_mark(self, mark: Path) -> None:
        home = self._batches / mark.read_text()
        if not (home / mark.name).exists():
            durable_files.remove(mark)

    def _folder(self, path: Path) -> DirectoryBatch | None:
        return DirectoryBatch(path, self._open / path.name) if path.is_dir() else None

    def _home(self, tenant: str) -> Path:
        return self._batches / tenant_tag(tenant)


def _link(contents: Path, target: Path) -> None:
    try:
        os.link(contents, target)
    except (PermissionError, NotImplementedError):
        shutil.copyfile(contents, target)


@contextlib.contextmanager
def _locked(path: Path, *, wait: bool) -> Iterator[None]:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)
