"""The public log with what others wrote: litewitness cosigns it, torchwood and x/mod read it."""

import base64
import json
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from public_log_cases import KEY, ORIGIN, Installation
from transparency import LiteWitness, build, litewitness, missing, told

from shunter.public_log.store import DirectoryStore, WebReader
from shunter.public_log.tree import read_entries, read_tile
from topics.public_log.entries import entry_of
from topics.public_log.notes import is_signed_by, parse_checkpoint, parse_note
from topics.public_log.policy import parse_policy
from topics.public_log.proofs import check_log_proof, format_log_proof
from topics.public_log.tiles import TILE_WIDTH, TiledTree
from topics.signing.key_files import write_key_file

pytestmark = pytest.mark.skipif(missing() is not None, reason=missing() or "")


class QuietFiles(SimpleHTTPRequestHandler):
    """Files of a directory, without a line for each."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def witness(programs: Path, tmp_path: Path) -> Iterator[LiteWitness]:
    with litewitness(
        programs, tmp_path / "w", "witness.example/lite", ORIGIN, KEY.verifier.text
    ) as running:
        yield running


@pytest.fixture
def served(tmp_path: Path) -> Iterator[str]:
    """A plain web server over a log's files."""
    (tmp_path / "log").mkdir()
    handler = partial(QuietFiles, directory=str(tmp_path / "log"))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def policy_file(tmp_path: Path, witness: LiteWitness) -> Path:
    path = tmp_path / "policy"
    path.write_text(f"log {KEY.verifier.text}\n{witness.line}quorum {witness.name}\n")
    return path


@pytest.mark.slow
async def test_others_cosign_it_read_it_and_verify_its_proofs(
    programs: Path, witness: LiteWitness, served: str, tmp_path: Path
) -> None:
    yard, store = Installation(), DirectoryStore(tmp_path / "log")
    policy = policy_file(tmp_path, witness)
    public = yard.public_log(store, f"{witness.line}quorum {witness.name}\n")
    # Each growth has a consistency proof that litewitness checks; two of them complete tiles.
    values = []
    for count in (1, 2, 250, 3, 1, 300, 211):
        values += yard.sign(count)
        await public.round()
        assert public.state.published == len(values), public.witnesses.last_failure
    read = told(programs, "read", served, policy, KEY.verifier.text)
    assert read.returncode == 0, read.stderr
    seen = json.loads(read.stdout)
    mine = [e for n in range(3) for e in read_entries(store, len(values), n)]
    assert [entry.encode() for entry in seen["entries"]] == mine
    assert sorted(mine) == sorted(entry_of(value) or b"" for value in values)
    assert seen["proven"] == 7
    # The other way: what we prove from a web server's files, torchwood believes.
    web = WebReader(served)
    checkpoint = web.read("checkpoint") or b""
    tree = TiledTree(len(values), lambda *at: read_tile(web, *at))
    proof, entry = tmp_path / "p.tlog-proof", tmp_path / "entry"
    trusted = parse_policy(policy.read_bytes())
    for index in (0, TILE_WIDTH, len(values) - 1):
        proof.write_text(format_log_proof(index, tree.inclusion(index), checkpoint))
        entry.write_bytes(mine[index])
        agreed = told(programs, "verify-proof", policy, entry, proof)
        assert agreed.returncode == 0, agreed.stderr
        assert check_log_proof(proof.read_text(), mine[index], trusted)[0] == index
    entry.write_bytes(mine[1])
    assert told(programs, "verify-proof", policy, entry, proof).returncode != 0


async def test_a_fork_is_refused_by_a_witness_that_others_wrote(
    programs: Path, witness: LiteWitness, served: str, tmp_path: Path
) -> None:
    """The log's own key signs another history: no cosignature, so nobody believes it."""
    lines = f"{witness.line}quorum {witness.name}\n"
    yard = Installation()
    yard.sign(20)
    await yard.public_log(DirectoryStore(tmp_path / "true"), lines).round()
    # As long as the true one, of which another history is served.
    fork = Installation(at=1.6e9)
    fork.sign(20)
    store = DirectoryStore(tmp_path / "log")
    public = fork.public_log(store, lines)
    await public.round()
    assert "422" in public.witnesses.last_failure[witness.name]
    assert store.read("checkpoint") is None
    fork.sign(5)
    await public.round()
    assert "422" in public.witnesses.last_failure[witness.name]
    # Published all the same, it is signed by the log and believed by neither reader.
    text = f"{ORIGIN}\n25\n{root_text_of(store)}\n"
    store.write("checkpoint", f"{text}\n{KEY.sign(text)}".encode())
    assert is_signed_by(parse_note(store.read("checkpoint") or b""), KEY.verifier)
    policy = policy_file(tmp_path, witness)
    read = told(programs, "read", served, policy, KEY.verifier.text)
    assert read.returncode != 0
    with pytest.raises(ValueError, match="no quorum of witnesses"):
        parse_policy(policy.read_bytes()).check(store.read("checkpoint") or b"")
    # Under the true log's cosignature it is another text.
    good = parse_note(DirectoryStore(tmp_path / "true").read("checkpoint") or b"")
    assert parse_checkpoint(good.text).size == 20


def root_text_of(store: DirectoryStore) -> str:
    tree = TiledTree(25, lambda *at: read_tile(store, *at))
    return base64.b64encode(tree.root()).decode()


def test_a_key_of_ours_signs_for_others(programs: Path, tmp_path: Path) -> None:
    file = tmp_path / "log.key"
    write_key_file(file, f"{KEY.text}\n".encode())
    signed = told(programs, "sign", file, "some text\n")
    assert signed.stdout == f"some text\n\n{KEY.sign('some text' + chr(10))}"
