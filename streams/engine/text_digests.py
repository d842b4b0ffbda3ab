"""Keyed digests: a holder of a text can prove that it is the one, nobody else learns it.

Each process uses the first salt of a tenant that it knows, or makes one. A new salt is written in
the transaction of the first evidence that uses it. Another process may make a second salt of the
tenant at the same time; that is harmless, since a digest names its salt.
"""

import base64
from collections.abc import Callable
from typing import Any

from streams.engine.log import Outgoing
from topics import Catalogue, InferenceRequest, Salt, TextDigest, encode
from topics.bounded_dict import BoundedDict
from topics.signing.request_parts import request_digests
from topics.signing.salts import SALT_BYTES, Mac, digest_key, salt_key, text_digest

# About 60 MB. Beyond it a tenant seen again gets a new salt.
TENANTS_MAX = 100_000


class Digests:
    """The salts that one process knows, and the digests made with them."""

    def __init__(
        self, catalogue: Catalogue, secret: bytes | None, random_bytes: Callable[[int], bytes]
    ) -> None:
        self._topic = catalogue.evidence_salts
        self._secret = secret
        self._random_bytes = random_bytes
        self._known: BoundedDict[str, tuple[str, Mac]] = BoundedDict(TENANTS_MAX)
        self._unwritten: dict[bytes, Salt] = {}

    def add(self, salt: Salt) -> None:
        """Add a salt from the topic."""
        if salt.tenant not in self._known:
            self._remember(salt)

    def remove(self, tenant: str, salt_id: str) -> None:
        """Forget a salt; the tenant's next text gets another."""
        if self._known.get(tenant, ("",))[0] == salt_id:
            del self._known[tenant]

    def digest(self, tenant: str, text: Any) -> TextDigest | None:
        """Return the digest of parsed JSON; None if it has no canonical form."""
        known = self._known.get(tenant) or self._new(tenant)
        hmac = text_digest(known[1], text)
        return None if hmac is None else TextDigest(known[0], hmac)

    def of_request(self, request: InferenceRequest) -> TextDigest | None:
        """Return the digest of a request as it was sent; None if it has no canonical form."""
        known = self._known.get(request.tenant) or self._new(request.tenant)
        found = request_digests(known[1], request.sent)
        return None if found is None else TextDigest(known[0], *found)

    def unwritten(self) -> list[Outgoing]:
        """Return the salts that no committed transaction has written yet."""
        return [Outgoing(self._topic, key, encode(salt)) for key, salt in self._unwritten.items()]

    def written(self, records: list[Outgoing]) -> None:
        """Note that the topic has these salts."""
        for record in records:
            self._unwritten.pop(record.key or b"", None)

    def _new(self, tenant: str) -> tuple[str, Mac]:
        salt_id = self._random_bytes(8).hex()
        salt = Salt(tenant, salt_id, base64.b64encode(self._random_bytes(SALT_BYTES)).decode())
        self._unwritten[salt_key(tenant, salt_id)] = salt
        return self._remember(salt)

    def _remember(self, salt: Salt) -> tuple[str, Mac]:
        known = salt.id, Mac(digest_key(salt, self._secret))
        self._known.put(salt.tenant, known)
        return known
