"""Salts: keys for digests of a tenant's texts; forgetting the tenant destroys them.

A digest is HMAC-SHA-256 over canonical JSON. Its key is derived from the tenant's salt and, if the
installation has one, a secret (RFC 5869), so that neither alone reveals anything.
"""

import base64
import hmac
from dataclasses import dataclass
from typing import Any

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from topics.wire.canonical_json import canonical_json

SALT_BYTES = 32


@dataclass(frozen=True, slots=True)
class Salt:
    """A salt of a tenant; ``salt`` is base64. A tenant may have several."""

    tenant: str
    id: str
    salt: str


def salt_key(tenant: str, salt_id: str) -> bytes:
    """Return the key of a salt's record. The id comes first: a tenant's name may hold anything."""
    return f"{salt_id}/{tenant}".encode()


def digest_key(salt: Salt, secret: bytes | None) -> bytes:
    """Return the 32 bytes that digests are keyed with."""
    return HKDF(SHA256(), 32, salt=base64.b64decode(salt.salt), info=b"shunter/digest").derive(
        secret or b"shunter"
    )


def text_digest(key: bytes, text: Any) -> str | None:
    """Return the keyed digest of parsed JSON, in hexadecimal; None if it has no canonical form."""
    try:
        return hmac.digest(key, canonical_json(text), "sha256").hex()
    except (ValueError, RecursionError):
        return None
