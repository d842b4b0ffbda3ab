"""A public log for tests: signed roots on the log in memory, a store that dies, a plain witness."""

import base64
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from memory_log import MemoryCluster, MemoryLog
from stream_cases import FakeClock, make_key, make_settings

from shunter.public_log.publisher import PublicLog
from shunter.public_log.store import DirectoryStore, LogStore
from shunter.public_log.witnesses import Witnesses
from streams.engine.log import Outgoing
from topics import Catalogue, ChainHead, Root, encode
from topics.public_log.notes import (
    COSIGNATURE_V1,
    Checkpoint,
    NoteKey,
    VerifierKey,
    cosigned_text,
    is_signed_by,
    line_of,
    parse_checkpoint,
    parse_note,
)
from topics.public_log.policy import parse_policy
from topics.signing.merkle import leaf_hash
from topics.signing.signed_root import make_root

ORIGIN = "log.example.com/yard"
KEY = NoteKey(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x07" * 32))
_SIGNER = make_key(1)
OTHER_KEY = NoteKey(ORIGIN, Ed25519PrivateKey.from_private_bytes(b"\x08" * 32))


@cache
def signed(chain: str, head: ChainHead | None, leaf: bytes, at: float) -> tuple[Root, ChainHead]:
    """Return the next root of a chain; each installation signs the same ones once more."""
    return make_root(_SIGNER.private, _SIGNER.id, "router/a", chain, head, [leaf], at)


@dataclass
class Installation:
    """Two chains of roots on a cluster in memory; each root is over one record."""

    at: float = 1_700_000_000.0
    catalogue: Catalogue = field(default_factory=lambda: Catalogue(make_settings()))
    heads: dict[str, ChainHead] = field(default_factory=dict)
    roots: list[Root] = field(default_factory=list)

    def __post_init__(self) -> None:
        topics = {topic.name: topic.partitions for topic in self.catalogue.topics([])}
        self.cluster = MemoryCluster(topics, now=lambda: self.at)

    def sign(self, count: int, chains: Sequence[str] = ("yard-0", "yard-1")) -> list[bytes]:
        """Commit roots, one second apart; return their values."""
        made = []
        for n in range(count):
            self.at += 1.0
            chain = chains[n % len(chains)]
            leaf = leaf_hash(f"{chain}{n}{self.at}".encode())
            root, self.heads[chain] = signed(chain, self.heads.get(chain), leaf, self.at)
            self.roots.append(root)
            made.append(encode(root))
            record = Outgoing(
                self.catalogue.evidence_roots, chain.encode(), made[-1], partition=n % len(chains)
            )
            self.cluster.publish(record)
        return made

    def public_log(
        self, store: LogStore, policy: str = "quorum none\n", key: NoteKey = KEY
    ) -> PublicLog:
        """Return a process that logs them."""
        trusted = parse_policy(f"log {key.verifier.text}\n{policy}".encode())
        clock = FakeClock()
        clock.at = self.at
        log = MemoryLog(self.cluster)
        return PublicLog(log, self.catalogue, store, key, Witnesses(trusted), clock)


class DeadError(Exception):
    """The process is gone."""


class MortalStore:
    """A store whose process dies before, or just after, its nth change of it."""

    def __init__(self, place: Path | LogStore, deaths: Callable[[], bool]) -> None:
        self._inner = DirectoryStore(place) if isinstance(place, Path) else place
        self._deaths = deaths
        self.url = self._inner.url
        self.read: Callable[[str], bytes | None] = self._inner.read
        self.names = self._inner.names

    def claim(self) -> None:
        """Take no lock: the dead process of this test has not let go of its own."""

    def write(self, path: str, data: bytes) -> None:
        self._die()
        self._inner.write(path, data)
        self._die()

    def create(self, path: str, data: bytes) -> bool:
        self._die()
        created = self._inner.create(path, data)
        self._die()
        return created

    def delete(self, path: str) -> None:
        self._die()
        self._inner.delete(path)

    def _die(self) -> None:
        if self._deaths():
            raise DeadError


@dataclass
class PlainWitness:
    """Cosigns whatever the log has signed, and keeps it: consistency is for the test to judge.

    ``answer`` may be replaced to answer something else: status and body, by checkpoint.
    """

    name: str
    key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    seen: list[Checkpoint] = field(default_factory=list)
    at: Callable[[], float] = time.time
    url: str = ""
    answer: Callable[[Checkpoint, str], tuple[int, bytes]] | None = None

    @property
    def verifier(self) -> VerifierKey:
        """Its public key."""
        return VerifierKey(self.name, COSIGNATURE_V1, self.key.public_key().public_bytes_raw())

    @property
    def line(self) -> str:
        """Its line in a policy."""
        return f"witness {self.name} {self.verifier.text} {self.url}\n"

    def cosign(self, text: str) -> str:
        """Return the line of a cosignature of a checkpoint's text."""
        at = int(self.at())
        signature = self.key.sign(cosigned_text(text, at))
        return line_of(self.verifier, at.to_bytes(8, "big") + signature)

    def take(self, body: bytes) -> tuple[int, bytes]:
        """Answer an add-checkpoint."""
        head, _, signed = body.partition(b"\n\n")
        note = parse_note(signed)
        checkpoint = parse_checkpoint(note.text)
        assert head.startswith(b"old ")
        assert is_signed_by(note, KEY.verifier)
        self.seen.append(checkpoint)
        if self.answer is not None:
            return self.answer(checkpoint, note.text)
        return 200, self.cosign(note.text).encode()

    @contextmanager
    def serving(self) -> Iterator["PlainWitness"]:
        """Serve HTTP on a free port."""
        witness = self

        class Desk(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = witness.take(body)
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        server = ThreadingHTTPServer(("127.0.0.1", 0), Desk)
        self.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield self
        finally:
            server.shutdown()
            server.server_close()


def empty_root_text() -> str:
    """Return the hash of an empty tree, as witnesses keep it."""
    return base64.b64encode(hashlib.sha256(b"").digest()).decode()
