"""The batch that an ``Idempotency-Key`` stands for: a file that all gateways share."""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path

from gateway.exchange.request_ids import tenant_tag
from topics import decode, durable_files, encode

# As long as the keys of requests are known.
KEPT_S = 86_400.0


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Which batch a key has made: its id, and the digest of the body that asked for it."""

    batch_id: str
    digest: str


class BatchKeys:
    """The keys of new batches below the folder of a gateway's files; the first claim counts."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "keys"
        self._folder.mkdir(parents=True, exist_ok=True)

    def claim(self, tenant: str, key: str, wanted: BatchKey) -> BatchKey:
        """Return what a key stands for, which is ``wanted`` where nobody has claimed it."""
        path = self._path(tenant, key)
        if durable_files.create_exclusive(path, encode(wanted)):
            return wanted
        return decode(BatchKey, path.read_bytes())

    def forget(self, tenant: str, key: str) -> None:
        """Take a claim back: no batch came of it."""
        durable_files.remove(self._path(tenant, key))

    def sweep(self, now: float) -> None:
        """Delete keys of more than a day ago; ``now`` is epoch seconds."""
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - KEPT_S:
                    durable_files.remove(path)

    def _path(self, tenant: str, key: str) -> Path:
        digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
        return self._folder / f"{tenant_tag(tenant)}-{digest}"
