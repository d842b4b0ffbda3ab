"""Files in an object store: contents, and beside them the record that makes them a file."""

from collections.abc import Collection
from typing import BinaryIO

from gateway.exchange.request_ids import tenant_tag
from gateway.files.expiries import Expiries
from gateway.files.store import FileRecord, Upload, is_file_id
from topics import decode, encode
from topics.objects import NewObject, Objects

# An upload that is no file by then has no gateway any more.
UPLOAD_S_MAX = 86_400.0
_RECORD = ".json"


class ObjectFiles:
    """Files of all tenants below one URL."""

    def __init__(self, objects: Objects, expiries: Expiries) -> None:
        self._objects = objects
        self._expiries = expiries

    def begin(self, tenant: str, file_id: str) -> NewObject:
        """Return what contents of a file are written to, in parts that nobody can read yet."""
        return self._objects.begin(f"{_base(tenant, file_id)}.data")

    def add(self, record: FileRecord, upload: Upload) -> None:
        """Make a file of what was written."""
        if not isinstance(upload, NewObject):
            raise TypeError("contents of another store")
        base = _base(record.tenant, record.id)
        contents, told, left_at = f"{base}.data", base + _RECORD, record.created_at + UPLOAD_S_MAX
        self._expiries.note(left_at, [contents], unless=told)
        if record.expires_at is not None:
            self._expiries.note(record.expires_at, [told, contents])
        upload.finish()
        self._objects.write(told, encode(record))
        self._expiries.forget(left_at, contents)

    def get(self, tenant: str, file_id: str, now: float) -> FileRecord | None:
        """Return a tenant's file; None if there is none, or it has expired."""
        if not is_file_id(file_id):
            return None
        return _record(self._objects.read(_base(tenant, file_id) + _RECORD), tenant, now)

    def get_all(self, tenant: str, file_ids: Collection[str], now: float) -> dict[str, FileRecord]:
        """Return those of a tenant's files that are there, by id."""
        paths = {_base(tenant, each) + _RECORD: each for each in file_ids if is_file_id(each)}
        found = self._objects.read_all(paths)
        records = {paths[path]: _record(value, tenant, now) for path, value in found.items()}
        return {each: record for each, record in records.items() if record is not None}

    def place(self, record: FileRecord) -> str:
        """Return the path of a file's contents in the store."""
        return f"{_base(record.tenant, record.id)}.data"

    def open(self, record: FileRecord) -> BinaryIO:
        """Return a file's contents to read."""
        return self._objects.open(self.place(record))

    def ids(self, tenant: str) -> list[str]:
        """Return the ids of a tenant's files, the oldest first."""
        names = self._objects.names(f"files/{tenant_tag(tenant)}")
        return [name.removesuffix(_RECORD) for name in names if name.endswith(_RECORD)]

    def delete(self, tenant: str, file_id: str) -> bool:
        """Delete a file; return whether it was there."""
        if not is_file_id(file_id):
            return False
        base = _base(tenant, file_id)
        was_there = self._objects.read(base + _RECORD) is not None
        self._objects.delete(base + _RECORD)
        self._objects.delete(f"{base}.data")
        return was_there

    def sweep(self, now: float) -> None:
        """Delete what is due, of batches too."""
        self._expiries.sweep(now)


def _record(value: bytes | None, tenant: str, now: float) -> FileRecord | None:
    if value is None:
        return None
    record = decode(FileRecord, value)
    return record if record.is_of(tenant, now) else None


def _base(tenant: str, file_id: str) -> str:
    return f"files/{tenant_tag(tenant)}/{file_id}"
