"""The store: a folder for each batch, who owns it, and whether it is to be cancelled."""

import contextlib
import errno
import fcntl
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from gateway.batches.record import CANCELLABLE, FINAL, BatchRecord
from gateway.exchange.request_ids import tenant_tag
from topics import decode, durable_files, encode

_ID = re.compile(r"batch_[0-9a-f]{11}[0-9a-f]{16}")
# A folder that was begun so long ago was never finished: its gateway died.
BEGUN_S_MAX = 3600.0
# What the record of an ended batch makes superfluous.
WORKING_FILES = ("input", "journal", "output", "errors")


def new_batch_id(now: float) -> str:
    """Return an id that sorts by time; ``now`` is epoch seconds."""
    return f"batch_{int(now * 1000):011x}{secrets.token_hex(8)}"


class NotCancellableError(Exception):
    """The batch has ended, or is about to; ``status`` says how."""

    def __init__(self, status: str) -> None:
        super().__init__(status)
        self.status = status


class BatchFolder:
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

    @contextlib.contextmanager
    def owned(self) -> Iterator[bool]:
        """Try to own the batch; the kernel takes that away from a process that is killed."""
        try:
            with _locked(self.path / "lock", wait=False):
                yield True
        except BlockingIOError:
            yield False

    def close(self) -> None:
        """Forget what an ended batch needs no more."""
        durable_files.remove(self._mark)
        for name in WORKING_FILES:
            durable_files.remove(self.path / name)


class BatchStore:
    """Batches of all tenants below one folder that all gateways share.

    A mark in ``open`` is there for each batch that has not ended.
    """

    def __init__(self, root: Path) -> None:
        self._batches = root / "batches"
        self._open = root / "open"
        self._begun = root / "begun"
        for folder in (self._batches, self._open, self._begun):
            folder.mkdir(parents=True, exist_ok=True)

    def create(self, batch: BatchRecord, contents: Path) -> None:
        """Make a batch whose input is a link to these contents; it is there as a whole, or not.

        One of that id which is there already stays as it is.

        Raises:
            FileNotFoundError: the contents were deleted.
        """
        begun = self._begun / f"{batch.id}.{secrets.token_hex(8)}"
        begun.mkdir()
        try:
            _link(contents, begun / "input")
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

    def get(self, tenant: str, batch_id: str) -> BatchFolder | None:
        """Return a tenant's batch, or None."""
        if _ID.fullmatch(batch_id) is None:
            return None
        return self._folder(self._home(tenant) / batch_id)

    def ids(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's batches, the oldest first."""
        return sorted(path.name for path in self._home(tenant).glob("batch_*"))

    def open_batches(self) -> list[tuple[str, BatchFolder]]:
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

    def _folder(self, path: Path) -> BatchFolder | None:
        return BatchFolder(path, self._open / path.name) if path.is_dir() else None

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
