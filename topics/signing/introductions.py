"""Introductions and revocations: who says whose a key is, and from when it is believed no more.

An installation key is kept offline and says it of writers' keys, or of keys that may do so for it.
"""

import base64

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from topics.signing.keys import SigningKey
from topics.signing.signed_root import (
    Introduction,
    IntroductionStatement,
    Revocation,
    is_signed,
    key_id,
    sign,
)


def introduce(
    by: SigningKey,
    key: str,
    writer: str,
    valid_from: float,
    valid_until: float | None = None,
    *,
    introduces: bool = False,
) -> Introduction:
    """Return a signed introduction of a key; times are epoch seconds."""
    statement = IntroductionStatement(by.id, key, writer, valid_from, valid_until, introduces)
    return Introduction(statement, _text(by), sign(by.private, "introduction", statement))


def revoke(by: SigningKey, key: str, at: float, reason: str) -> Revocation:
    """Return a signed revocation; ``at`` is epoch seconds."""
    plain = Revocation(key, at, reason, by.id, _text(by))
    return Revocation(
        key, at, reason, by.id, _text(by), sign(by.private, "revocation", plain.statement)
    )


def is_introduction(introduction: Introduction) -> bool:
    """Return whether the key that it names has signed it."""
    statement = introduction.statement
    public = _public(introduction.public_key, statement.by)
    return public is not None and is_signed(
        public, "introduction", statement, introduction.signature
    )


def is_signed_revocation(revocation: Revocation) -> bool:
    """Return whether the key that it names has signed it; False where it names none."""
    public = _public(revocation.public_key or "", revocation.by or "")
    return public is not None and is_signed(
        public, "revocation", revocation.statement, revocation.signature or ""
    )


def is_of(writer: str, pattern: str) -> bool:
    """Return whether an introduction for this pattern is one for this writer."""
    if pattern.endswith("*"):
        return writer.startswith(pattern[:-1])
    return writer == pattern


def _text(key: SigningKey) -> str:
    return base64.b64encode(key.public).decode()


def _public(text: str, name: str) -> Ed25519PublicKey | None:
    """Return the key with this name; None if the text is no such key."""
    try:
        raw = base64.b64decode(text, validate=True)
        public = Ed25519PublicKey.from_public_bytes(raw)
    except ValueError:
        return None
    # As it is written, and no other spelling of it.
    return public if key_id(raw) == name and base64.b64encode(raw).decode() == text else None
