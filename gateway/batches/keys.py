"""The batch that an ``Idempotency-Key`` stands for: what all gateways share."""

import contextlib
import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from gateway.exchange.request_ids import tenant_tag
from gateway.files.expiries import Expiries
from topics import decode, durable_files, encode
from topics.objects import Objects

# As long as the keys of requests are known.
KEPT_S = 86_400.0


@dataclass(frozen=True, slots=True)
class BatchKey:
    """Which batch a key has made: its id, and the digest of the body that asked for it."""

    batch_id: str
    digest: str


class BatchKeys(Protocol):
    """The keys of new batches; the first claim counts. Calls block, and may raise OSError."""

    def claim(self, tenant: str, key: str, wanted: BatchKey, now: float) -> BatchKey:
        """Return what a key stands for, which is ``wanted`` where nobody has claimed it."""
        ...

    def forget(self, tenant: str, key: str) -> None:
        """Take a claim back: no batch came of it."""
        ...

    def sweep(self, now: float) -> None:
        """Delete keys of more than a day ago; ``now`` is epoch seconds."""
        ...


class DirectoryKeys:
    """Keys below the folder of a gateway's files."""

    def __init__(self, root: Path) -> None:
        self._folder = root / "keys"
        self._folder.mkdir(parents=True, exist_ok=True)

    def claim(self, tenant: str, key: str, wanted: BatchKey, now: float) -> BatchKey:
        """Return what a key stands for; the file has the time itself."""
        del now
        path = self._folder / _name(tenant, key)
        if durable_files.create_exclusive(path, encode(wanted)):
            return wanted
        return decode(BatchKey, path.read_bytes())

    def forget(self, tenant: str, key: str) -> None:
        """Take a claim back."""
        durable_files.remove(self._folder / _name(tenant, key))

    def sweep(self, now: float) -> None:
        """Delete keys of more than a day ago."""
        for path in self._folder.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < now - KEPT_S:
                    durable_files.remove(path)


@dataclass(frozen=True, slots=True)
class _Claim:
    key: BatchKey
    until: float


class ObjectKeys:
    """Keys in an object store."""

    def __init__(self, objects: Objects, expiries: Expiries) -> None:
        self._objects = objects
        self._expiries = expiries

    def claim(self, tenant: str, key: str, wanted: BatchKey, now: float) -> BatchKey:
        """Return what a key stands for."""
        path, claim = f"keys/{_name(tenant, key)}", _Claim(wanted, now + KEPT_S)
        self._expiries.note(claim.until, [path])
        if self._objects.create(path, encode(claim)):
            return wanted
        value = self._objects.read(path)
        held = claim if value is None else decode(_Claim, value)
        if held.until != claim.until:
            # The claim that counts has a time of its own; where that is ours, so is its entry.
            self._expiries.forget(claim.until, path)
        return held.key

    def forget(self, tenant: str, key: str) -> None:
        """Take a claim back, and with it when it was to go: another may come."""
        path = f"keys/{_name(tenant, key)}"
        value = self._objects.read(path)
        if value is not None:
            self._objects.delete(path)
            self._expiries.forget(decode(_Claim, value).until, path)

    def sweep(self, now: float) -> None:
        """Return: claims are among what the store of files deletes when it is due."""


def _name(tenant: str, key: str) -> str:
    digest = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{tenant_tag(tenant)}-{digest}"
