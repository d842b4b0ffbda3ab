"""Roots: the signature over all evidence of one transaction, and the chain they form.

A chain has the name of a transactional id, so it has one writer at a time. Each root names its
predecessor by digest. docs/evidence.md is the specification.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import ConfigDict

from topics.signing.merkle import DIGEST_BYTES, tree_hash
from topics.wire.canonical_json import canonical

# What is signed is all there is: a member that is not known would be dropped, and pass unseen.
_SIGNED = ConfigDict(extra="forbid")

# What a signature is made for, so that one statement can't be taken for another.
Purpose = Literal["root", "key", "endorsement", "heads", "introduction", "revocation"]


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The last root of a chain. ``at`` is epoch seconds, ``digest`` that of the statement."""

    __pydantic_config__ = _SIGNED

    sequence: int
    digest: str
    at: float


@dataclass(frozen=True, slots=True)
class RootStatement:
    """The signed statement. ``previous`` is None for the first of a chain; ``sequence`` is then 0.

    ``at`` is epoch seconds and never before that of the previous root. ``count`` is the number of
    leaves below ``tree``. Hashes are in hexadecimal.
    """

    __pydantic_config__ = _SIGNED

    chain: str
    sequence: int
    previous: str | None
    count: int
    tree: str
    at: float
    writer: str
    key: str


@dataclass(frozen=True, slots=True)
class Root:
    """A record of the roots topic. ``leaves`` are the leaf hashes one after another, in base64."""

    statement: RootStatement
    signature: str
    leaves: str


@dataclass(frozen=True, slots=True)
class KeyStatement:
    """A public key, base64 of its 32 bytes, and when it may sign (epoch seconds)."""

    __pydantic_config__ = _SIGNED

    key: str
    public_key: str
    writer: str
    valid_from: float
    valid_until: float | None = None


@dataclass(frozen=True, slots=True)
class PublishedKey:
    """A key as its holder has published it, signed by itself and optionally by an older one."""

    statement: KeyStatement
    signature: str
    endorser: str | None = None
    endorsement: str | None = None


@dataclass(frozen=True, slots=True)
class IntroductionStatement:
    """The key ``by`` says whose ``key`` is, and when it may sign (epoch seconds).

    ``writer`` is a writer's name or, with a star at its end, how such names begin. With
    ``introduces`` the key signs no evidence: it introduces keys of such writers.
    """

    __pydantic_config__ = _SIGNED

    by: str
    key: str
    writer: str
    valid_from: float
    valid_until: float | None = None
    introduces: bool = False


@dataclass(frozen=True, slots=True)
class Introduction:
    """An introduction, complete in itself: ``public_key`` is that of ``by``, in base64."""

    statement: IntroductionStatement
    public_key: str
    signature: str


@dataclass(frozen=True, slots=True)
class Revocation:
    """Signatures of this key are invalid from ``at`` on (epoch seconds).

    One that is signed names the key ``by`` which it is, with that key's 32 bytes in base64.
    """

    key: str
    at: float
    reason: str
    by: str | None = None
    public_key: str | None = None
    signature: str | None = None

    @property
    def statement(self) -> dict[str, object]:
        """The signed bytes."""
        return {"at": self.at, "by": self.by, "key": self.key, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class HeadsStatement:
    """The last root of each chain that a writer has written to, as of ``at``."""

    __pydantic_config__ = _SIGNED

    writer: str
    key: str
    at: float
    heads: dict[str, ChainHead]


@dataclass(frozen=True, slots=True)
class Heads:
    """A writer's heartbeat on the keys topic."""

    statement: HeadsStatement
    signature: str


@dataclass(frozen=True, slots=True)
class KeyEntry:
    """A record of the keys topic: one of four kinds."""

    published: PublishedKey | None = None
    revocation: Revocation | None = None
    heads: Heads | None = None
    introduction: Introduction | None = None

    @property
    def name(self) -> str | None:
        """The key of its record; None without a member."""
        if self.published is not None:
            return f"key/{self.published.statement.key}"
        if self.revocation is not None:
            return f"revoked/{self.revocation.key}"
        if self.heads is not None:
            return f"heads/{self.heads.statement.key}"
        if self.introduction is not None:
            return f"introduced/{self.introduction.statement.key}"
        return None


def key_id(public_key: bytes) -> str:
    """Return the name of a public key: the first 16 bytes of its SHA-256, in hexadecimal."""
    return hashlib.sha256(public_key).hexdigest()[:32]


def signed_bytes(purpose: Purpose, statement: object) -> bytes:
    """Return the bytes to sign: the purpose, a zero byte and the canonical statement."""
    return b"shunter/" + purpose.encode() + b"\x00" + canonical(statement)


def sign(key: Ed25519PrivateKey, purpose: Purpose, statement: object) -> str:
    """Return a signature in base64."""
    return base64.b64encode(key.sign(signed_bytes(purpose, statement))).decode()


def is_signed(
    public_key: Ed25519PublicKey, purpose: Purpose, statement: object, signature: str
) -> bool:
    """Return True if the key has signed this statement for this purpose."""
    try:
        raw = base64.b64decode(signature, validate=True)
        public_key.verify(raw, signed_bytes(purpose, statement))
    except (InvalidSignature, ValueError):
        return False
    # Base64 has several spellings of the same bytes, of which one was written.
    return base64.b64encode(raw).decode() == signature


def statement_digest(statement: RootStatement) -> str:
    """Return the digest by which the next root names this one."""
    return hashlib.sha256(canonical(statement)).hexdigest()


def head_of(statement: RootStatement) -> ChainHead:
    """Return the chain's head after this root."""
    return ChainHead(statement.sequence, statement_digest(statement), statement.at)


def make_root(
    key: Ed25519PrivateKey,
    key_name: str,
    writer: str,
    chain: str,
    previous: ChainHead | None,
    leaves: Sequence[bytes],
    at: float,
) -> tuple[Root, ChainHead]:
    """Return the signed root over these leaf hashes, and the chain's new head."""
    statement = RootStatement(
        chain=chain,
        sequence=0 if previous is None else previous.sequence + 1,
        previous=None if previous is None else previous.digest,
        count=len(leaves),
        tree=tree_hash(leaves).hex(),
        at=at if previous is None else max(at, previous.at),
        writer=writer,
        key=key_name,
    )
    message = canonical(statement)
    signature = base64.b64encode(key.sign(b"shunter/root\x00" + message)).decode()
    root = Root(statement, signature, base64.b64encode(b"".join(leaves)).decode())
    digest = hashlib.sha256(message).hexdigest()
    return root, ChainHead(statement.sequence, digest, statement.at)


def leaves_of(root: Root) -> list[bytes]:
    """Return the leaf hashes of a root.

    Raises:
        ValueError: they are not base64 of whole hashes.
    """
    raw = base64.b64decode(root.leaves, validate=True)
    if len(raw) % DIGEST_BYTES:
        raise ValueError(f"{len(raw)} bytes of leaf hashes, no multiple of {DIGEST_BYTES}")
    return [raw[at : at + DIGEST_BYTES] for at in range(0, len(raw), DIGEST_BYTES)]
