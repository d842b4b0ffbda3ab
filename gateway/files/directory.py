"""Files in a directory: a folder for each tenant, in it contents and their records."""

import contextlib
import logging
import os
import secrets
from collections.abc import Collection
from pathlib import Path
from typing import BinaryIO

from gateway.exchange.request_ids import tenant_tag
from gateway.files.store import FileRecord, Upload, is_file_id
from topics import BadRecordError, decode, durable_files, encode

# An upload that nobody has written to for so long has no gateway any more.
UPLOAD_S_MAX = 3600.0

logger = logging.getLogger(__name__)


class UploadedFile:
    """Contents beside the files; they get their name as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size = 0
        self._file = path.open("xb")

    def write(self, piece: bytes) -> None:
        """Add a piece."""
        self._file.write(piece)
        self.size += len(piece)

    def sync(self) -> None:
        """Wait until the disk has all of it."""
        self._file.flush()
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Delete what was not given a name."""
        self._file.close()
        durable_files.remove(self.path)


class DirectoryFiles:
    """Files of all tenants below one folder."""

    def __init__(self, root: Path) -> None:
        self._files = root / "files"
        self._uploads = root / "uploads"
        for folder in (self._files, self._uploads):
            folder.mkdir(parents=True, exist_ok=True)

    def begin(self, tenant: str, file_id: str) -> UploadedFile:
        """Return what contents of a file are written to; the file's name is given at the end."""
        del tenant, file_id
        return UploadedFile(self._uploads / secrets.token_hex(16))

    def add(self, record: FileRecord, upload: Upload) -> None:
        """Make a file of what was written."""
        if not isinstance(upload, UploadedFile):
            raise TypeError("contents of another store")
        upload.sync()
        folder = self._folder(record.tenant)
        folder.mkdir(exist_ok=True)
        durable_files.replace(upload.path, folder / f"{record.id}.data")
        durable_files.write_whole(folder / f"{record.id}.json", encode(record))

    def get(self, tenant: str, file_id: str, now: float) -> FileRecord | None:
        """Return a tenant's file; None if there is none, or it has expired."""
        if not is_file_id(file_id):
            return None
        try:
            value = (self._folder(tenant) / f"{file_id}.json").read_bytes()
        except FileNotFoundError:
            return None
        record = decode(FileRecord, value)
        return record if record.is_of(tenant, now) else None

    def get_all(self, tenant: str, file_ids: Collection[str], now: float) -> dict[str, FileRecord]:
        """Return those of a tenant's files that are there, by id."""
        found = {each: self.get(tenant, each, now) for each in file_ids}
        return {each: record for each, record in found.items() if record is not None}

    def place(self, record: FileRecord) -> str:
        """Return the path of a file's contents."""
        return str(self._folder(record.tenant) / f"{record.id}.data")

    def open(self, record: FileRecord) -> BinaryIO:
        """Return a file's contents to read; who has them open reads on when they are deleted."""
        return Path(self.place(record)).open("rb")

    def ids(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's files, the oldest first."""
        return sorted(path.stem for path in self._folder(tenant).glob("file-*.json"))

    def delete(self, tenant: str, file_id: str) -> bool:
        """Delete a file; return whether it was there."""
        if not is_file_id(file_id):
            return False
        folder = self._folder(tenant)
        was_there = durable_files.remove(folder / f"{file_id}.json")
        durable_files.remove(folder / f"{file_id}.data")
        return was_there

    def sweep(self, now: float) -> None:
        """Delete what has expired, and uploads whose gateway died."""
        for path in self._uploads.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - UPLOAD_S_MAX and path.is_file():
                    durable_files.remove(path)
        for path in self._files.glob("*/file-*.json"):
            with contextlib.suppress(FileNotFoundError):
                try:
                    record = decode(FileRecord, path.read_bytes())
                except BadRecordError as error:
                    logger.warning("%s is passed over: %s", path, error)
                    continue
                if record.expires_at is not None and record.expires_at <= now:
                    self.delete(record.tenant, record.id)

    def _folder(self, tenant: str) -> Path:
        return self._files / tenant_tag(tenant)
