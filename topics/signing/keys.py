"""The private key of a writer: a new one at each start, or one from a file."""

import base64
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from topics.signing.key_files import KeyFileError, check_key_file, write_key_file
from topics.signing.signed_root import KeyStatement, PublishedKey, key_id, sign

_END = b"-----END PRIVATE KEY-----"
_VALID_FROM = re.compile(rb"^Valid-From: (\d{1,12}(?:\.\d{1,9})?)$", re.MULTILINE)


class SigningKeyError(KeyFileError):
    """A file that holds no key to sign with; the message says which and why."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """An Ed25519 key and the key it replaced, if any, which vouches for it.

    ``valid_from`` is epoch seconds; None for a key that is valid from its publication on.
    """

    private: Ed25519PrivateKey
    endorser: Ed25519PrivateKey | None = None
    valid_from: float | None = None

    @property
    def public(self) -> bytes:
        """The 32 bytes of the public key."""
        return _public(self.private)

    @property
    def id(self) -> str:
        """The key's name."""
        return key_id(self.public)

    def publish(self, writer: str, now: float, valid_s: float | None = None) -> PublishedKey:
        """Return the key for the keys topic; a key from a file is published the same each time.

        Args:
            writer: the process that signs with it.
            now: epoch seconds.
            valid_s: how long it may sign; None until it is revoked.
        """
        valid_from = now if self.valid_from is None else self.valid_from
        valid_until = None if valid_s is None else valid_from + valid_s
        public = base64.b64encode(self.public).decode()
        statement = KeyStatement(self.id, public, writer, valid_from, valid_until)
        endorser = endorsement = None
        if self.endorser is not None:
            endorser = key_id(_public(self.endorser))
            endorsement = sign(self.endorser, "endorsement", statement)
        return PublishedKey(statement, sign(self.private, "key", statement), endorser, endorsement)


def load_signing_key(path: Path | None) -> SigningKey:
    """Return the key of a PEM file; without one, a new key that ends with the process.

    The file's first key signs. A second one, its predecessor, vouches for it. A line
    ``Valid-From:`` before them gives its start; the key of a file without it was always valid.

    Raises:
        KeyFileError: the file can't be read, others may read it, or it has no Ed25519 key.
    """
    if path is None:
        return SigningKey(Ed25519PrivateKey.generate())
    try:
        check_key_file(path)
        text = path.read_bytes()
        keys = [_load(path, block) for block in _blocks(text)]
    except OSError as error:
        raise SigningKeyError(f"{path}: {error.strerror}") from error
    if not keys:
        raise SigningKeyError(
            f"{path}: no PEM private key in it; `shunter evidence keygen` makes one"
        )
    found = _VALID_FROM.search(text)
    valid_from = float(found[1]) if found else 0.0
    return SigningKey(keys[0], keys[1] if len(keys) > 1 else None, valid_from)


def write_signing_key(path: Path, keys: Sequence[Ed25519PrivateKey], valid_from: float) -> None:
    """Write keys to a PEM file that only its owner can read, the signing key first.

    Args:
        path: of the file.
        keys: one, or a key and the one that it replaces.
        valid_from: epoch seconds.

    Raises:
        OSError: the file can't be written.
    """
    text = f"Valid-From: {valid_from:.3f}\n".encode() + b"".join(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) for key in keys
    )
    write_key_file(path, text)


def _public(private: Ed25519PrivateKey) -> bytes:
    return private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)


def _blocks(text: bytes) -> list[bytes]:
    return [block + _END for block in text.split(_END)[:-1]]


def _load(path: Path, block: bytes) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(block, password=None)
    except (ValueError, TypeError) as error:
        raise SigningKeyError(f"{path}: no readable private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise SigningKeyError(f"{path}: not an Ed25519 key")
    return key
