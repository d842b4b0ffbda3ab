"""Batches in an object store: one owner, whom the others outlive; none that was cut off."""

import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from batch_cases import KEY_ID, NOW, TENANT, Site, World, chat_line, file_of

from gateway.batches.assembly import is_in_memory
from gateway.batches.object_batches import ObjectBatch, ObjectBatches
from gateway.batches.object_log import SEGMENT_BYTES_MAX, ObjectLog
from gateway.batches.output import line_id
from gateway.batches.record import BatchRecord
from gateway.batches.signs_of_life import FORGET_S, GONE_S, SURE_S
from gateway.batches.store import NotCancellableError, NotOwnerError
from gateway.files.expiries import Expiries
from topics.objects import Objects, ObjectsError

MARK = f"batch_{0:011x}{0:016x}-tag"


class Hands:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.at = NOW

    def now(self) -> float:
        return self.at


class Yard:
    """An object store and the gateways at it; one batch is open."""

    def __init__(self, root: Path) -> None:
        self.clock = Hands()
        self.objects = Objects(f"memory://{root}")
        self.objects.write(f"open/{MARK}", b"")

    def gateway(self) -> ObjectBatches:
        found = ObjectBatches(self.objects, Expiries(self.objects), self.clock)
        found.start()
        found.open_batches()
        return found

    def look(self, *gateways: ObjectBatches) -> list[bool]:
        """Have gateways look and claim, in order; tell which of them owns the batch."""
        owners = []
        for each in gateways:
            each.open_batches()
            owners.append(each.claim(MARK) is not None)
        return owners

    def pass_s(self, seconds: int, *alive: ObjectBatches) -> None:
        for _ in range(seconds):
            self.clock.at += 1
            for each in alive:
                each.beat()


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def log_of(yard: Yard, total: int = 10) -> ObjectLog:
    return ObjectLog(yard.objects, "log", total)


def end_of(n: int, text: str = "said", **fields: Any) -> dict[str, Any]:
    return {"id": line_id("b0-", n), "custom_id": text, "response": {}, "error": None} | fields


def test_one_owns_a_batch_until_it_is_dead(yard: Yard) -> None:
    one, two = yard.gateway(), yard.gateway()
    assert yard.look(one, two) == [True, False]
    yard.pass_s(60, one, two)
    assert yard.look(one, two) == [True, False]
    yard.pass_s(int(GONE_S) - 1, two)
    assert yard.look(two) == [False]
    yard.pass_s(2, two)
    assert yard.look(two) == [True]


def test_one_that_stops_leaves_its_batches_at_once(yard: Yard) -> None:
    one, two = yard.gateway(), yard.gateway()
    assert yard.look(one, two) == [True, False]
    one.stop()
    yard.pass_s(1, two)
    assert yard.look(two) == [True]
    assert yard.look(one) == [False]


def test_of_two_that_claim_at_once_one_owns(yard: Yard) -> None:
    one, two = yard.gateway(), yard.gateway()
    # Both have looked before either claims.
    assert [each.claim(MARK) is not None for each in (one, two)] == [True, False]


async def test_one_that_was_cut_off_owns_nothing_any_more(yard: Yard) -> None:
    one = yard.gateway()
    folder = ObjectBatch(one, "tag", MARK.partition("-")[0])
    async with folder.owned() as is_ours:
        assert is_ours
        folder.check_owned()
        yard.clock.at += SURE_S
        with pytest.raises(NotOwnerError):
            folder.check_owned()
        one.beat()
        with pytest.raises(NotOwnerError):
            folder.check_owned()
    # Nobody has taken it meanwhile.
    assert yard.look(one) == [True]


def test_what_the_dead_have_told_is_deleted(yard: Yard) -> None:
    one, two = yard.gateway(), yard.gateway()
    two.sweep(yard.clock.at)
    yard.pass_s(int(FORGET_S) + 1, two)
    two.sweep(yard.clock.at)
    assert yard.objects.names("gateways") == [two.members.name]
    assert one.members.name != two.members.name


def test_two_write_no_log(yard: Yard) -> None:
    """One goes on after the other, which has not died, and finds that out as it writes."""
    one = log_of(yard)
    one.intend([(0, 0)], NOW)
    one.add(0, end_of(0), is_error=False)
    two = log_of(yard)
    two.intend([(1, 0)], NOW)
    with pytest.raises(NotOwnerError):
        one.flush()
    last = log_of(yard)
    assert (last.state.next_line, last.is_done(0)) == (2, False)


