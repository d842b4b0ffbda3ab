"""Public keys: their owners, when they may sign, and whether they are trusted."""

import base64
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from shunter.audit.findings import Kind
from topics import ChainHead, Heads, Introduction, KeyEntry, PublishedKey, Revocation
from topics.iso_time import iso_time
from topics.signing.introductions import is_introduction, is_of, is_signed_revocation
from topics.signing.signed_root import is_signed, key_id

# An installation key, its successor, one that introduces for it, a writer's: and one to spare.
INTRODUCTIONS_MAX = 5


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

    With ``installations``, ids of installation keys, only keys that one of them has introduced are
    trusted, and only revocations that one of them, or the key itself, has signed. Else, with
    ``trusted``, only those ids are trusted and keys endorsed by them, or by keys they vouch for.
    """

    trusted: frozenset[str] | None = None
    heads: list[Heads] = field(default_factory=list)
    refused: list[tuple[str, str]] = field(default_factory=list)
    """Entries that are false: where, and the reason."""
    ignored: list[tuple[str, str]] = field(default_factory=list)
    """Entries of keys that are not trusted, or not any more: where, and the reason."""
    installations: frozenset[str] = frozenset()
    heard_at: float = -math.inf
    """The newest time in a heartbeat that ``witnessed`` has believed, epoch seconds."""
    _keys: dict[str, _Key] = field(default_factory=dict)
    _revoked: dict[str, Revocation] = field(default_factory=dict)
    _introduced: dict[str, list[Introduction]] = field(default_factory=dict)

    def add(self, entry: KeyEntry, where: str) -> None:
        """Add an entry of the keys topic; a false one is set aside."""
        if entry.revocation is not None:
            self._add_revocation(entry.revocation, where)
        if entry.published is not None:
            self._add_key(entry.published, where)
        if entry.introduction is not None:
            if is_introduction(entry.introduction):
                known = self._introduced.setdefault(entry.introduction.statement.key, [])
                if entry.introduction not in known:
                    known.append(entry.introduction)
            else:
                self.refuse(where, "the introduction's signature is wrong")
        if entry.heads is not None:
            self.heads.append(entry.heads)

    def refuse(self, where: str, why: str) -> None:
        """Set a false entry aside, once however often it is read."""
        if (where, why) not in self.refused:
            self.refused.append((where, why))

    def ignore(self, where: str, why: str) -> None:
        """Set an entry aside that is not false, but is not believed either."""
        if (where, why) not in self.ignored:
            self.ignored.append((where, why))

    def published(self) -> Iterable[PublishedKey]:
        """Return the trusted keys."""
        return [key.published for key in self._keys.values() if self._is_trusted(key.published)]

    def introductions(self) -> Iterable[Introduction]:
        """Return all introductions, whoever has signed them."""
        return [each for known in self._introduced.values() for each in known]

    def revocations(self) -> Iterable[Revocation]:
        """Return the revocations that count."""
        return self._revoked.values()

    def revocation(self, key: str) -> Revocation | None:
        """Return the revocation of a key, None if there is none."""
        return self._revoked.get(key)

    def check_endorsements(self) -> None:
        """Set aside what one key is said to have signed for another, and has not."""
        for key in self._keys.values():
            published = key.published
            endorser = self._keys.get(published.endorser or "")
            signature = published.endorsement or ""
            is_false = (published.endorser is None) != (published.endorsement is None)
            if is_false or (
                endorser is not None
                and not is_signed(endorser.public, "endorsement", published.statement, signature)
            ):
                where = f"key/{published.statement.key}"
                self.refuse(where, "the endorsement's signature is wrong")

    def witnessed(self) -> list[tuple[str, ChainHead, str]]:
        """Return each chain's heads in the writers' heartbeats, and their sources."""
        found: dict[str, tuple[ChainHead, str]] = {}
        for heads in self.heads:
            statement, where = heads.statement, f"heads/{heads.statement.key}"
            known = self._keys.get(statement.key)
            if known and not is_signed(known.public, "heads", statement, heads.signature):
                self.refuse(where, "the signature is wrong")
                continue
            try:
                self.check(statement.key, statement.writer, statement.at)
            except KeyProblem as problem:
                is_late = problem.kind in {"revoked_key", "outside_validity"}
                (self.ignore if is_late else self.refuse)(where, problem.message)
                continue
            self.heard_at = max(self.heard_at, statement.at)
            told = f"the heartbeat of {statement.writer} at {iso_time(statement.at)}"
            for chain, head in statement.heads.items():
                if chain not in found or found[chain][0].sequence < head.sequence:
                    found[chain] = (head, told)
        return [(chain, head, told) for chain, (head, told) in found.items()]

    def check(self, key: str, writer: str, at: float) -> Ed25519PublicKey:
        """Return the key that signed as ``writer``, ``at`` this time (epoch seconds).

        Raises:
            KeyProblem: it may not have.
        """
        known = self._keys.get(key)
        if known is None:
            raise KeyProblem("unknown_key", f"key {key} is not among the published keys")
        statement = known.published.statement
        if not self.installations and not self._is_trusted(known.published):
            raise KeyProblem("unknown_key", f"key {key} is published, but not among those trusted")
        if statement.writer != writer:
            raise KeyProblem("forged", f"key {key} belongs to {statement.writer}, not to {writer}")
        self._check_revoked(key, at)
        _check_validity(f"key {key}", statement.valid_from, statement.valid_until, at)
        if self.installations:
            self._check_introduced(key, writer, at)
        return known.public

    def _check_introduced(self, key: str, writer: str, at: float) -> None:
        """Check that a line of introductions leads from a trusted key to a writer's.

        Raises:
            KeyProblem: none does, or one that doesn't hold at that time.
        """
        problem = KeyProblem(
            "unknown_key",
            f"key {key} is published as {writer}'s, but no trusted key has introduced it as that",
        )
        line, seen = [key], {key}
        for depth in range(INTRODUCTIONS_MAX):
            known = [
                i.statement
                for name in line
                for i in self._introduced.get(name, ())
                if is_of(writer, i.statement.writer) and i.statement.introduces == (depth > 0)
            ]
            line = []
            for each in known:
                try:
                    told = f"the introduction of key {each.key}"
                    _check_validity(told, each.valid_from, each.valid_until, at)
                    self._check_revoked(each.by, at)
                except KeyProblem as reason:
                    problem = reason
                    continue
                if each.by in self.installations:
                    return
                if each.by not in seen:
                    seen.add(each.by)
                    line.append(each.by)
        raise problem

    def _check_revoked(self, key: str, at: float) -> None:
        revoked = self._revoked.get(key)
        if revoked is not None and at >= revoked.at:
            told = f"key {key} was revoked at {iso_time(revoked.at)}: {revoked.reason}"
            raise KeyProblem("revoked_key", told)

    def _add_revocation(self, revocation: Revocation, where: str) -> None:
        if revocation.signature is not None and not is_signed_revocation(revocation):
            self.refuse(where, "the revocation's signature is wrong")
            return
        who = revocation.by if revocation.signature is not None else None
        if self.installations and who not in self.installations and who != revocation.key:
            told = f"no trusted key has signed the revocation of {revocation.key}"
            self.ignore(where, told)
            return
        known = self._revoked.get(revocation.key)
        if known is None or revocation.at < known.at:
            self._revoked[revocation.key] = revocation

    def _add_key(self, published: PublishedKey, where: str) -> None:
        statement = published.statement
        try:
            raw = base64.b64decode(statement.public_key, validate=True)
            public = Ed25519PublicKey.from_public_bytes(raw)
        except ValueError as error:
            self.refuse(where, f"no public key: {error}")
            return
        if key_id(raw) != statement.key:
            self.refuse(where, f"its id should be {key_id(raw)}")
        elif not is_signed(public, "key", statement, published.signature):
            self.refuse(where, "its holder has not signed it")
        else:
            self._keys[statement.key] = _Key(published, public)

    def _is_trusted(self, published: PublishedKey) -> bool:
        if self.trusted is None or self.installations:
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


def _check_validity(what: str, valid_from: float, valid_until: float | None, at: float) -> None:
    if at < valid_from or (valid_until is not None and at > valid_until):
        until = "" if valid_until is None else f" to {iso_time(valid_until)}"
        told = f"{what} is valid from {iso_time(valid_from)}{until}"
        raise KeyProblem("outside_validity", f"{told}, not at {iso_time(at)}")
