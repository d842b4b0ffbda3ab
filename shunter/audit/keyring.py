"""Public keys: their owners, when they may sign, and whether they are trusted."""

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shunter.audit.findings import Kind
from topics import ChainHead, Heads, KeyEntry, PublishedKey, Revocation
from topics.signing.signed_root import is_signed, key_id


class KeyProblem(Exception):  # noqa: N818 - a finding, not a failure of ours
    """The reason why a signature is not trusted. ``kind`` is that of the finding."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


@dataclass(frozen=True, slots=True)
class _Key:
    published: PublishedKey
    public: Ed25519PublicKey


@dataclass(slots=True)
class Keyring:
    """The keys of the keys topic, or of an auditor's file.

    With ``trusted``, only those ids are trusted and keys endorsed by them, or by keys they vouch
    for.
    """

    trusted: frozenset[str] | None = None
    heads: list[Heads] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Invalid entries: key of the record, and the reason."""
    _keys: dict[str, _Key] = field(default_factory=dict)
    _revoked: dict[str, Revocation] = field(default_factory=dict)

    def add(self, entry: KeyEntry, where: str) -> None:
        """Add an entry of the keys topic; a false one is set aside."""
        if entry.revocation is not None:
            known = self._revoked.get(entry.revocation.key)
            if known is None or entry.revocation.at < known.at:
                self._revoked[entry.revocation.key] = entry.revocation
        if entry.published is not None:
            self._add_key(entry.published, where)
        if entry.heads is not None:
            self.heads.append(entry.heads)

    def published(self) -> Iterable[PublishedKey]:
        """Return the trusted keys."""
        return [key.published for key in self._keys.values() if self._is_trusted(key.published)]

    def revocation(self, key: str) -> Revocation | None:
        """Return the revocation of a key, None if there is none."""
        return self._revoked.get(key)

    def witnessed(self) -> dict[str, tuple[ChainHead, str]]:
        """Return the furthest head of each chain in the writers' heartbeats, and its source."""
        found: dict[str, tuple[ChainHead, str]] = {}
        for heads in self.heads:
            statement = heads.statement
            try:
                self.check(statement.key, statement.writer, statement.at)
            except KeyProblem as problem:
                self.refused.append((f"heads/{statement.key}", problem.message))
                continue
            public = self._keys[statement.key].public
            if not is_signed(public, "heads", statement, heads.signature):
                self.refused.append((f"heads/{statement.key}", "the signature is wrong"))
                continue
            told = f"the heartbeat of {statement.writer} at {when(statement.at)}"
            for chain, head in statement.heads.items():
                if chain not in found or found[chain][0].sequence < head.sequence:
                    found[chain] = (head, told)
        return found

    def check(self, key: str, writer: str, at: float) -> Ed25519PublicKey:
        """Return the key that signed as ``writer``, ``at`` this time (epoch seconds).

        Raises:
            KeyProblem: it may not have.
        """
        known = self._keys.get(key)
        if known is None:
            raise KeyProblem("unknown_key", f"key {key} is not among the published keys")
        statement = known.published.statement
        if not self._is_trusted(known.published):
            raise KeyProblem("unknown_key", f"key {key} is published, but not among those trusted")
        if statement.writer != writer:
            raise KeyProblem("forged", f"key {key} belongs to {statement.writer}, not to {writer}")
        revoked = self._revoked.get(key)
        if revoked is not None and at >= revoked.at:
            told = f"key {key} was revoked at {when(revoked.at)}: {revoked.reason}"
            raise KeyProblem("revoked_key", told)
        if at < statement.valid_from or at > (statement.valid_until or at):
            until = "" if statement.valid_until is None else f" to {when(statement.valid_until)}"
            told = f"key {key} is valid from {when(statement.valid_from)}{until}"
            raise KeyProblem("outside_validity", f"{told}, not at {when(at)}")
        return known.public

    def _add_key(self, published: PublishedKey, where: str) -> None:
        statement = published.statement
        try:
            raw = base64.b64decode(statement.public_key, validate=True)
            public = Ed25519PublicKey.from_public_bytes(raw)
        except ValueError as error:
            self.refused.append((where, f"no public key: {error}"))
            return
        if key_id(raw) != statement.key:
            self.refused.append((where, f"its id should be {key_id(raw)}"))
        elif not is_signed(public, "key", statement, published.signature):
            self.refused.append((where, "its holder has not signed it"))
        else:
            self._keys[statement.key] = _Key(published, public)

    def _is_trusted(self, published: PublishedKey) -> bool:
        if self.trusted is None:
            return True
        seen: set[str] = set()
        while published.statement.key not in self.trusted:
            seen.add(published.statement.key)
            endorser = self._keys.get(published.endorser or "")
            if endorser is None or endorser.published.statement.key in seen:
                return False
            signature = published.endorsement or ""
            if not is_signed(endorser.public, "endorsement", published.statement, signature):
                return False
            published = endorser.published
        return True


def when(at: float) -> str:
    """Format epoch seconds for people."""
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{at} s"
