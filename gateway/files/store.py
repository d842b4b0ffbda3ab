"""The store: a folder for each tenant, in it contents and their records."""

import contextlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway.exchange.request_ids import tenant_tag
from topics import decode, durable_files, encode

FILE_BYTES_MAX = 200 * 1024 * 1024
# An upload that nobody has written to for so long has no gateway any more.
UPLOAD_S_MAX = 3600.0
_ID = re.compile(r"file-[0-9a-f]{11}[0-9a-z]{1,64}")


@dataclass(frozen=True, slots=True)
class FileRecord:
    """The record of a file. Times are epoch seconds; ``expires_at`` None for never."""

    id: str
    tenant: str
    bytes: int
    created_at: float
    filename: str
    purpose: str
    expires_at: float | None = None

    def told(self) -> dict[str, Any]:
        """Return OpenAI's object."""
        found: dict[str, Any] = {
            "id": self.id,
            "object": "file",
            "bytes": self.bytes,
            "created_at": int(self.created_at),
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }
        if self.expires_at is not None:
            found["expires_at"] = int(self.expires_at)
        return found


def new_file_id(now: float) -> str:
    """Return an id that sorts by time; ``now`` is epoch seconds."""
    return f"file-{int(now * 1000):011x}{secrets.token_hex(8)}"


class FileStore:
    """Files of all tenants below one folder. A file is there when its record is.

    Contents are written beside and given their name as a whole, so that half an upload is no file.
    """

    def __init__(self, root: Path) -> None:
        self._files = root / "files"
        self._uploads = root / "uploads"
        for folder in (self._files, self._uploads):
            folder.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def upload(self) -> Iterator[Path]:
        """Provide a path to write contents to; what is left there is deleted."""
        path = self._uploads / secrets.token_hex(16)
        try:
            yield path
        finally:
            durable_files.remove(path)

    def add(self, record: FileRecord, written: Path) -> None:
        """Make a file of what was written, and synced, at a path of ``upload``."""
        folder = self._folder(record.tenant)
        folder.mkdir(exist_ok=True)
        durable_files.replace(written, folder / f"{record.id}.data")
        durable_files.write_whole(folder / f"{record.id}.json", encode(record))

    def get(self, tenant: str, file_id: str, now: float) -> FileRecord | None:
        """Return a tenant's file; None if there is none, or it has expired."""
        if _ID.fullmatch(file_id) is None:
            return None
        try:
            value = (self._folder(tenant) / f"{file_id}.json").read_bytes()
        except FileNotFoundError:
            return None
        record = decode(FileRecord, value)
        is_over = record.expires_at is not None and record.expires_at <= now
        return None if is_over or record.tenant != tenant else record

    def contents(self, record: FileRecord) -> Path:
        """Return where a file's contents stand."""
        return self._folder(record.tenant) / f"{record.id}.data"

    def ids(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's files, the oldest first."""
        return sorted(path.stem for path in self._folder(tenant).glob("file-*.json"))

    def delete(self, tenant: str, file_id: str) -> bool:
        """Delete a file; return whether it was there. Who has it open reads on."""
        if _ID.fullmatch(file_id) is None:
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
                record = decode(FileRecord, path.read_bytes())
                if record.expires_at is not None and record.expires_at <= now:
                    self.delete(record.tenant, record.id)

    def _folder(self, tenant: str) -> Path:
        return self._files / tenant_tag(tenant)