def test_an_acknowledgement_that_was_lost_is_no_other_owner(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, create = log_of(yard), yard.objects.create

    def again(path: str, data: bytes) -> bool:
        create(path, data)
        return create(path, data)

    monkeypatch.setattr(yard.objects, "create", again)
    log.intend([(0, 0)], NOW)
    log.intend([(1, 0)], NOW)
    assert log_of(yard).state.next_line == 2


def test_the_log_is_as_it_was_left(yard: Yard) -> None:
    log = log_of(yard)
    log.intend([(n, 0) for n in range(10)], NOW)
    log.published([(n, 0) for n in range(9)])
    log.add(3, end_of(3), is_error=False)
    log.add(4, end_of(4), is_error=True)
    log.add(4, end_of(4), is_error=False)
    log.read_to({0: 7, 1: 9}, [5])
    log.add(6, end_of(6), is_error=False)
    log.close()
    found = log_of(yard)
    assert (found.counts.completed, found.counts.failed, found.done_count) == (1, 1, 2)
    assert (found.state.positions, found.state.again) == ({0: 7, 1: 9}, {5})
    assert found.state.uncertain == {(9, 0)}
    written: list[bytes] = []
    found.copy(written.append, errors=True)
    assert [line.count(b'b0-4"') for line in written] == [1]


def test_a_batch_that_waits_writes_little(yard: Yard) -> None:
    log = log_of(yard)
    for n in range(100):
        log.read_to({0: n}, [])
    assert len(yard.objects.names("log")) == 10
    assert [log.told_every_s(age) for age in (1.0, 600.0, 86_400.0)] == [1.0, 10.0, 60.0]


def test_a_full_log_says_so(yard: Yard) -> None:
    log = log_of(yard)
    log.add(0, end_of(0, "x" * SEGMENT_BYTES_MAX), is_error=False)
    assert log.is_full
    log.flush()
    assert not log.is_full


def batch_of(site: Site, tmp_path: Path) -> ObjectBatch:
    folder = site.create(file_of([chat_line("a")]), tmp_path)
    assert isinstance(folder, ObjectBatch)
    return folder


def test_a_cancellation_and_an_end_are_one_or_the_other(tmp_path: Path) -> None:
    site = Site(tmp_path, World(0), is_remote=True)
    first, second = batch_of(site, tmp_path), batch_of(site, tmp_path)
    batch = first.read()
    first.settle(batch, "finalizing", NOW)
    with pytest.raises(NotCancellableError) as refused:
        first.cancel(NOW)
    assert (refused.value.status, batch.status) == ("finalizing", "finalizing")
    second.cancel(NOW + 1)
    second.cancel(NOW + 2)
    batch = second.read()
    second.settle(batch, "finalizing", NOW + 3)
    assert (batch.status, batch.cancelling_at) == ("cancelling", NOW + 1)


def test_a_record_that_comes_late_takes_no_end_back(tmp_path: Path) -> None:
    site = Site(tmp_path, World(0), is_remote=True)
    folder = batch_of(site, tmp_path)
    late, batch = folder.read(), folder.read()
    batch.enter("completed", NOW)
    folder.write(batch)
    folder.write(late)
    assert folder.read().status == "completed"
    told = site.store.told(TENANT, [batch.id])
    assert told[batch.id]["status"] == "completed"


def test_a_batch_is_there_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path, World(0), is_remote=True)
    there = batch_of(site, tmp_path).read()
    batch = BatchRecord(
        **{"id": f"batch_{1:011x}{1:016x}", "tenant": TENANT, "key_id": KEY_ID}
        | {
            "endpoint": there.endpoint,
            "input_file_id": "f",
            "completion_window": "24h",
            "created_at": NOW,
            "expires_at": NOW + 86_400,
        }
    )
    with pytest.raises(FileNotFoundError):
        site.store.create(batch, "files/none")
    assert site.store.get(TENANT, batch.id) is None
    assert site.store.ids(TENANT) == [there.id]
    assert len(site.store.open_batches()) == 2
    site.files.sweep(NOW + 90_000)
    site.store.sweep(NOW + 90_000)
    assert [batch_id for batch_id, _ in site.store.open_batches()] == [there.id]


def test_the_input_is_on_this_machine_while_it_is_read(tmp_path: Path) -> None:
    site = Site(tmp_path, World(0), is_remote=True)
    folder = batch_of(site, tmp_path)
    with os.fdopen(folder.open_input(), "rb") as file:
        file.seek(0)
        site.objects.delete(folder.input)  # type: ignore[union-attr]
        assert file.read() == file_of([chat_line("a")])
    with pytest.raises(FileNotFoundError):
        folder.open_input()


def test_a_store_that_writes_over_objects_is_refused(
    yard: Yard, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(yard.objects, "create", lambda path, data: True)
    with pytest.raises(ObjectsError, match="conditional writes"):
        yard.objects.check("probe")


def test_copies_of_inputs_go_where_they_are_told_to(
    yard: Yard, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Path | None] = []
    temporary = tempfile.TemporaryFile

    def noted(*, dir: Path | None = None) -> Any:  # noqa: A002 - as tempfile calls it
        made.append(dir)
        return temporary(dir=dir)

    monkeypatch.setattr(tempfile, "TemporaryFile", noted)
    store = ObjectBatches(yard.objects, Expiries(yard.objects), yard.clock, tmp_path)
    batch = ObjectBatch(store, "tag", "batch")
    yard.objects.write(batch.input, b"a line")
    copied = batch.open_input()
    assert os.pread(copied, 100, 0) == b"a line"
    os.close(copied)
    assert made == [tmp_path, tmp_path]
    with pytest.raises(OSError, match="nowhere"):
        ObjectBatches(yard.objects, Expiries(yard.objects), yard.clock, tmp_path / "nowhere")


def test_memory_is_told_from_disks(tmp_path: Path) -> None:
    below = tmp_path / "a b"
    mounts = tmp_path / "mounts"
    spaced = str(below).replace(" ", r"\040")
    mounts.write_text(f"/dev/vda / ext4 rw 0 0\ntmpfs {spaced} tmpfs rw 0 0\n")
    assert is_in_memory(below / "c", mounts)
    assert not is_in_memory(tmp_path, mounts)
    assert not is_in_memory(below, tmp_path / "none")
