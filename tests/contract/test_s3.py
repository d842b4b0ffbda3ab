"""Archive and public log on a server that speaks S3, by s3fs: it creates, and dies, as they need.

    pytest -n0 tests/contract/test_s3.py

The server is moto's. S3_ENDPOINT names another one, such as MinIO; keys for it are in the usual
AWS_* variables.
"""

import os
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator

import pytest
from adversary import TRUST, introduced_trail
from memory_log import MemoryLog
from public_log_cases import DeadError, Installation, MortalStore, PlainWitness
from stream_cases import FakeClock

from shunter.archive import Archive, Archiver
from shunter.audit.archive_trail import find_request, verify_archive
from shunter.audit.keyring import Keyring
from shunter.public_log.store import ObjectStore
from shunter.public_log.tree import LogForkError, read_entries
from topics.public_log.notes import parse_checkpoint, parse_note
from topics.public_log.tiles import TILE_WIDTH
from topics.signing.merkle import leaf_hash, tree_hash

s3fs = pytest.importorskip("s3fs", reason="pip install 'shunter[dev]'")


pytestmark = pytest.mark.slow


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
def endpoint() -> Iterator[str]:
    """The address of a server; moto's, if none is named."""
    if "S3_ENDPOINT" in os.environ:
        yield os.environ["S3_ENDPOINT"]
        return
    pytest.importorskip("moto.server", reason="pip install 'shunter[dev]', or set S3_ENDPOINT")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + 60
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < until, "moto's server doesn't answer"
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(20)


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", os.environ.get("AWS_ACCESS_KEY_ID", "key"))
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", os.environ.get("AWS_SECRET_ACCESS_KEY", "secret"))
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    name = f"shunter-{uuid.uuid4().hex}"
    s3fs.S3FileSystem.clear_instance_cache()
    s3fs.S3FileSystem().mkdir(name)
    return f"s3://{name}"


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
