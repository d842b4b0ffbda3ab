"""Archive, public log and the gateway's files on a server that speaks S3, by s3fs.

Processes die at points, and whoever comes next goes on.

    pytest -n0 tests/contract/test_s3.py

The server is moto's. S3_ENDPOINT names another one, such as MinIO; keys for it are in the usual
AWS_* variables.
"""

import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from adversary import TRUST, introduced_trail
from batch_cases import NOW, Site, World, chat_line, dying_writes, file_of
from memory_log import MemoryLog
from public_log_cases import DeadError, Installation, MortalStore, PlainWitness
from s3_cases import new_bucket, s3_server
from stream_cases import FakeClock

from gateway.files.expiries import Expiries
from gateway.files.object_files import ObjectFiles
from gateway.files.store import FileRecord, new_file_id
from shunter.archive import Archive, Archiver
from shunter.audit.archive_trail import find_request, verify_archive
from shunter.audit.keyring import Keyring
from shunter.public_log.store import ObjectStore
from shunter.public_log.tree import LogForkError, read_entries
from topics import objects as store_objects
from topics.objects import Objects
from topics.public_log.notes import parse_checkpoint, parse_note
from topics.public_log.tiles import TILE_WIDTH
from topics.signing.merkle import leaf_hash, tree_hash

pytestmark = pytest.mark.slow

NAMES = [f"line {n}" for n in range(24)]


class Mortal:
    """Does what it is given so many times, and dies."""

    def __init__(self, act: Callable[..., object], times: int) -> None:
        self._act = act
        self._left = times

    def __call__(self, *given: object) -> None:
        if self._left == 0:
            raise DeadError
        self._left -= 1
        self._act(*given)


@pytest.fixture(scope="module")
def server() -> Iterator[dict[str, str]]:
    """The environment of a server."""
    with s3_server() as env:
        yield env


@pytest.fixture
def bucket(server: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket."""
    for name, value in server.items():
        monkeypatch.setenv(name, value)
    return new_bucket()


def test_an_object_is_created_once_and_written_over_only_as_told(bucket: str) -> None:
    store = ObjectStore(f"{bucket}/log")
    store.claim()
    store.claim()
    assert store.create("journal/1", b"mine")
    assert not ObjectStore(f"{bucket}/log").create("journal/1", b"yours")
    assert store.read("journal/1") == b"mine"
    store.write("checkpoint", b"one")
    store.write("checkpoint", b"two")
    assert store.read("checkpoint") == b"two"
    assert store.read("nothing") is None
    assert store.names("journal") == ["1", "probe"]
    store.delete("journal/1")
    store.delete("journal/1")
    assert ObjectStore(f"{bucket}/log").names("journal") == ["probe"]


@pytest.mark.parametrize("death", range(0, 24, 3))
async def test_killed_at_any_change_the_log_signs_one_tree(bucket: str, death: int) -> None:
    yard, changes, seen, deaths = Installation(), iter(range(10_000)), PlainWitness("w"), 0
    with seen.serving():
        policy = f"{seen.line}quorum w\n"
        for count in (260, 10, 280):
            yard.sign(count)
            store = MortalStore(ObjectStore(f"{bucket}/log"), lambda: next(changes) == death)
            try:
                await yard.public_log(store, policy).round()
            except DeadError:
                deaths += 1
                yard.sign(7)
        last = ObjectStore(f"{bucket}/log")
        await yard.public_log(last, policy).round()
    head = parse_checkpoint(parse_note(last.read("checkpoint") or b"").text)
    bundles = range(-(-head.size // TILE_WIDTH))
    leaves = [leaf_hash(e) for n in bundles for e in read_entries(last, head.size, n)]
    assert deaths == 1
    assert len(set(leaves)) == len(leaves) == len(yard.roots)
    for checkpoint in [*seen.seen, head]:
        assert tree_hash(leaves[: checkpoint.size]) == checkpoint.root


async def test_of_two_processes_one_ends(bucket: str) -> None:
    yard = Installation()
    one, two = (yard.public_log(ObjectStore(f"{bucket}/log")) for _ in range(2))
    yard.sign(10)
    await one.round()
    await two.round()
    yard.sign(10)
    await two.round()
    yard.sign(10)
    with pytest.raises(LogForkError, match="another process has appended meanwhile"):
        await one.round()


async def test_an_archive_verifies_and_goes_on_after_each_death(
    bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The archiver dies within a write: before the file is whole, or before it has its name."""
    trail = await introduced_trail()
    log, keyring = MemoryLog(trail.cluster()), Keyring(installations=frozenset({TRUST}))

    def archiver(archive: Archive) -> Archiver:
        return Archiver(log, trail.catalogue, archive, FakeClock(), rows_max=3)

    for death in range(4):
        archive = Archive(f"{bucket}/archive")
        with monkeypatch.context() as patch:
            patch.setattr(archive.fs, "mv", Mortal(archive.fs.mv, death))
            with pytest.raises(DeadError):
                await archiver(archive).round()
    archive = Archive(f"{bucket}/archive")
    await archiver(archive).round()
    assert await archiver(Archive(f"{bucket}/archive")).round() == 0
    found = verify_archive(Archive(f"{bucket}/archive"), keyring=keyring)
    assert found.is_good, found.problems
    assert found.records == len(trail.evidence)
    assert len(find_request(archive, "r0")) == sum(r.key == b"r0" for r in trail.evidence)


@pytest.mark.parametrize("seed", range(2))
async def test_a_batch_ends_once_whatever_step_its_gateway_dies_at(
    tmp_path: Path, bucket: str, seed: int
) -> None:
    world = World(seed, turned_away=0.1 * (seed % 2))
    site = Site(tmp_path, world, is_remote=True, url=f"{bucket}/door")
    folder = site.create(file_of(map(chat_line, NAMES)), tmp_path)
    with dying_writes(world):
        died = await site.live_to_the_end(folder, steps_max=80)
    batch = folder.read()
    assert died
    assert batch.status == "completed"
    assert batch.error_file_id is None
    lines = site.lines(batch.output_file_id)
    assert Counter(line["custom_id"] for line in lines) == Counter(NAMES)
    ids = Counter(request_id for request_id, _, _ in world.ingest)
    assert set(ids.values()) == {1}
    assert site.store.open_batches() == []


def test_a_large_upload_is_there_as_a_whole(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    part = 5 * 1024 * 1024
    monkeypatch.setattr(store_objects, "PART_BYTES", part)
    objects = Objects(f"{bucket}/door")
    objects.check("probe")
    files = ObjectFiles(objects, Expiries(objects))
    piece, count = bytes(range(256)) * 1024, 6 * part // (256 * 1024) + 1
    broken, whole = (
        FileRecord(new_file_id(NOW), "a", count * len(piece), NOW, "in.jsonl", "batch")
        for _ in range(2)
    )
    begun = files.begin("a", broken.id)
    for _ in range(count):
        begun.write(piece)
    begun.close()
    assert files.ids("a") == []
    with pytest.raises(FileNotFoundError):
        files.open(broken).read()
    tracemalloc.start()
    written = files.begin("a", whole.id)
    for _ in range(count):
        written.write(piece)
    assert files.ids("a") == []
    files.add(whole, written)
    written.close()
    with files.open(whole) as file:
        read = 0
        while found := file.read(len(piece)):
            assert found == piece
            read += 1
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert read == count
    assert (files.ids("a"), files.get("a", whole.id, NOW)) == ([whole.id], whole)
    assert most < 4 * part, "memory does not follow the file"
    # Another's folder is no file, and no part of one is left.
    assert objects.names("files") == [files.place(whole).split("/")[1]]
