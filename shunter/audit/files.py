"""An auditor's files: public keys, and the heads of the last verification."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

from shunter.audit.keyring import Keyring
from shunter.console import UserError, named, read_input
from topics import ChainHead, KeyEntry
from topics.wire.codec import describe

T = TypeVar("T")

_FINGERPRINT = re.compile(r"[0-9a-f]{32}")
_ENTRIES = TypeAdapter(list[KeyEntry])
_HEADS = TypeAdapter(dict[str, ChainHead])


def write_keys(path: Path, keyring: Keyring) -> int:
    """Write the keys, introductions and revocations of a keyring; return the number of keys.

    Raises:
        OSError: the file can't be written.
    """
    keys = list(keyring.published())
    entries = [KeyEntry(published=key) for key in keys]
    entries += [KeyEntry(introduction=each) for each in keyring.introductions()]
    entries += [KeyEntry(revocation=each) for each in keyring.revocations()]
    path.write_bytes(orjson.dumps(entries, option=orjson.OPT_INDENT_2))
    return len(keys)


def write_entries(path: Path, entries: Sequence[KeyEntry]) -> None:
    """Write entries for the keys topic, such as introductions signed offline.

    Raises:
        OSError: the file can't be written.
    """
    path.write_bytes(orjson.dumps(list(entries), option=orjson.OPT_INDENT_2))


def read_entries(path: Path) -> list[KeyEntry]:
    """Return the entries of such a file, or of an auditor's file of keys.

    Raises:
        UserError: the file is no such file.
    """
    return _read(path, _ENTRIES)


def load_keyring(path: Path | None, trust: Sequence[str] = ()) -> Keyring:
    """Return a keyring that trusts what installation keys introduce, or a file's keys alone.

    Args:
        path: a file of keys. With ``trust`` they are known, with their introductions and
            revocations, but not trusted for that.
        trust: fingerprints of installation keys, or files that have one on each line. Without it
            and without a path, any key is trusted.

    Raises:
        UserError: a file is no such file, or a fingerprint is none.
    """
    installations = frozenset(each for word in trust for each in _fingerprints(word))
    if path is None:
        return Keyring(installations=installations)
    entries = _read(path, _ENTRIES)
    ids = frozenset(e.published.statement.key for e in entries if e.published is not None)
    keyring = Keyring(trusted=ids, installations=installations)
    for entry in entries:
        keyring.add(entry, str(path))
    if keyring.refused:
        _, why = keyring.refused[0]
        raise UserError(f"{path}: {why}")
    return keyring


def _fingerprints(word: str) -> list[str]:
    if _FINGERPRINT.fullmatch(word):
        return [word]
    try:
        lines = Path(word).read_text(encoding="utf-8").split()
    except (OSError, UnicodeDecodeError) as error:
        told = "32 digits from 0 to f, nor a file of such"
        raise UserError(f"--trust {word}: neither a fingerprint, {told}: {error}") from error
    if not lines or not all(_FINGERPRINT.fullmatch(line) for line in lines):
        raise UserError(f"{word}: a fingerprint is 32 digits from 0 to f, one on each line")
    return lines


def load_heads(path: Path | None) -> dict[str, tuple[ChainHead, str]]:
    """Return the heads of a file, each with the file's name; empty if it doesn't exist yet.

    Raises:
        UserError: the file is no such file.
    """
    if path is None or not path.exists():
        return {}
    return {chain: (head, str(path)) for chain, head in _read(path, _HEADS).items()}


def write_heads(path: Path, heads: dict[str, ChainHead]) -> None:
    """Write heads, for the next verification.

    Raises:
        OSError: the file can't be written.
    """
    path.write_bytes(orjson.dumps(heads, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS))


def _read(path: Path, kind: "TypeAdapter[T]") -> T:
    try:
        return kind.validate_json(read_input(path))
    except OSError as error:
        raise UserError(f"{named(path)}: {error.strerror}") from error
    except ValidationError as error:
        raise UserError(f"{named(path)}: {describe(error)}") from error
