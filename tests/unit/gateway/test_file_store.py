"""Stores of files: each whole or not there, each tenant's own, gone when it is over."""

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
from batch_cases import NOW

from gateway.files import directory, object_files
from gateway.files.directory import DirectoryFiles
from gateway.files.expiries import Expiries
from gateway.files.object_files import ObjectFiles
from gateway.files.store import FileRecord, FileStore, new_file_id
from topics import durable_files
from topics.objects import Objects


@pytest.fixture(params=["directory", "objects"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> FileStore:
    if request.param == "directory":
        return DirectoryFiles(tmp_path)
    return remote(tmp_path)[1]


def remote(tmp_path: Path) -> tuple[Objects, ObjectFiles]:
    objects = Objects(f"memory://{tmp_path}")
    return objects, ObjectFiles(objects, Expiries(objects))


def stored(store: FileStore, tenant: str = "a", expires_at: float | None = None) -> FileRecord:
    record = FileRecord(new_file_id(NOW), tenant, 4, NOW, "x.jsonl", "batch", expires_at)
    with contextlib.closing(store.begin(tenant, record.id)) as written:
        written.write(b"te")
        written.write(b"xt")
        assert written.size == 4
        store.add(record, written)
    return record


def contents(store: FileStore, record: FileRecord) -> bytes:
    with store.open(record) as file:
        return file.read()


def test_a_file_is_its_tenants_alone(store: FileStore) -> None:
    record = stored(store)
    assert store.get("a", record.id, NOW) == record
    assert store.get_all("a", [record.id, new_file_id(NOW)], NOW) == {record.id: record}
    assert contents(store, record) == b"text"
    assert store.get("b", record.id, NOW) is None
    assert store.get_all("b", [record.id], NOW) == {}
    assert not store.delete("b", record.id)
    assert (store.ids("a"), store.ids("b")) == ([record.id], [])
    assert store.delete("a", record.id)
    assert store.get("a", record.id, NOW) is None
    assert not store.delete("a", record.id)
    with pytest.raises(FileNotFoundError):
        contents(store, record)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "file-../../x", "file-", "file-0\n", "file-x/y"]
)
def test_no_id_leads_out_of_the_folder(store: FileStore, name: str) -> None:
    assert store.get("a", name, NOW) is None
    assert store.get_all("a", [name], NOW) == {}
    assert not store.delete("a", name)


def test_an_upload_that_breaks_off_is_no_file(
    store: FileStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable_files, "write_whole", fail)
    monkeypatch.setattr(Objects, "write", fail)
    with pytest.raises(OSError, match="No space"):
        stored(store)
    assert store.ids("a") == []


def test_what_is_over_goes(store: FileStore) -> None:
    kept, over = stored(store), stored(store, expires_at=NOW + 10)
    assert store.get("a", over.id, NOW + 9.9) == over
    assert store.get("a", over.id, NOW + 10) is None
    store.sweep(NOW + 9)
    assert set(store.ids("a")) == {kept.id, over.id}
    store.sweep(NOW + 11)
    assert store.ids("a") == [kept.id]
    with pytest.raises(FileNotFoundError):
        contents(store, over)
    assert contents(store, kept) == b"text"


def test_what_a_dead_gateway_has_begun_goes(tmp_path: Path) -> None:
    store, left = DirectoryFiles(tmp_path), tmp_path / "uploads" / "left"
    left.write_bytes(b"half")
    os.utime(left, (NOW, NOW))
    store.sweep(NOW + directory.UPLOAD_S_MAX - 1)
    assert left.exists()
    store.sweep(NOW + directory.UPLOAD_S_MAX + 1)
    assert not left.exists()


def test_contents_without_a_record_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    objects, store = remote(tmp_path)
    real = objects.write

    def die_at_the_record(path: str, data: bytes) -> Any:
        if path.endswith(".json"):
            raise MemoryError
        return real(path, data)

    monkeypatch.setattr(objects, "write", die_at_the_record)
    with pytest.raises(MemoryError):
        stored(store)
    monkeypatch.undo()
    (tenant,) = objects.names("files")
    assert len(objects.names(f"files/{tenant}")) == 1
    whole = stored(store)
    store.sweep(NOW + object_files.UPLOAD_S_MAX + 1)
    assert contents(store, whole) == b"text"
    assert len(objects.names(f"files/{tenant}")) == 2


def test_what_is_due_stays_where_it_has_become_something(tmp_path: Path) -> None:
    """As contents stay that have a record, though whoever wrote it died before it said so."""
    objects, expiries = Objects(f"memory://{tmp_path}"), Expiries(Objects(f"memory://{tmp_path}"))
    for name in ("kept", "left"):
        objects.write(name, b"contents")
        expiries.note(NOW, [name], unless=f"{name}.json")
    objects.write("kept.json", b"{}")
    expiries.sweep(NOW + 1)
    assert objects.read("kept") == b"contents"
    assert objects.read("left") is None


def test_what_can_not_be_read_keeps_nothing_else_from_expiring(tmp_path: Path) -> None:
    files = DirectoryFiles(tmp_path)
    old = [stored(files, "a", NOW + 1), stored(files, "b", NOW + 1)]
    for home in (tmp_path / "files").iterdir():
        (home / f"{new_file_id(NOW - 9)}.json").write_bytes(b"")
    files.sweep(NOW + 2)
    assert [files.get(each.tenant, each.id, NOW) for each in old] == [None, None]


def test_an_entry_that_can_not_be_read_keeps_nothing_else_in_the_store(tmp_path: Path) -> None:
    objects, expiries = Objects(f"memory://{tmp_path}"), Expiries(Objects(f"memory://{tmp_path}"))
    objects.write("expiring/0000001/odd", b"{")
    objects.write("due", b"x")
    expiries.note(NOW, ["due"])
    expiries.sweep(NOW + 1)
    assert objects.read("due") is None
