"""The proof that a request came with an API key: what a gateway writes, and a router checks.

Kafka tells a reader nothing of who wrote a record, so that the id of a key counts only where
someone with the secret that gateways and routers share has signed it, for this request and tenant.
"""

import hashlib
import hmac

from topics.records import headers as h
from topics.wire.codec import encode

KEY_CHARACTERS_MAX = 128


def key_headers(secret: bytes, key: str, request_id: str, tenant: str) -> dict[str, bytes]:
    """Return the headers that prove a key, given by its id, for one request of one tenant."""
    proof = _proof(secret, key, request_id, tenant)
    return {h.KEY: key.encode(), h.KEY_PROOF: proof.encode()}


def proven_key(headers: h.Headers, secret: bytes, request_id: str, tenant: str) -> str | None:
    """Return the id of the key that a record proves; None if it proves none."""
    key, proof = h.find(headers, h.KEY), h.find(headers, h.KEY_PROOF)
    if key is None or proof is None or len(key) > KEY_CHARACTERS_MAX:
        return None
    try:
        name = key.decode()
    except UnicodeDecodeError:
        return None
    wanted = _proof(secret, name, request_id, tenant).encode()
    return name if hmac.compare_digest(wanted, proof) else None


def _proof(secret: bytes, key: str, request_id: str, tenant: str) -> str:
    # As JSON, in which no three texts look like three others.
    return hmac.new(secret, encode([key, request_id, tenant]), hashlib.sha256).hexdigest()
