"""The store of files: whole or not there, each tenant's own, gone when it is over."""

from pathlib import Path

import pytest
from batch_cases import NOW

from gateway.files.store import UPLOAD_S_MAX, FileRecord, FileStore, new_file_id
from topics import durable_files


def stored(store: FileStore, tenant: str = "a", expires_at: float | None = None) -> FileRecord:
    record = FileRecord(new_file_id(NOW), tenant, 4, NOW, "x.jsonl", "batch", expires_at)
    with store.upload() as path:
        path.write_bytes(b"text")
        store.add(record, path)
    return record


def test_a_file_is_its_tenants_alone(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    record = stored(store)
    assert store.get("a", record.id, NOW) == record
    assert store.contents(record).read_bytes() == b"text"
    assert store.get("b", record.id, NOW) is None
    assert not store.delete("b", record.id)
    assert (store.ids("a"), store.ids("b")) == ([record.id], [])
    assert store.delete("a", record.id)
    assert store.get("a", record.id, NOW) is None
    assert not store.delete("a", record.id)


@pytest.mark.parametrize(
    "name", ["", "..", "../x", "file-../../x", "file-", "file-0\n", "file-x/y"]
)
def test_no_id_leads_out_of_the_folder(tmp_path: Path, name: str) -> None:
    store = FileStore(tmp_path)
    assert store.get("a", name, NOW) is None
    assert not store.delete("a", name)


def test_an_upload_that_breaks_off_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileStore(tmp_path)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable_files, "write_whole", fail)
    with pytest.raises(OSError, match="No space"):
        stored(store)
    assert store.ids("a") == []


def test_what_is_over_goes(tmp_path: Path) -> None:
    store = FileStore(tmp_path)
    kept, over = stored(store), stored(store, expires_at=NOW + 10)
    left = tmp_path / "uploads" / "left"
    left.write_bytes(b"half")
    assert store.get("a", over.id, NOW + 9.9) == over
    assert store.get("a", over.id, NOW + 10) is None
    now = left.stat().st_mtime + UPLOAD_S_MAX - 1
    store.sweep(now)
    assert left.exists()
    store.sweep(now + 2)
    assert not left.exists()
    assert store.ids("a") == [kept.id]
    assert not store.contents(over).exists()
