"""Files of all tenants, wherever they are kept: the same for every gateway."""

import re
import secrets
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

FILE_BYTES_MAX = 200 * 1024 * 1024
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

    def is_of(self, tenant: str, now: float) -> bool:
        """Return whether it is a tenant's, and has not expired."""
        return self.tenant == tenant and (self.expires_at is None or self.expires_at > now)


def new_file_id(now: float) -> str:
    """Return an id that sorts by time; ``now`` is epoch seconds."""
    return f"file-{int(now * 1000):011x}{secrets.token_hex(8)}"


def is_file_id(text: str) -> bool:
    """Return whether a text can be the id of a file."""
    return _ID.fullmatch(text) is not None


class Upload(Protocol):
    """Contents that are being written, piece by piece; each call blocks."""

    size: int

    def write(self, piece: bytes) -> None:
        """Add a piece."""
        ...

    def close(self) -> None:
        """Throw away what was not made a file."""
        ...


class FileStore(Protocol):
    """Files. A file is there when its record is; half an upload is none.

    Each call blocks, and may raise OSError.
    """

    def begin(self, tenant: str, file_id: str) -> Upload:
        """Return what contents of a file are written to."""
        ...

    def add(self, record: FileRecord, upload: Upload) -> None:
        """Make a file of what was written."""
        ...

    def get(self, tenant: str, file_id: str, now: float) -> FileRecord | None:
        """Return a tenant's file; None if there is none, or it has expired."""
        ...

    def get_all(self, tenant: str, file_ids: Collection[str], now: float) -> dict[str, FileRecord]:
        """Return those of a tenant's files that are there, by id; at most a hundred."""
        ...

    def place(self, record: FileRecord) -> str:
        """Return where a file's contents stand, for the store of batches."""
        ...

    def open(self, record: FileRecord) -> BinaryIO:
        """Return a file's contents to read.

        Raises:
            FileNotFoundError: they were deleted.
        """
        ...

    def ids(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's files, the oldest first."""
        ...

    def delete(self, tenant: str, file_id: str) -> bool:
        """Delete a file; return whether it was there."""
        ...

    def sweep(self, now: float) -> None:
        """Delete what has expired, and what dead gateways have begun."""
        ...
